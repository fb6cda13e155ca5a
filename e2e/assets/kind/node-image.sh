#!/bin/bash
# A node image for kind from the parts: what kind's own build does with a Dockerfile and downloads, done with Debian packages and
# the programs that are there already. Needs root, mmdebstrap, jq. The harness calls `root`, puts the images that a node must
# have into $CV_WORK/images, then calls `pack`, which leaves $CV_WORK/node.tar.
#   CV_BIN   folder with the programs      CV_KIND  sources of the kind module      CV_WORK  scratch folder
set -euo pipefail
root=$CV_WORK/root

make_root() {
  mmdebstrap --mode=root --variant=minbase --quiet \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --include=systemd,runc,conntrack,iptables,nftables,iproute2,ethtool,mount,kmod,e2fsprogs,open-iscsi,udev,ca-certificates,curl,jq,procps \
    bookworm "$root"
  rm -rf "$root"/etc/apt "$root"/var/lib/apt "$root"/var/cache/* "$root"/usr/share/{doc,man,locale} "$root"/boot
  cp -r --no-preserve=mode,ownership "$CV_KIND"/images/base/files/{etc,kind,usr} "$root"
  chmod 755 "$root"/usr/local/bin/* "$root"/kind/bin/*

  # Only these start at boot; kind leaves out all others, too.
  local units=$root/lib/systemd/system
  rm -rf "$units"/{multi-user,local-fs,basic}.target.wants "$root"/etc/systemd/system/*.wants
  rm -f "$units"/sysinit.target.wants/{systemd-tmpfiles-setup.service,*udev*,*hwdb*} "$units"/sockets.target.wants/*{udev,initctl}*
  systemctl --quiet --root="$root" enable kubelet containerd undo-mount-hacks
  systemctl --quiet --root="$root" mask systemd-binfmt.service iscsid.socket
  echo ReadKMsg=no >>"$root/etc/systemd/journald.conf"
  ln -sf /usr/lib/systemd/systemd "$root/sbin/init"

  # The kernel is the machine's. What Debian sets for it at boot does not belong to a container; and what systemd and kubelet set
  # (the highest number of files, the reaction to a kernel panic, overcommitment of memory) they write into files of their own:
  # this runs first in a node.
  rm -f "$root"/usr/lib/sysctl.d/* "$root"/lib/sysctl.d/* "$root"/etc/sysctl.d/*protect-links* "$root"/etc/sysctl.d/99-sysctl.conf
  cat >"$root/kind/bin/keep-settings.sh" <<'EOF'
#!/bin/sh
set -eu
mkdir -p /run/kept-settings
for name in fs/file-max fs/nr_open vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys \
  kernel/keys/root_maxbytes; do
  [ -e "/proc/sys/$name" ] || continue
  copy=/run/kept-settings/$(echo $name | tr / .)
  cat "/proc/sys/$name" >"$copy"
  mount --bind "$copy" "/proc/sys/$name"
done
exec "$@"
EOF
  chmod 755 "$root/kind/bin/keep-settings.sh"

  install -m755 "$CV_BIN"/{containerd,containerd-shim-runc-v2,ctr} "$root/usr/local/bin/"
  install -m755 "$CV_BIN"/{kubelet,kubectl,kubeadm} "$root/usr/bin/"
  mkdir -p "$root"/opt/cni/bin "$root"/kind/manifests "$root"/etc/kubernetes/manifests
  install -m755 "$CV_BIN"/{bridge,host-local,loopback,portmap} "$root/opt/cni/bin/"
  "$CV_BIN/kubelet" --version | sed 's/.* //' | tr -d '\n' >"$root/kind/version"
  "$CV_BIN/ctr" oci spec | jq '.hooks.createContainer += [{path: "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' \
    >"$root/etc/containerd/cri-base.json"

  # In place of kindnet: containerd fills in the node's range of pod addresses as soon as it knows it.
  cat >"$root/kind/cni.conflist" <<'EOF'
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam", "ranges": [[{"subnet": "{{.PodCIDR}}"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
EOF
  printf '[plugins."io.containerd.grpc.v1.cri".cni]\n  conf_template = "/kind/cni.conflist"\n' >>"$root/etc/containerd/config.toml"
}

# A containerd of its own puts the images into the node's store, unpacked only when a node starts.
load_images() {
  local scratch=$CV_WORK/containerd
  rm -rf "$scratch" "$root/var/lib/containerd"
  mkdir -p "$scratch"
  cat >"$scratch/config.toml" <<EOF
version = 3
root = "$root/var/lib/containerd"
state = "$scratch/state"
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]
[grpc]
address = "$scratch/sock"
[ttrpc]
address = "$scratch/ttrpc"
EOF
  "$CV_BIN/containerd" -c "$scratch/config.toml" >"$scratch/log" 2>&1 &
  local pid=$!
  trap "kill $pid 2>/dev/null || true" EXIT
  local ctr=("$CV_BIN/ctr" -a "$scratch/sock" -n k8s.io) archive
  for _ in $(seq 100); do "${ctr[@]}" version >/dev/null 2>&1 && break; sleep .2; done
  for archive in "$CV_WORK"/images/*.tar; do
    "${ctr[@]}" images import --local --label=io.cri-containerd.pinned=pinned --no-unpack "$archive" || { tail "$scratch/log"; exit 1; }
  done
  kill "$pid"; wait "$pid" || true
  trap - EXIT
}

case $1 in
  root) make_root ;;
  pack) load_images; tar -C "$root" --numeric-owner --xattrs -cf "$CV_WORK/node.tar" . ;;
esac
