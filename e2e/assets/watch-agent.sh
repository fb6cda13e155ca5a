# Looks at the agent on a node until COUNT links are below DIR or SECONDS_AT_MOST have passed: at the links every fifth of a second, and, where
# MEMORY is 1, at the memory each second, which takes the node's one CPU from the agent. It starts no process meanwhile. Environment: AGENT (its pid),
# DIR, COUNT, SECONDS_AT_MOST, MEMORY. It prints
#   TOOK seconds from the start of the agent's process until the links were there
#   PSS KiB   the most that it and its workers held at one of the looks (or at the end), shared pages divided among those who share them
#   HWM KiB   the sum of what each of them held at its highest, shared pages in each
#   CPU agent, workers, udev, node   since this watch began (the agent since its start), in milliseconds; its own is in the node's
set -u
shopt -s nullglob
mkfifo -m 600 "/run/watch-$$"; exec 9<>"/run/watch-$$"
read -r -a stat <"/proc/$AGENT/stat" || exit 1
started=${stat[21]}                     # in ticks of 10 ms since the boot (proc_pid_stat(5)); the name has no space
declare -A hwm
most=0
look() {
  local sum=0 pid line parent stat
  for pid in "$AGENT" /proc/[0-9]*; do
    pid=${pid##*/}
    { read -r stat <"/proc/$pid/stat"; } 2>/dev/null || continue
    stat=${stat##*) }; parent=${stat#* }; parent=${parent%% *}
    [ "$pid" = "$AGENT" ] && [ -z "${seen:-}" ] && seen=1 || [ "$parent" = "$AGENT" ] || continue
    while read -r name value _; do [ "$name" = Pss: ] && sum=$((sum + value)) && break; done 2>/dev/null <"/proc/$pid/smaps_rollup"
    while read -r name value _; do [ "$name" = VmHWM: ] && hwm[$pid]=$value && break; done 2>/dev/null <"/proc/$pid/status"
  done
  unset seen
  [ $sum -gt $most ] && most=$sum
}
# Time on the CPU of a process and of those children of it that are gone, and of those that are there: TICKS and CHILDREN, 10 ms each.
cpu() {
  local pid stat
  TICKS=0 CHILDREN=0
  for pid in /proc/[0-9]*; do
    { read -r stat <"$pid/stat"; } 2>/dev/null || continue
    stat=(${stat##*) })                  # from the state on, which is the third of proc_pid_stat(5)
    [ "${pid##*/}" = "$1" ] && TICKS=$((TICKS + stat[11] + stat[12])) CHILDREN=$((CHILDREN + stat[13] + stat[14]))
    [ "${stat[1]}" = "$1" ] && CHILDREN=$((CHILDREN + stat[11] + stat[12] + stat[13] + stat[14]))
  done
}
busy() { read -r -a stat </proc/stat; BUSY=$((stat[1] + stat[2] + stat[3] + stat[6] + stat[7] + stat[8])); }
udevd=
for pid in /proc/[0-9]*; do
  { read -r name <"$pid/comm" && read -r stat <"$pid/stat"; } 2>/dev/null || continue
  stat=(${stat##*) })
  [ "$name ${stat[1]}" = "systemd-udevd 1" ] && udevd=${pid##*/}
done
cpu "$udevd"; udev=$((TICKS + CHILDREN)); busy; node=$BUSY
there() { local links=("$DIR"/*); [ ${#links[@]} -ge "$COUNT" ]; }
end=$((SECONDS + SECONDS_AT_MOST))
until there; do
  [ $SECONDS -lt $end ] || break
  [ "$MEMORY" != 1 ] || [ $SECONDS = "${looked:-}" ] || look
  looked=$SECONDS
  read -rt 0.2 <&9 || :
done
read -r up _ </proc/uptime
cpu "$AGENT"; agent=$TICKS workers=$CHILDREN; cpu "$udevd"; busy
echo "CPU ${agent}0 ${workers}0 $((TICKS + CHILDREN - udev))0 $((BUSY - node))0"
there && echo "TOOK $(((10#${up/./} - started) / 100)).$(((10#${up/./} - started) % 100 / 10))"
look
total=0
for value in "${hwm[@]}"; do total=$((total + value)); done
echo "PSS $most"
echo "HWM $total"
