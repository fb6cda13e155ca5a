//! A guest: a virtual machine (QEMU with software emulation) inside a [`Node`], whose disk is a block device of the node.
//!
//! It shows a volume from the side of those who use it. What the guest does with its disk passes QEMU, the node's device and all
//! below it, as on a hypervisor; the node needs about 300 MB for it (a bare node's 512 MiB are not enough: take 1024).

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

pub use self::image::GuestImage;
use crate::node::Node;
use crate::process::tail;
use crate::sandbox::plain_path;

mod cpio;
mod image;

/// What the kernel prints in `quiet` is only what went wrong. No measure against attacks from inside, no self-tests, no clock that
/// must be calibrated against a busy machine: all of that only costs time here. `panic` and `reboot` end QEMU.
const KERNEL_OPTIONS: &str = "console=ttyS0 quiet panic=-1 reboot=t mitigations=off nokaslr tsc=reliable no_timer_check \
                              cryptomgr.notests audit=0 selinux=0 apparmor=0 random.trust_cpu=on";
/// As in `assets/guest-init.sh`.
const END: &str = "\n@cryptvol-guest-ended ";

/// Runs guests; each lives for one script.
#[derive(Debug)]
pub struct Guest;

impl Guest {
    /// Makes kernel and initramfs, once, in the cache folder. Not inside a sandbox, which has no network; there use
    /// [`Guest::locate`].
    pub fn prepare() -> Result<GuestImage> {
        GuestImage::prepare()
    }

    /// Finds kernel and initramfs; fails with the command that makes them.
    pub fn locate() -> Result<GuestImage> {
        GuestImage::locate()
    }

    /// Boots a guest on `node` with the node's block device `disk` (a link to one will do) as `/dev/vda`, runs `script` in it with
    /// busybox's shell, and returns what that printed (both streams) once the guest is off.
    ///
    /// The disk is opened past the node's page cache, and a flush in the guest is a flush on the node. It is synced before the guest
    /// goes off. Fails when the disk cannot be opened, the guest does not boot, the script ends with another code than 0, or all of
    /// it takes longer than `limit`; the error has what was printed and the end of the guest's console.
    pub async fn run(
        node: &Node,
        image: &GuestImage,
        disk: &str,
        script: &str,
        limit: Duration,
    ) -> Result<String> {
        ensure!(
            disk.starts_with('/') && !disk.contains(','),
            "{disk}: a guest's disk is an absolute path without commas"
        );
        // The node sees it as /cv/guest-…; the script goes in with the initramfs, so it can be anything.
        let shared = tempfile::Builder::new()
            .prefix("guest-")
            .tempdir_in(node.shared_dir())?;
        let mut extra = cpio::Cpio::default();
        extra.file("script", 0o755, script.as_bytes());
        let mut initramfs = fs::read(&image.initramfs)?;
        initramfs.extend(extra.finish());
        fs::write(shared.path().join("initramfs"), initramfs)?;
        let name = shared.path().file_name().unwrap_or_default();
        let inside = format!("/cv/{}", name.to_string_lossy());

        let command = qemu(plain_path(&image.kernel)?, &inside, disk);
        let mut argv = vec!["bash", "-c", RUN, &inside];
        let seconds = limit.as_secs().max(1).to_string();
        argv.push(&seconds);
        argv.extend(command.iter().map(String::as_str));
        // `timeout` on the node ends QEMU; the rest is for the sync.
        let output = node
            .exec_with(&argv, &[], b"", limit + Duration::from_secs(30))
            .await
            .with_context(|| last_words(shared.path()))
            .context("run QEMU (Debian package qemu-system-x86)")?;
        let answer = fs::read(shared.path().join("answer")).unwrap_or_default();
        match ended(&String::from_utf8_lossy(&answer)) {
            Some((printed, 0)) => Ok(printed),
            Some((printed, code)) => Err(anyhow::anyhow!(
                "the script in the guest on {} ended with {code} and printed:\n{printed}\n{}",
                node.name(),
                last_words(shared.path())
            )),
            None => Err(anyhow::anyhow!(
                "the guest on {} went off before its script ended: QEMU ended with {}{}\n{}{}",
                node.name(),
                output.code,
                if output.code == 124 {
                    format!(", stopped after {limit:?}")
                } else {
                    String::new()
                },
                output.stderr,
                last_words(shared.path())
            )),
        }
    }
}

/// With the folder as `$0` and seconds as `$1`. The harness reads the folder's files, so they must not stay in the node's cache.
const RUN: &str =
    r#"limit=$1; shift; timeout -k 5 "$limit" "$@" </dev/null; code=$?; sync -f "$0"; exit $code"#;

fn qemu(kernel: &str, shared: &str, disk: &str) -> Vec<String> {
    let words = format!(
        "qemu-system-x86_64 -M pc,i8042=off,hpet=off -accel tcg,tb-size=32 -m 128 -smp 1 -nodefaults -no-user-config -display none \
         -net none -no-reboot -kernel {kernel} -initrd {shared}/initramfs -serial file:{shared}/console -serial file:{shared}/answer \
         -device virtio-blk-pci,drive=disk"
    );
    let mut words: Vec<String> = words.split_whitespace().map(Into::into).collect();
    words.extend([
        "-append".into(),
        KERNEL_OPTIONS.into(),
        "-drive".into(),
        format!("file={disk},if=none,id=disk,format=raw,cache=none,aio=threads"),
    ]);
    words
}

/// What the script printed, and its exit code; `None` when the marker is not the last line.
fn ended(answer: &str) -> Option<(String, i32)> {
    let (printed, rest) = answer.rsplit_once(END)?;
    let code = rest.strip_suffix("@\n")?.parse().ok()?;
    Some((printed.into(), code))
}

fn last_words(shared: &Path) -> String {
    let part = |name: &str| tail(&shared.join(name), 25);
    format!(
        "end of the guest's console:\n{}\nend of what its script printed:\n{}",
        part("console"),
        part("answer")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_line_ends_a_script() {
        assert_eq!(
            ended("a\nb\n@cryptvol-guest-ended 0@\n"),
            Some(("a\nb".into(), 0))
        );
        assert_eq!(
            ended("\n@cryptvol-guest-ended 3@\n"),
            Some((String::new(), 3))
        );
        let twice = "x\n@cryptvol-guest-ended 0@\n\n@cryptvol-guest-ended 1@\n";
        assert_eq!(
            ended(twice),
            Some(("x\n@cryptvol-guest-ended 0@\n".into(), 1))
        );
        assert_eq!(ended("half an answ"), None);
        assert_eq!(ended("x\n@cryptvol-guest-ended 0@\nmore"), None);
        assert_eq!(ended("x\n@cryptvol-guest-ended "), None);
    }
}
