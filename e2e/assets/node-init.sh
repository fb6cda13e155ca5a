#!/bin/bash
# Process 1 of a node. Below lies the machine's own file system, read-only (hostfs); everything that a node writes goes into an
# overlay in memory and is gone at the next boot, apart from /cv, the folder that the node shares with the harness.
# $CV_DIR comes on the kernel's command line; what to be stands in $CV_DIR/node.env.
export PATH=/usr/sbin:/sbin:/usr/bin:/bin HOME=/root LANG=C.UTF-8
. "$CV_DIR/node.env"
mods=/usr/lib/uml/modules/$(uname -r)
note() { echo "cv: $(cut -d' ' -f1 /proc/uptime) s: $*"; }

if [ -z "${CV_ROOT:-}" ]; then
  # The scratch memory lies over /sys, which is the one folder that nobody keeps a checkout or a cache in.
  mount -t proc proc /proc
  mount -t tmpfs -o "size=$CV_DISK" scratch /sys
  insmod "$mods/kernel/fs/overlayfs/overlay.ko"
  mkdir /sys/up /sys/wk /sys/root
  mount -t overlay root -o lowerdir=/,upperdir=/sys/up,workdir=/sys/wk /sys/root
  cd /sys/root && mkdir -p .old && pivot_root . .old && CV_ROOT=overlay exec chroot . /bin/bash "$CV_DIR/init.sh"
  echo "cv: no overlay"; halt -f
fi

mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/shm /dev/pts; mount -t tmpfs shm /dev/shm; mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=755 run /run; mkdir -p /run/lock/iscsi /run/udev
mkdir -p /cv; mount -t hostfs -o "$CV_DIR/cv" none /cv || { note "cannot mount $CV_DIR/cv"; halt -f; }
mount --make-rshared /
hostname "$CV_NAME"
mkdir -p /lib/modules; ln -sfn "$mods" "/lib/modules/$(uname -r)"
ip link set lo up; ip addr add "$CV_IP/24" dev vec0; ip link set vec0 up; ip route add default via "$CV_GATEWAY"

# In this order: without cbc encrypted_keys fails, without that dm_crypt; without sd_mod a login gives no disk.
load="cbc sha256_generic hmac loop sd_mod sg xts algif_skcipher"
[ "$CV_DM" = 1 ] && load="$load dm_mod encrypted_keys dm_crypt dm_flakey dm_delay dm_multipath dm_service_time"
[ "$CV_ISCSI" = 1 ] && load="$load iscsi_tcp"
mkdir -p /etc/modprobe.d                       # what a node is to lack must not come by itself either
[ "$CV_DM" = 1 ] || echo "install dm_mod /bin/false" >>/etc/modprobe.d/cryptvol-e2e.conf
[ "$CV_ISCSI" = 1 ] || printf 'install iscsi_tcp /bin/false\ninstall scsi_transport_iscsi /bin/false\n' >>/etc/modprobe.d/cryptvol-e2e.conf
if [ -n "$CV_MODULES" ]; then                 # SCSI with handlers, in place of the kernel's own; what needs them finds them loaded
  modprobe scsi_common && insmod "$CV_MODULES/scsi_mod.ko" || note "a module does not fit the kernel"
  [ "$CV_DM" = 1 ] && modprobe dm_mod && insmod "$CV_MODULES/dm-multipath.ko"
  echo "install scsi_dh_alua insmod $CV_MODULES/scsi_dh_alua.ko" >>/etc/modprobe.d/cryptvol-e2e.conf
fi
modprobe -a $load || note "a module is missing"

mkdir -p /etc/iscsi /var/lib/iscsi
mount -t tmpfs iscsi /etc/iscsi; mount -t tmpfs iscsi /var/lib/iscsi
echo "InitiatorName=$CV_INITIATOR" >/etc/iscsi/initiatorname.iscsi
printf 'node.startup = manual\nnode.session.scan = manual\n' >/etc/iscsi/iscsid.conf
if [ "$CV_UDEV" = 1 ]; then
  udevd=/usr/lib/systemd/systemd-udevd; [ -x $udevd ] || udevd=/lib/systemd/systemd-udevd
  $udevd --daemon; udevadm trigger --action=add --type=subsystems
  udevadm trigger --action=add --type=devices --subsystem-match=block
  [ "$CV_DM" = 1 ] && udevadm trigger --action=add --type=devices --subsystem-match=misc
