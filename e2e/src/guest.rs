//! A guest: a virtual machine (QEMU with software emulation) inside a [`Node`], whose disks are block devices of the node.
//!
//! It shows a volume from the side of those who use it. What the guest does with its disk passes QEMU, the node's device and all
//! below it, as on a hypervisor; the node needs about 300 MB for it (a bare node's 512 MiB are not enough: take 1024).

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

pub use self::firmware::Booted;
pub use self::image::GuestImage;
use crate::exec::Output;
use crate::node::Node;
use crate::process::tail;
use crate::sandbox::plain_path;

mod cpio;
mod firmware;
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

    /// Boots a guest on `node` with the node's block devices `disks` (links to them will do) as `/dev/vda`, `/dev/vdb` and so on, runs
    /// `script` in it with busybox's shell, and returns what that printed (both streams) once the guest is off. Its kernel comes from
    /// `image`; see [`Guest::boot_from`] for one that comes from a disk.
    ///
    /// The disks are opened past the node's page cache, a flush in the guest is a flush on the node, and a discard is a discard. They are
    /// synced before the guest goes off. Fails when a disk cannot be opened, the guest does not boot, the script ends with another code than
    /// 0, or all of it takes longer than `limit`; the error has what was printed and the end of the guest's console.
    pub async fn run(
        node: &Node,
        image: &GuestImage,
        disks: &[&str],
        script: &str,
        limit: Duration,
    ) -> Result<String> {
        // The script goes in with the initramfs, so it can be anything.
        let shared = Self::shared(node)?;
        let mut extra = cpio::Cpio::default();
        extra.file("script", 0o755, script.as_bytes());
        let mut initramfs = fs::read(&image.initramfs)?;
        initramfs.extend(extra.finish());
        fs::write(shared.path().join("initramfs"), initramfs)?;

        let command = qemu(plain_path(&image.kernel)?, &shared.inside, disks);
        let output = run_qemu(node, &shared, &command, limit).await?;
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
                stopped(output.code, limit),
                output.stderr,
                last_words(shared.path())
            )),
        }
    }

    /// A folder for one guest.
    fn shared(node: &Node) -> Result<Shared> {
        let dir = tempfile::Builder::new()
            .prefix("guest-")
            .tempdir_in(node.shared_dir())?;
        let name = dir.path().file_name().unwrap_or_default();
        let inside = format!("/cv/{}", name.to_string_lossy());
        Ok(Shared { dir, inside })
    }
}

/// Files of a guest that node and harness see.
struct Shared {
    dir: tempfile::TempDir,
    /// Where the node sees it.
    inside: String,
}

impl Shared {
    fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// With the folder as `$0` and seconds as `$1`. The harness reads the folder's files, so they must not stay in the node's cache.
const RUN: &str =
    r#"limit=$1; shift; timeout -k 5 "$limit" "$@" </dev/null; code=$?; sync -f "$0"; exit $code"#;

async fn run_qemu(
    node: &Node,
    shared: &Shared,
    command: &[String],
    limit: Duration,
) -> Result<Output> {
    let seconds = limit.as_secs().max(1).to_string();
    let mut argv = vec!["bash", "-c", RUN, &shared.inside, &seconds];
    argv.extend(command.iter().map(String::as_str));
    // `timeout` on the node ends QEMU; the rest is for the sync.
    node.exec_with(&argv, &[], b"", limit + Duration::from_secs(30))
        .await
        .with_context(|| last_words(shared.path()))
        .context("run QEMU (Debian package qemu-system-x86)")
}

/// What the exit code of `timeout` adds.
fn stopped(code: i32, limit: Duration) -> String {
    match code {
        124 => format!(", stopped after {limit:?}"),
        _ => String::new(),
    }
}

fn qemu(kernel: &str, shared: &str, disks: &[&str]) -> Vec<String> {
    let words = format!(
        "qemu-system-x86_64 -M pc,i8042=off,hpet=off -accel tcg,tb-size=32 -m 128 -smp 1 -nodefaults -no-user-config -display none \
         -net none -no-reboot -kernel {kernel} -initrd {shared}/initramfs -serial file:{shared}/console -serial file:{shared}/answer"
    );
    let mut words: Vec<String> = words.split_whitespace().map(Into::into).collect();
    words.extend(["-append".into(), KERNEL_OPTIONS.into()]);
    for (number, disk) in disks.iter().enumerate() {
        words.extend([
            "-device".into(),
            format!("virtio-blk-pci,drive=disk{number}"),
        ]);
        words.extend(drive(number, disk));
    }
    words
}

/// A disk that is to be given to a device. QEMU would read a comma as the end of the name; two are one.
fn drive(number: usize, disk: &str) -> [String; 2] {
    let file = disk.replace(',', ",,");
    [
        "-drive".into(),
        format!(
            "file={file},if=none,id=disk{number},format=raw,cache=none,aio=threads,discard=unmap"
        ),
    ]
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
