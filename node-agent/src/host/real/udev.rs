//! What is told to the node's udev: files below its runtime directory, which the next boot takes away.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// Spares udev two processes for each event of a mapping; before the rules of device-mapper.
const FLAGS_RULES: &str = include_str!("cryptvol-flags.rules");
const FLAGS_FILE: &str = "rules.d/54-cryptvol-flags.rules";
/// udev looks for changed rules at an event, where it did not within this time before.
pub const RULES_READ: Duration = Duration::from_millis(3200);

/// udev's runtime directory: the node's, not that of the agent's container.
pub fn directory() -> Option<PathBuf> {
    ["/proc/1/root/run/udev", "/run/udev"]
        .into_iter()
        .map(PathBuf::from)
        .find(|udev| fs::symlink_metadata(udev.join("control")).is_ok())
}

/// Has udev know the flags of our mappings without being told by a process. Nobody waits for it to read the rule, and nothing rests on it:
/// the cookie of each event says the same.
pub fn tell_flags() {
    let Some(udev) = directory() else { return };
    if let Err(e) = write(&udev.join(FLAGS_FILE), FLAGS_RULES) {
        tracing::debug!(error = %e, "udev reads the flags of mappings with a process");
    }
}

/// A file with this content, there at once or not at all.
///
/// # Errors
/// Those of the file.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|t| t == text) {
        return Ok(());
    }
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(dir)?;
    // Beside all that is read: not a rule, and not a name, which begins with no dot.
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let temporary = dir.join(format!(".{}", name.to_string_lossy()));
    remove(&temporary)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&temporary)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&temporary, path)
}

/// Takes a file away. Absent is success.
///
/// # Errors
/// Those of the file.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::real::dm;

    #[test]
    fn the_rule_says_what_the_cookie_says() {
        let cookie = u32::from(dm::udev_flags()) << 16;
        assert!(FLAGS_RULES.contains(&format!("ENV{{DM_COOKIE}}==\"{cookie}\"")));
        let named = [
            ("DM_RULES", 0x01),
            ("SUBSYSTEM_RULES", 0x02),
            ("DISK_RULES", 0x04),
            ("OTHER_RULES", 0x08),
        ];
        for (name, bit) in named {
            let said = FLAGS_RULES.contains(&format!("ENV{{DM_UDEV_DISABLE_{name}_FLAG}}=\"1\""));
            assert_eq!(said, dm::udev_flags() & bit != 0, "{name}");
        }
        assert_eq!(
            dm::udev_flags() & !0x0f,
            0x40,
            "only the primary source besides"
        );
        assert!(FLAGS_RULES.contains("ENV{DM_UDEV_PRIMARY_SOURCE_FLAG}=\"1\""));
    }
}
