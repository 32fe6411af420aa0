# Builds a program from its source and runs its tests.
set -e
mkdir -p /var/tmp/build
cd /var/tmp/build
tar --strip-components=1 -xzf /mnt/source.tar.gz
echo "GCC lines $(find . -name '*.[ch]' | xargs cat | wc -l)"
./configure --quiet --enable-jit --disable-shared >configure.log 2>&1
if [ "$WHOLE" = 1 ]; then
    make >make.log 2>&1
    make check >check.log 2>&1 || { cat check.log; exit 1; }
    grep -E '^# [A-Z]+:' check.log | sed 's/^/GCC /'
else
    make libpcre2-8.la >make.log 2>&1
    make pcre2_jit_test >>make.log 2>&1
    ./pcre2_jit_test >jit.log || { cat jit.log; exit 1; }
    grep 'successfully passed' jit.log | sed 's/^/GCC /'
fi
