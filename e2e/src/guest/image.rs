//! What a guest boots: Debian's kernel for clouds, unpacked from its package, and a file system in memory of one busybox.
//!
//! The kernel is never installed: its package is downloaded and unpacked into the cache folder, so the machine's own boot set-up
//! stays as it is. It is kept uncompressed, because an emulated CPU takes longer to unpack it than for the rest of the boot; QEMU
//! starts an ELF kernel that has a PVH note by itself.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::cpio::Cpio;
use crate::debian;
use crate::parts::cache_dir;
use crate::process::run;

const INIT: &str = include_str!("../../assets/guest-init.sh");
/// Part of the cache key: counted up when this file changes what comes out.
const RECIPE: &str = "1";
/// The first that the package lists know is taken. The one for clouds has fewer drivers to start.
const KERNELS: &[&str] = &["linux-image-cloud-amd64", "linux-image-amd64"];
/// What stands between the kernel and a virtio disk on PCI; those that a kernel has built in are not in its package.
const MODULES: &[&str] = &[
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/block/virtio_blk.ko",
];
/// Debian package `busybox-static`.
const BUSYBOX: &str = "/usr/bin/busybox";
const PREPARE: &str = "cargo run -p cryptvol-e2e --example guest-image";

/// Kernel and initramfs of a guest; see [`super::Guest`].
#[derive(Debug, Clone)]
pub struct GuestImage {
    /// Uncompressed, or a bzImage when it could not be unpacked.
    pub kernel: PathBuf,
    /// A cpio archive without compression; each boot appends its script.
    pub initramfs: PathBuf,
    /// Name and version of the kernel's package.
    pub version: String,
}

impl GuestImage {
    /// Finds it; fails with the command that makes it.
    pub(super) fn locate() -> Result<Self> {
        let dir = dir()?;
        let version = fs::read_to_string(dir.join("version")).with_context(|| {
            format!(
                "there is no guest image in {} yet: run `{PREPARE}` first, outside the sandbox",
                dir.display()
            )
        })?;
        Ok(Self {
            kernel: dir.join("kernel"),
            initramfs: dir.join("initramfs"),
            version: version.trim().into(),
        })
    }

    /// Makes it, once (seconds, and a download of 27 MB from the machine's own package source). Root is not needed; the network
    /// is, so not inside a sandbox.
    pub(super) fn prepare() -> Result<Self> {
        if let Ok(image) = Self::locate() {
            return Ok(image);
        }
        let dir = dir()?;
        let parent = dir.parent().context("no folder for the guest image")?;
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        let lock = File::create(parent.join(".lock"))?;
        lock.lock().context("wait for another guest image")?;
        if let Ok(image) = Self::locate() {
            return Ok(image);
        }
        let start = Instant::now();
        eprintln!("making a guest image from Debian's kernel package (once)");
        let scratch = tempfile::Builder::new()
            .prefix(".guest-")
            .tempdir_in(parent)?;
        let out = scratch.path().join("out");
        fs::create_dir(&out)?;
        make(scratch.path(), &out).context("make a guest image")?;
        // Whole or not at all: `version`, which `locate` looks for, appears with the rest.
        fs::rename(&out, &dir).with_context(|| format!("put {} into place", dir.display()))?;
        eprintln!("made the guest image: {} s", start.elapsed().as_secs());
        Self::locate()
    }
}

fn dir() -> Result<PathBuf> {
    let mut key = Sha256::new();
    for part in KERNELS.iter().chain(MODULES).chain(&[INIT, RECIPE]) {
        key.update(part);
        key.update([0]);
    }
    let key = hex::encode(&key.finalize()[..8]);
    Ok(cache_dir()?.join("guest").join(key))
}

