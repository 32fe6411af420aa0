# Generates, runs and discards $MIB mebibytes of code.
set -e
gcc -O2 -o /var/tmp/churn /mnt/churn.c
/var/tmp/churn "$MIB"
