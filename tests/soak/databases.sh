# An sqlite3 and a redis benchmark of size $ROWS and $REQUESTS; what they must come to is checked.
set -e
cd /var/tmp
rm -f soak.db
sqlite3 soak.db <<END
PRAGMA journal_mode=WAL;
CREATE TABLE t(id INTEGER PRIMARY KEY, a INTEGER, b TEXT);
CREATE TABLE u(a INTEGER, c REAL);
CREATE INDEX i ON t(a);
WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<$ROWS)
  INSERT INTO t(a, b) SELECT (n*7919)%$ROWS, printf('row %d of many', n) FROM c;
INSERT INTO u SELECT a, a*0.5 FROM t WHERE a%4=0;
CREATE INDEX j ON u(a);
BEGIN; UPDATE t SET b=b||'!' WHERE a%2=0; ROLLBACK;
UPDATE t SET b=upper(b) WHERE a%5=0;
DELETE FROM t WHERE a%3=0;
SELECT 'SQLITE joined '||count(*)||' '||cast(sum(c) AS INTEGER) FROM t JOIN u USING(a);
SELECT 'SQLITE sorted '||group_concat(b, ',') FROM (SELECT b FROM t ORDER BY b DESC LIMIT 3);
SELECT 'SQLITE rows '||count(*) FROM t;
VACUUM;
SELECT 'SQLITE check '||integrity_check FROM pragma_integrity_check;
END
python3 - <<END
# The same sums without the database.
rows = range(1, $ROWS + 1)
values = [n * 7919 % $ROWS for n in rows]
left = [a for a in values if a % 3]
joined = [a for a in left if a % 4 == 0]
print("EXPECT joined", len(joined), int(sum(a * 0.5 for a in joined)))
print("EXPECT rows", len(left))
END
redis-server --port 7000 --daemonize yes --save '' --appendonly yes --dir /var/tmp \
    --enable-debug-command yes >/dev/null
cli() { redis-cli -p 7000 "$@"; }
until [ "$(cli ping 2>/dev/null)" = PONG ]; do sleep 0.1; done
redis-benchmark -p 7000 -q -n "$REQUESTS" -c 10 -P 4 -t set,get,incr,lpush,sadd,hset,zadd,mset \
    >redis.log 2>&1
[ "$(cli get counter:__rand_int__)" = "$REQUESTS" ]
[ "$(cli llen mylist)" = "$REQUESTS" ]
python3 -c "
for n in range($REQUESTS):
    print(f'SET key:{n} {n * 2654435761 % 4294967296:x}')" | cli --pipe | tail -n 1
python3 - <<END
import socket
peer = socket.create_connection(("127.0.0.1", 7000)); lines = peer.makefile("rb")
for start in range(0, $REQUESTS, 100):
    some = range(start, min(start + 100, $REQUESTS))
    peer.sendall(b"".join(b"GET key:%d\r\n" % n for n in some))
    for n in some:
        lines.readline(); got = lines.readline().strip()
        assert got == b"%x" % (n * 2654435761 % 4294967296), (n, got)
print("REDIS values ok")
END
before=$(cli debug digest)
cli bgrewriteaof >/dev/null
until cli info persistence | grep -q 'aof_rewrite_in_progress:0'; do sleep 0.1; done
cli shutdown nosave
redis-server --port 7000 --daemonize yes --save '' --appendonly yes --dir /var/tmp \
    --enable-debug-command yes >/dev/null
until [ "$(cli ping 2>/dev/null)" = PONG ]; do sleep 0.1; done
[ "$(cli debug digest)" = "$before" ]
echo "REDIS digest $before"
cli shutdown nosave
