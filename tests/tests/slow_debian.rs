//! Debian at work on both kernels: python, sqlite, openssl, gcc, 32-bit programs, a login.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::Command;

use whole::debian::{BOOT, Debian, log_in};
use whole::debian_boot::boots_works_and_powers_off;
use whole::dmesg::complaints;
use whole::doppel::{Doppel, SHORT};
use whole::scratch::{Scratch, text, tool};

/// Uses twenty modules of the standard library and says something that depends on all of them.
const PYTHON: &str = r#"
import array, base64, bisect, collections, csv, datetime, decimal, fractions, functools, gzip
import hashlib, heapq, io, itertools, json, math, os, pathlib, random, re
import sqlite3, statistics, struct, subprocess, tempfile, threading, uuid, zlib
digest = hashlib.sha256()
def add(value):
    digest.update(repr(value).encode())
random.seed(42)
numbers = [random.randrange(1000) for _ in range(2000)]
add(sorted(numbers)[::100]); add(heapq.nsmallest(5, numbers)); add(bisect.bisect([1, 3, 5], 4))
add(array.array("d", [0.5, 0.25]).tobytes()); add(base64.b85encode(bytes(range(64))))
add(collections.Counter("mississippi").most_common()); add(list(csv.reader(["a,b", '"c,d",e'])))
add((datetime.date(2024, 2, 28) + datetime.timedelta(2)).isoformat())
add(decimal.Decimal(2).sqrt()); add(fractions.Fraction(3, 7) ** 5)
add(functools.reduce(lambda a, b: a * b, range(1, 30)))
add(gzip.decompress(gzip.compress(b"x" * 10000)) == b"x" * 10000)
add(io.StringIO("a\nb").readlines()); add(list(itertools.permutations("abc"))[4])
add(json.dumps({"a": [1, 2.5, None, True]})); add([math.sin(x / 7).hex() for x in range(50)])
add(os.path.normpath("/a/../b/./c")); add(str(pathlib.PurePath("/x") / "y"))
add(re.sub(r"(\w)(\d+)", r"\2\1", "a12 b345")); add(statistics.stdev(numbers))
db = sqlite3.connect(":memory:"); db.execute("create table t(a)")
db.executemany("insert into t values(?)", [(n,) for n in numbers])
add(db.execute("select sum(a), count(distinct a) from t").fetchall())
add(struct.pack("<dIq", 1.5, 7, -1))
add(subprocess.run(["echo", "hi"], capture_output=True).stdout)
with tempfile.TemporaryFile() as file:
    file.write(b"abc" * 1000); file.seek(5); add(file.read(7))
total = []
threads = [threading.Thread(target=lambda n=n: total.append(n * n)) for n in range(20)]
[t.start() for t in threads]; [t.join() for t in threads]; add(sorted(total))
add(uuid.uuid5(uuid.NAMESPACE_DNS, "doppel")); add(zlib.crc32(bytes(range(256)) * 100))
print("python", digest.hexdigest())
"#;

const SQLITE: &str = "
PRAGMA journal_mode=WAL;
CREATE TABLE t(id INTEGER PRIMARY KEY, a INTEGER, b TEXT);
CREATE INDEX i ON t(a);
WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<20000)
  INSERT INTO t(a, b) SELECT (n*7919)%10007, printf('row %d', n) FROM c;
DELETE FROM t WHERE a%3=0;
UPDATE t SET b=b||'!' WHERE a<5000;
VACUUM;
SELECT 'rows '||count(*)||' '||sum(a)||' '||sum(length(b)) FROM t;
PRAGMA integrity_check;
";

const C: &str = r#"
#include <math.h>
#include <stdio.h>
int main(void) {
    double sum = 0;
    for (int i = 1; i < 100000; i++) sum += sin(i) / i;
    printf("%.12f %zu\n", sum, sizeof(void *));
    return 0;
}
"#;

/// 100 MB of known bytes are hashed, so that a hash of the host is comparable.
const HASHES: &str = "
openssl enc -aes-128-ctr -K 000102030405060708090a0b0c0d0e0f -iv 0 -nosalt -in /dev/zero \
    2>/dev/null | head -c 100000000 >$F
for hash in md5 sha1 sha256 sha512 sha3-256 blake2b512; do
    echo \"$hash $(openssl dgst -$hash -r $F | cut -d' ' -f1)\"
done
rm $F
";

const JOB: &str = r#"
export F=/var/tmp/hashed
python3 /mnt/twenty.py
rm -f /var/tmp/w.db; sqlite3 /var/tmp/w.db </mnt/work.sql
sh /mnt/hashes
gcc -O2 -o /var/tmp/c /mnt/c.c -lm && echo "gcc $(/var/tmp/c)"
install -m 755 /mnt/program32 /var/tmp/program32
echo "32bit $(/var/tmp/program32)"
echo "state $(systemctl is-system-running --wait)"
dmesg --raw | sed 's/^/LOG /'
"#;

