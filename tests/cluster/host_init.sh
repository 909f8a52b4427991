# The first process of a host: gives it a disk, an address and sshd, and lasts as long as the host does.
# Asks for NAME, ADDRESS, GATEWAY, DISK (folder), KEYS (folder) and VISIBLE (paths of this machine, one a line).
set -e
hostname "$NAME"
mount --make-rprivate /
mapfile -t visible < <(printf '%s' "$VISIBLE")
for number in "${!visible[@]}"; do  # aside, while folders above them are replaced
    mkdir -p "$DISK/kept/$number"
    mount --bind "${visible[number]}" "$DISK/kept/$number"
done
mount --rbind "$DISK/root" /root
mount --rbind "$DISK/tmp" /tmp
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
for number in "${!visible[@]}"; do
    mkdir -p "${visible[number]}"
    mount --bind "$DISK/kept/$number" "${visible[number]}"
done
printf '127.0.0.1 localhost\n%s %s\n' "$ADDRESS" "$NAME" > /run/hosts
mount --bind /run/hosts /etc/hosts
ip link set lo up
until ip link show eth0 > /dev/null 2>&1; do sleep 0.05; done
ip address add "$ADDRESS/24" dev eth0
ip link set eth0 up
ip route add default via "$GATEWAY"
cd /root
/usr/sbin/sshd -D -e -f /dev/null -h "$KEYS/host" -o PidFile=none -o PermitRootLogin=yes -o UsePAM=no \
    -o StrictModes=no -o PasswordAuthentication=no -o MaxStartups=50 -o MaxSessions=50 &
while true; do wait -n || sleep 1; done  # orphans are this process's to bury
