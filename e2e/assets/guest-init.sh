#!/bin/sh
# Process 1 of a guest. /script comes with the boot; what it prints goes to the second serial port, byte for byte, so that no
# message of the kernel (first port) gets between. The last line there is the marker with the script's exit code.
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
# Twice, because which of virtio and virtio_ring needs the other changed between kernels; one that is built in is not here.
for pass in 1 2; do
  for m in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
    [ -d "/sys/module/$m" ] || [ ! -e "/lib/$m.ko" ] || insmod "/lib/$m.ko" 2>/dev/null
  done
done
n=0; while [ ! -b /dev/vda ] && [ $n -lt 600 ]; do sleep 0.1; n=$((n + 1)); done
stty raw -echo </dev/ttyS1
if [ -b /dev/vda ]; then
  echo "guest: script begins after $(cut -d' ' -f1 /proc/uptime) s of its own clock"
  sh /script >/dev/ttyS1 2>&1 </dev/null; code=$?
else
  echo "guest: there is no /dev/vda" | tee /dev/ttyS1; code=97
fi
sync
printf '\n@cryptvol-guest-ended %s@\n' "$code" >/dev/ttyS1
reboot -f                                      # QEMU ends, because of -no-reboot
