# What a program in a container can see of its world, as lines `kind name = value`. Needs nothing but busybox.
exec 2>/dev/null
b=/bin/busybox
say() { printf '%s\n' "$*"; }

# The shell's own variables are not the container's: what it was started with stands here.
$b tr '\0' '\n' < /proc/$$/environ | while read -r line; do
  case $line in ROUND=*) ;; *) say "env ${line%%=*} = ${line#*=}" ;; esac
done
say "user uid = $($b id -u)"
say "user gid = $($b id -g)"
for group in $($b id -G); do say "user group $group = in"; done
say "names hostname = $($b cat /proc/sys/kernel/hostname)"
say "names domainname = $($b cat /proc/sys/kernel/domainname)"
say "names /etc/hostname = $($b cat /etc/hostname)"
$b grep -v '^#' /etc/hosts | $b tr -s ' \t' '  ' | while read -r line; do test -n "$line" && say "hosts $line = there"; done
$b grep -E '^(nameserver|search|options)' /etc/resolv.conf | while read -r line; do say "resolver $line = there"; done
say "process directory = $($b pwd)"
say "process umask = $(umask)"
say "process oom_score_adj = $($b cat /proc/self/oom_score_adj)"
say "process parent = $($b awk '/^PPid/ { print $2 }' /proc/$$/status)"
say "process pid = $$"
say "process first = $($b cat /proc/1/comm)"
say "process personality = $($b cat /proc/$$/personality 2>&1)"
# Without a pipe, of which this shell would have an end open.
$b find /proc/$$/fd -mindepth 1 -exec $b sh -c 'printf "process descriptor %s = open\n" "${1##*/}"' look {} \;
for name in CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp SigIgn SigBlk; do
  value=$($b awk -v name="$name:" '$1 == name { print $2 }' /proc/self/status)
  case $name in
    Cap*) say "capabilities $name = $value" ;;
    Seccomp | NoNewPrivs) say "filter $name = $value" ;;
    *) say "signals $name = $value" ;;
  esac
done
# Of another kind where the kernel has no AppArmor: nothing to read.
profile=$($b cat /proc/self/attr/apparmor/current) && say "filter apparmor = $profile"
$b sed 1d /proc/$$/limits | $b cut -c 1-67 | $b sed -E 's/ +([^ ]+) +([^ ]+) *$/ = \1 \2/' | while read -r line; do
  say "limits $line"
done
# Of several mounts on one place the last one is seen.
$b awk '{ last[$5] = $0 } END { for (point in last) print last[point] }' /proc/self/mountinfo | $b sed 's/ - / /' | while read -r _ _ _ root point options rest; do
  # Optional fields stand before the separator that was taken away.
  while :; do case $rest in shared:*|master:*|propagate_from:*|unbindable*) say "mounts $point propagation = ${rest%%:*}"; rest=${rest#* } ;; *) break ;; esac; done
  set -- $rest
  say "mounts $point type = $1"
  say "mounts $point options = $options"
  case $1 in
    tmpfs|devpts) say "mounts $point settings = $(say "$3" | $b sed -E 's/,(inode64|nr_inodes=[^,]*)//g')" ;;
  esac
done
$b find /dev -mindepth 1 ! -path '/dev/pts/*' ! -path '/dev/shm/*' | while read -r file; do
  kind=$($b stat -c '%F %a %u:%g %t:%T' "$file")
  if test -h "$file"; then kind="link to $($b readlink "$file")"; fi
  say "devices $file = $kind"
done
for file in net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range net/ipv4/ip_local_port_range net/ipv4/ip_forward \
  net/core/somaxconn net/ipv6/conf/all/disable_ipv6 kernel/msgmax kernel/shmmax kernel/sem fs/mqueue/msg_max; do
  test -e /proc/sys/$file && say "sysctl $file = $($b cat /proc/sys/$file | $b tr '\t' ' ')"
done
for ns in cgroup ipc mnt net pid user uts; do say "namespaces $ns = $($b readlink /proc/self/ns/$ns)"; done
while IFS=: read -r _ names path; do say "cgroup path ${names:-v2} = $path"; done < /proc/self/cgroup
for file in memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes memory/memory.soft_limit_in_bytes \
  memory/memory.swappiness memory/memory.oom_control cpu/cpu.shares cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpuset/cpuset.cpus \
  cpuset/cpuset.mems pids/pids.max blkio/blkio.weight blkio/blkio.bfq.weight \
  blkio/blkio.throttle.read_bps_device blkio/blkio.throttle.write_bps_device \
  blkio/blkio.throttle.read_iops_device blkio/blkio.throttle.write_iops_device devices/devices.list \
  memory.max memory.swap.max memory.low cpu.weight cpu.max cpuset.cpus pids.max io.max io.bfq.weight io.weight; do
  # Several controllers may be mounted as one.
  for dir in /sys/fs/cgroup /sys/fs/cgroup/cpu,cpuacct; do
    path=$dir/$file
    test "$dir" = /sys/fs/cgroup || path=$dir/${file##*/}
    test -f "$path" && $b sort "$path" | while read -r line; do say "cgroup ${file##*/} = $line"; done
  done
done
can() { what=$1; shift; if "$@" >/dev/null 2>&1; then say "can $what = yes"; else say "can $what = no"; fi; }
can 'write /' $b touch /probe-of-the-root
can 'write /tmp' $b touch /tmp/probe
can 'write /dev' $b touch /dev/probe
# Not left behind where it is the host's.
can 'write /dev/shm' $b sh -c 'touch /dev/shm/probe-$$ && rm /dev/shm/probe-$$'
can 'write /proc/sys' $b sh -c 'echo x > /proc/sys/kernel/domainname'
can 'write cgroups' $b sh -c 'for d in /sys/fs/cgroup /sys/fs/cgroup/*/; do mkdir $d/probe && exit 0; done; exit 1'
can 'read /proc/kcore' $b sh -c 'head -c 1 /proc/kcore | grep -q .'
can 'make a device' $b mknod /tmp/probe-device b 254 0
can 'open a new device' $b sh -c 'mknod /tmp/probe-char c 1 7 && dd if=/tmp/probe-char of=/dev/null bs=1 count=1'
can 'mount' $b mount -t tmpfs probe /tmp
can 'make a user namespace' $b unshare -U true
can 'change the hostname' $b hostname probed
can 'chroot' $b chroot / /bin/busybox true
can 'raw socket' $b ping -c 1 -W 1 127.0.0.1
can 'raise its priority' $b nice -n -5 true
can 'see the host' test -d /proc/2/task -a "$($b cat /proc/2/comm)" = kthreadd
can 'chown' $b chown 1 /tmp/probe
can 'listen on port 80' $b sh -c 'nc -l -p 80 -w 1 & pid=$!; sleep 0.05; kill $pid'
say "end = reached"
