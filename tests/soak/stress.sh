# stress-ng's classes of work, $EACH seconds for each stressor, with its own verification: the first
# $MOST of each class. None whose operations are few instructions that write much memory, as
# memthrash: virtual time is branches, and ten seconds of those take for ever.
ran=0
while read -r name stressors; do
    for stressor in $(echo $stressors | cut -d' ' -f"1-$MOST"); do
        log=/var/tmp/stress.log
        stress-ng --$stressor 1 --verify --timeout "${EACH}s" --metrics --temp-path /var/tmp \
            --vm-bytes 64M --malloc-bytes 256K --malloc-max 256 >$log 2>&1
        status=$?
        if [ $status -ne 0 ] || grep -E 'fail|error|unverified' $log >&2; then
            echo "STRESS $name $stressor failed with $status"
            cat $log
            exit 1
        fi
        ran=$((ran + 1))
    done
    echo "STRESS $name ok"
done <<END
cpu cpu matrix fp vecmath
vm vm
memory memcpy malloc stream qsort
context-switch switch context
fork fork vfork clone
signal signal sigsegv sigfpe sigq sigpipe sigtrap
END
echo "STRESS $ran stressors passed"
