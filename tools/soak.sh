# soak.sh SERVER: what the Guest does in `make soak`. Strands which run side by side until somebody types "stop".
# Each says what it did in one write, so that lines of different strands never mix.
server=$1
running() { [ ! -e /tmp/stop ]; }
sum() { md5sum | cut -c 1-32; }

line() { # bursts, and pauses in which the console's queue runs dry
    n=0
    while running; do
        n=$((n + 1))
        printf 'line %d %0100d\n' $n $n
        [ $((n % 50)) = 0 ] && usleep 100000
    done
}

disk() { # four files which change in turn, read back from the disk and not from the cache
    n=0
    while running; do
        n=$((n + 1))
        file=soak.$((n % 4))
        head -c $(((n * 37 % 16 + 1) * 65536 + n)) /dev/urandom >/tmp/disk
        cp /tmp/disk /disk/$file
        sync
        echo 3 >/proc/sys/vm/drop_caches
        printf 'disk %d %s %s %s\n' $n $file $(sum </tmp/disk) $(sum </disk/$file)
        usleep 20000
    done
}

entropy() {
    n=0
    while running; do
        n=$((n + 1))
        printf 'rng %d %s\n' $n $(head -c 256 /dev/hwrng | od -A n -t x1 | tr -d ' \n')
        usleep 20000
    done
}

up() { # the Host answers with its own sum of what we sent
    n=0
    while running; do
        n=$((n + 1))
        head -c $(((n * 29 % 16 + 1) * 65536 + n)) /dev/urandom >/tmp/up
        printf 'up %d %s %s\n' $n $(sum </tmp/up) $(nc $server 5001 </tmp/up)
        usleep 20000
    done
}

down() {
    n=0
    while running; do
        n=$((n + 1))
        printf 'down %d %s\n' $n $(nc $server 5002 </dev/null | sum)
        usleep 20000
    done
}

pings() {
    n=0
    while running; do
        n=$((n + 1))
        printf 'ping %d %s\n' $n "$(ping -A -q -c 50 $server | tr '\n' ' ')"
        usleep 20000
    done
}

dmesg -n 1
stty -echo
strands="line disk entropy"
[ -n "$server" ] && strands="$strands up down pings"
echo begun
for strand in $strands; do
    $strand &
done
while read word number; do
    [ "$word" = stop ] && break
    echo "key $number"
done
: >/tmp/stop
wait
set -- $(cat /sys/block/vda/stat)
echo "sectors of the disk: $3 read, $7 written"
grep virtio /proc/interrupts | while read words; do
    echo interrupts $words
done
grep ^Icmp: /proc/net/snmp | while read words; do
    echo snmp $words
done
echo ended
