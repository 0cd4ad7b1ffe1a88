# Makes a root directory out of the one on disk and memory on top of it, and all that a machine has beside its files; then
# becomes its first process. Run in new mount, PID, IPC and cgroup namespaces, with what is to be bound as arguments: a path
# outside, its path inside, and so on.
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir /run/top /run/work /run/all
mount -t overlay overlay -o "lowerdir=$IMAGE,upperdir=/run/top,workdir=/run/work" /run/all
cd /run/all

mount -t proc proc proc
# The kernel is shared with others: only the settings of its networks are this machine's own.
mount --bind proc/sys proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,ro proc/sys
[ ! -e proc/sysrq-trigger ] || mount --bind /dev/null proc/sysrq-trigger
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=0755 tmpfs run
mount -t tmpfs -o mode=0755 tmpfs dev
mkdir dev/pts dev/net dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
for node in null zero full random urandom tty net/tun; do
    touch "dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done

printf '%s\n' "$NAME" >etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 %s\n::1 localhost ip6-localhost\n' "$NAME" >etc/hosts
# Empty, and not missing: an identity of its own, and no first boot, which would switch on every unit there is.
: >etc/machine-id
while [ $# -gt 0 ]; do
    if [ -d "$1" ]; then
        mkdir -p ".$2"
    else
        mkdir -p "$(dirname ".$2")"
        touch ".$2"
    fi
    mount --bind "$1" ".$2"
    shift 2
done
eval "$PREPARE"

mkdir -p run/before
pivot_root . run/before
cd /
# shellcheck disable=SC2086 # words of a command line
exec env -i container=lxc PATH=/usr/sbin:/usr/bin /bin/sh -c \
    'umount -l /run/before && rmdir /run/before && exec "$@"' sh $FIRST </dev/null