fn make(scratch: &Path, out: &Path) -> Result<()> {
    ensure!(
        Path::new(BUSYBOX).is_file(),
        "{BUSYBOX} is missing: install the Debian package busybox-static"
    );
    let package = package()?;
    let root = scratch.join("root");
    debian::unpack(&[&package], scratch, &root)?;
    let release = package.trim_start_matches("linux-image-");
    let image = fs::read(root.join(format!("boot/vmlinuz-{release}")))
        .with_context(|| format!("{package} has no kernel in boot/"))?;
    let kernel = match unpacked_kernel(&image) {
        Ok(kernel) => kernel,
        Err(error) => {
            eprintln!("the guest's kernel stays compressed, guests boot more slowly: {error:#}");
            image
        }
    };
    fs::write(out.join("kernel"), kernel)?;
    let modules = root.join(format!("lib/modules/{release}/kernel"));
    fs::write(out.join("initramfs"), initramfs(&modules)?)?;
    fs::write(out.join("version"), format!("{package}\n"))?;
    fs::set_permissions(out, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The package with the kernel itself: the names without a version only depend on it.
fn package() -> Result<String> {
    for name in KERNELS {
        let depends = run("apt-cache", &["depends", "--important", name]).unwrap_or_default();
        let found = depends
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with("linux-image-"));
        if let Some(found) = found {
            return Ok(found.into());
        }
    }
    bail!(
        "apt knows none of {}: run `apt-get update`, on Debian for amd64",
        KERNELS.join(", ")
    )
}

/// The ELF file inside a bzImage. Fields: Documentation/x86/boot.rst of the kernel, `setup_sects` at 0x1f1, `payload_offset` and
/// `payload_length` at 0x248.
fn unpacked_kernel(image: &[u8]) -> Result<Vec<u8>> {
    let number = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let sectors = usize::from(*image.get(0x1f1).context("too short for a kernel")?);
    let payload = number(0x248)
        .zip(number(0x24c))
        .and_then(|(offset, length)| image.get((sectors + 1) * 512 + offset..)?.get(..length))
        .context("not a bzImage")?;
    let kernel = decompress(payload, true)?;
    ensure!(kernel.starts_with(b"\x7fELF"), "no ELF file inside");
    Ok(kernel)
}

/// By what the bytes begin with. `sized`: the kernel's build appends the length, 4 bytes, to all formats but gzip.
fn decompress(bytes: &[u8], sized: bool) -> Result<Vec<u8>> {
    let (program, tail) = match bytes {
        [0x7f, b'E', b'L', b'F', ..] => return Ok(bytes.to_vec()),
        [0x1f, 0x8b, ..] => ("gzip", 0),
        [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", 4),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", 4),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => ("xz", 4),
        _ => bail!("an unknown compression"),
    };
    let end = bytes.len() - if sized { tail } else { 0 };
    let mut input = tempfile::tempfile()?;
    input.write_all(&bytes[..end])?;
    std::io::Seek::rewind(&mut input)?;
    let output = Command::new(program)
        .arg("-dc")
        .stdin(input)
        .output()
        .with_context(|| format!("start {program} (the Debian package is named the same)"))?;
    ensure!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

fn initramfs(modules: &Path) -> Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    for dir in [
        "bin", "sbin", "usr", "usr/bin", "usr/sbin", "lib", "dev", "proc", "sys", "tmp", "mnt",
    ] {
        cpio.dir(dir);
    }
    cpio.file("bin/busybox", 0o755, &fs::read(BUSYBOX)?);
    // Made here, because several hundred links take the emulated CPU a while.
    for path in run(BUSYBOX, &["--list-full"])?.lines() {
        if path != "bin/busybox" {
            cpio.link(path, "/bin/busybox");
        }
    }
    for module in MODULES {
        let path = modules.join(module);
        let found = ["", ".xz", ".zst", ".gz"]
            .iter()
            .map(|ending| PathBuf::from(format!("{}{ending}", path.display())))
            .find(|path| path.is_file());
        if let Some(found) = found {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            cpio.file(
                &format!("lib/{name}"),
                0o644,
                &decompress(&fs::read(found)?, false)?,
            );
        }
    }
    cpio.file("init", 0o755, INIT.as_bytes());
    Ok(cpio.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_loads_the_modules_that_are_packed() {
        for module in MODULES {
            let name = Path::new(module).file_stem().unwrap().to_str().unwrap();
            assert!(
                INIT.split([' ', ';']).any(|word| word == name),
                "{name} is not loaded"
            );
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert!(unpacked_kernel(b"").is_err());
        assert!(unpacked_kernel(&[0xff; 4096]).is_err());
    }
}
