# The least that a script does: iscsiadm, cryptsetup, ln, and back; prints what each step took, in milliseconds. Reads and waits are
# the shell's own, so that no process but the three is started.
# Environment: PORTAL IQN LUN KEY_FILE ROUNDS; with FORMAT=1 it makes the header first, as the other sides have it.
set -euo pipefail
NAME=tools LINK=/run/tools-link
mkfifo -m 600 "/run/tools-$$"; exec 9<>"/run/tools-$$"
step() { local now=${EPOCHREALTIME/./}; printf 'STEP tools_%s %d.%03d\n' "$1" $(((now - $2) / 1000)) $(((now - $2) % 1000)); }
disk() {  # the disk of the LUN in the one session to the target
  local s d
  for s in /sys/class/iscsi_session/session*; do
    [ "$(<"$s/targetname")" = "$IQN" ] || continue
    for d in "$s"/device/target*/*:*:*:"$LUN"/block/*; do [ -b "/dev/${d##*/}" ] && DISK=/dev/${d##*/} && return; done
  done
  return 1
}
connect() {
  iscsiadm -m node -T "$IQN" -p "$PORTAL" --login >&2
  for h in /sys/class/iscsi_host/host*; do echo "0 0 $LUN" >"/sys/class/scsi_host/${h##*/}/scan"; done
  until disk; do read -rt 0.005 <&9 || :; done
}
disconnect() { iscsiadm -m node -T "$IQN" -p "$PORTAL" --logout >&2; }

quiet() { udevadm settle -t 60; }  # as the other sides begin; not counted

iscsiadm -m node -T "$IQN" -p "$PORTAL" -o new >&2
if [ "${FORMAT:-}" = 1 ]; then
  connect
  cryptsetup luksFormat --batch-mode --type luks2 --cipher aes-xts-plain64 --key-size 512 --sector-size 512 --pbkdf pbkdf2 \
    --pbkdf-force-iterations 1000 --key-file "$KEY_FILE" "$DISK"
  disconnect
fi
for ((round = 0; round < ROUNDS; round++)); do
  quiet; start=${EPOCHREALTIME/./}; connect; step connect "$start"
  at=${EPOCHREALTIME/./}; cryptsetup open --type luks2 --key-file "$KEY_FILE" "$DISK" $NAME; step open "$at"
  at=${EPOCHREALTIME/./}; ln -sfn "/dev/mapper/$NAME" $LINK; step link "$at"
  step attach "$start"
  read -rN 1 <$LINK || :
  at=${EPOCHREALTIME/./}; cryptsetup luksSuspend $NAME; step suspend "$at"
  cryptsetup luksResume --key-file "$KEY_FILE" $NAME
  rm -f $LINK   # a fourth tool: not counted
  quiet; start=${EPOCHREALTIME/./}
  cryptsetup close $NAME; step close "$start"
  at=${EPOCHREALTIME/./}; disconnect; step disconnect "$at"
  step detach "$start"
done