/// A static 32-bit program of the host's compiler.
fn program32(scratch: &Scratch) -> Vec<u8> {
    let source = scratch.write("c32.c", C);
    let program = scratch.path("c32");
    tool("gcc", &["-m32", "-O2", "-static", "-o", text(&program), text(&source), "-lm"]);
    std::fs::read(program).expect("the program")
}

/// Lines that the host prints for the same work.
fn expected(scratch: &Scratch) -> Vec<String> {
    let hashes = format!("export F={}\n{HASHES}", text(&scratch.path("hashed")));
    let mut lines: Vec<String> = tool("sh", &["-c", &hashes]).lines().map(Into::into).collect();
    let program: PathBuf = scratch.path("c64");
    let source = scratch.write("c64.c", C);
    tool("gcc", &["-O2", "-o", text(&program), text(&source), "-lm"]);
    let run = |program: PathBuf| {
        let output = Command::new(program).output().expect("a program for this host");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    lines.push(format!("gcc {}", run(program)));
    lines.push(format!("32bit {}", run(scratch.path("c32"))));
    lines.push("ok".into());
    lines.push("state running".into());
    lines
}

fn works(kernel: &'static str) {
    let debian = Debian::new(kernel);
    let program = program32(&debian.scratch);
    let expected = expected(&debian.scratch);
    let files: &[(&str, &[u8])] = &[
        ("job", JOB.as_bytes()),
        ("twenty.py", PYTHON.as_bytes()),
        ("work.sql", SQLITE.as_bytes()),
        ("hashes", HASHES.as_bytes()),
        ("c.c", C.as_bytes()),
        ("program32", &program),
    ];
    // In virtual time: on a busy host the engine is slower than systemd's patience.
    let vm = debian.with_job(files, true).args("--seed 1").start();
    vm.wait_for("doppel login:", BOOT);
    let prompt = vm.elapsed();
    let ended = vm.end(3 * BOOT);
    debian.check(&ended);
    let output = ended.output_of("job");
    for wanted in &expected {
        assert!(output.lines().any(|line| line == wanted), "no {wanted:?} in {output}");
    }
    // Not the host's python: what that prints may differ by version.
    let python = output.lines().find(|line| line.starts_with("python "));
    assert!(python.is_some_and(|line| line.len() == "python ".len() + 64), "{output}");
    assert!(output.lines().any(|line| line.starts_with("rows 13")), "{output}");
    let log: Vec<&str> = output.lines().filter_map(|line| line.strip_prefix("LOG ")).collect();
    assert_eq!(complaints(&log.join("\n")), [""; 0]);
    println!("{kernel}: login prompt after {prompt:.0?}, powered off after {:.0?}", ended.elapsed);
}

#[test]
#[ignore = "slow: cargo xtask test --slow"]
fn debian_works_on_6_1() {
    works("6.1");
}

#[test]
#[ignore = "slow: cargo xtask test --slow"]
fn debian_works_on_backports() {
    works("backports");
}

#[test]
#[ignore = "slow: cargo xtask test --slow"]
fn debian_boots_and_works_by_the_interpreter() {
    boots_works_and_powers_off("interp", 96);
}

/// `doppel inspect --json`.
fn inspect(debian: &Debian) -> serde_json::Value {
    let ended = Doppel::new(&debian.scratch, "inspect").args("live --json").run(SHORT);
    serde_json::from_str(&ended.expect(0).console).expect("JSON")
}

#[test]
#[ignore = "slow: cargo xtask test --slow"]
fn verbs_order_a_live_debian_about() {
    let debian = Debian::new("6.1");
    let doppel = debian.doppel("").args("--name live --seed 1 --grace 20min --net user");
    let mut vm = doppel.typed().start();
    log_in(&mut vm);
    let at = vm.console().len();
    vm.type_text("echo up-$((6 * 7))\n");
    let at = vm.wait_from(at, "up-42", BOOT);
    let verb = |verb: &str| Doppel::new(&debian.scratch, verb).args("live").run(SHORT);
    let listed = Doppel::new(&debian.scratch, "list").run(SHORT);
    let line = listed.expect(0).console.lines().nth(1).unwrap_or_default();
    assert!(line.starts_with("live ") && line.contains("running"), "{}", listed.console);
    assert_eq!(inspect(&debian)["state"], "running");
    verb("pause").expect(0);
    let still = inspect(&debian);
    assert_eq!(still["state"], "paused");
    vm.type_text("echo later-$((6 * 7))\n");
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(inspect(&debian)["branches"], still["branches"]);
    assert!(!vm.console()[at..].contains("later-42"));
    verb("resume").expect(0);
    vm.wait_from(at, "later-42", BOOT);
    // A second terminal sees what was printed last and can type.
    let mut other = Doppel::new(&debian.scratch, "console").args("live").typed().start();
    other.wait_for("later-42", SHORT);
    other.type_text("echo other-$((6 * 7))\n");
    other.wait_for("other-42", BOOT);
    let stop = Doppel::new(&debian.scratch, "stop").args("live").run(BOOT);
    stop.expect(0);
    vm.end(SHORT).expect(0);
    other.end(SHORT);
    assert_eq!(Doppel::new(&debian.scratch, "list").run(SHORT).console, "");
    debian.check_disk();
}