fi
[ "$CV_ISCSI" = 1 ] && { iscsid -f >>/cv/logs/iscsid.log 2>&1 & }
"$CV_E2E" node-exec-server --listen "$CV_IP:$CV_EXEC_PORT" &
[ -z "$CV_KUBELET" ] && [ "$CV_UDEV" = 1 ] && udevadm settle -t 20
if [ "$CV_ISCSI" = 1 ]; then for _ in $(seq 100); do grep -q ISCSIADM_ABSTRACT_NAMESPACE /proc/net/unix && break; sleep .05; done; fi
note "kernel, udev and iscsid are up"
[ -z "$CV_KUBELET" ] && echo "$CV_BOOT" >/cv/ready

if [ -n "$CV_KUBELET" ]; then
  export PATH=$CV_BIN:$PATH GOGC=400           # one slow CPU, enough memory
  modprobe -a veth bridge br_netfilter iptable_nat iptable_mangle iptable_filter ip6table_nat ip6table_mangle ip6table_filter xt_nat \
    xt_tcpudp xt_comment xt_conntrack xt_statistic xt_recent xt_mark xt_addrtype xt_MASQUERADE ipt_REJECT || note "a module is missing"
  for t in iptables ip6tables; do for s in '' -save -restore; do ln -sf "$t-legacy$s" "/usr/sbin/$t$s"; done; done  # this kernel's nftables has no IPv4 family
  mount -t cgroup2 cg /sys/fs/cgroup; echo +cpu +memory +pids +io >/sys/fs/cgroup/cgroup.subtree_control
  { grep . /proc/cpuinfo; printf 'cpu MHz\t\t: 2000.000\n'; } >/run/cpuinfo; mount --bind /run/cpuinfo /proc/cpuinfo  # kubelet refuses a CPU without a clock
  sysctl -qw net.ipv4.ip_forward=1
  for d in /var/lib/containerd /var/lib/kubelet /var/log; do mkdir -p $d; mount -t tmpfs -o "size=$CV_DISK" t $d; done
  mount --make-rshared /var/lib/kubelet
  mkdir -p /opt/cni/bin /etc/cni; mount -t tmpfs t /etc/cni; mkdir /etc/cni/net.d
  for p in bridge host-local loopback portmap; do ln -sfn "$CV_BIN/$p" /opt/cni/bin/$p; done
  cat >/etc/cni/net.d/10-pods.conflist <<EOF
{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,"hairpinMode":true,"ipam":{"type":"host-local","ranges":[[{"subnet":"$CV_PODS"}]],"routes":[{"dst":"0.0.0.0/0"}]}},{"type":"portmap","capabilities":{"portMappings":true}}]}
EOF
  printf 'version = 3\n' >/run/containerd.toml  # not the machine's own, if it has one
  containerd -c /run/containerd.toml --log-level warn >>/cv/logs/containerd.log 2>&1 &
  for _ in $(seq 300); do [ -S /run/containerd/containerd.sock ] && break; sleep .2; done   # ctr waits for the answer itself
  mkdir -p /cv-images; mount -t hostfs -o "$CV_IMAGES" none /cv-images
  for i in /cv-images/*.tar; do ctr --connect-timeout 60s -n k8s.io images import --local "$i" >/dev/null || note "cannot import $i"; done
  note "containerd and images are up"
  cat >/var/lib/kubelet/config.yaml <<EOF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $CV_KUBELET/ca.crt}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
enforceNodeAllocatable: []
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
failSwapOn: false
evictionHard: {memory.available: 1Mi, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%}
imageGCHighThresholdPercent: 100
clusterDNS: [$CV_DNS]
clusterDomain: cluster.local
EOF
  echo "$CV_BOOT" >/cv/ready
  # One CPU: first the node, then its proxy; started together both take twice as long.
  { until kubectl --kubeconfig "$CV_KUBELET/$CV_NAME.kubeconfig" get node "$CV_NAME" 2>/dev/null | grep -q " Ready"; do sleep 2; done
    while :; do kube-proxy --kubeconfig "$CV_KUBELET/kube-proxy.kubeconfig" --hostname-override "$CV_NAME" --proxy-mode iptables \
      --cluster-cidr "$CV_POD_CIDR" --conntrack-max-per-core 0 >>/cv/logs/kube-proxy.log 2>&1; sleep 2; done; } &
  while :; do
    kubelet --config /var/lib/kubelet/config.yaml --kubeconfig "$CV_KUBELET/$CV_NAME.kubeconfig" --hostname-override "$CV_NAME" \
      --node-ip "$CV_IP" >>/cv/logs/kubelet.log 2>&1
    note "kubelet ended with $?"; sleep 2
  done &
fi
while :; do wait; sleep 3600 & done            # process 1 must not end, and reaps what others leave
