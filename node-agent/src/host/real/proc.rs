//! What the kernel says in `/proc` of mounts and swap, and how such lists are read. Names in them are whatever bytes somebody chose: no
//! line hides another, and none makes the whole unreadable.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Longest list that is read, in bytes: of ten thousands of mounts. A longer one is an error and not cut off.
const MOST: u64 = 16 << 20;
/// Mounts of the node where the agent may see them, else those that it has itself. What neither shows is found when the device
/// is opened exclusively, before the first write.
const MOUNTS: [&str; 2] = ["/proc/1/mountinfo", "/proc/self/mountinfo"];

/// A list of the kernel's or of a daemon's, of whatever bytes.
///
/// # Errors
/// Those of the file, and when it is longer than any such list.
pub fn list(path: &Path) -> io::Result<String> {
    whole(File::open(path)?)
}

/// The mounts, as `mountinfo`.
///
/// # Errors
/// As of [`list`].
pub fn mounts() -> io::Result<String> {
    let mut files = MOUNTS.iter().filter_map(|file| File::open(file).ok());
    let file = files.next();
    whole(file.ok_or_else(|| io::Error::other("no mountinfo can be read"))?)
}

fn whole(from: impl Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    from.take(MOST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST {
        return Err(io::Error::other("a list longer than the kernel's are"));
    }
    // One that is as it should be is not copied.
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

/// Where one of the devices (major:minor) is mounted, by a list of mounts.
pub fn mount_point(mountinfo: &str, numbers: &[String]) -> Option<String> {
    lines(mountinfo).find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let number = fields.next()?;
        let at = fields.nth(1)?;
        numbers.iter().any(|n| n == number).then(|| unescaped(at))
    })
}

/// Paths of what is swapped to, by `/proc/swaps`.
pub fn swaps(list: &str) -> impl Iterator<Item = String> {
    lines(list)
        .skip(1)
        .filter_map(|line| line.split([' ', '\t']).next())
        .map(unescaped)
}

/// The kernel ends lines so, and with nothing else: a carriage return may stand in a name.
fn lines(list: &str) -> impl Iterator<Item = &str> {
    list.split('\n').filter(|line| !line.is_empty())
}

/// A name as it is: the kernel writes blanks, tabs, line ends and backslashes in it as three octal digits (`seq_path`).
fn unescaped(name: &str) -> String {
    let mut parts = name.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (code.filter(u8::is_ascii), part.get(3..)) {
            (Some(code), Some(rest)) => {
                out.push(char::from(code));
                out.push_str(rest);
            }
            _ => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::{fs, io::repeat};

    use super::*;

    #[test]
    fn mounts_are_found_by_number() {
        let text = "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
                    30 22 0:5 / /dev rw - devtmpfs dev rw\n\
                    31 22 8:16 / /srv/a\\040disk\\134 rw - ext4 /dev/sdb rw\n";
        let number = |n: &str| [n.to_owned()];
        assert_eq!(mount_point(text, &number("254:1")).as_deref(), Some("/"));
        let found = mount_point(text, &number("8:16"));
        assert_eq!(found.as_deref(), Some("/srv/a disk\\"));
        assert_eq!(mount_point(text, &number("254:0")), None);
        assert_eq!(mount_point("", &number("254:1")), None);
    }

    #[test]
    fn swap_is_found_by_its_path() {
        let text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/dm-1                               partition\t8\t0\t-2\n\
                    /var/swap\\040file                     file\t8\t0\t-3\n";
        let found: Vec<_> = swaps(text).collect();
        assert_eq!(found, ["/dev/dm-1", "/var/swap file"]);
        assert_eq!(swaps("").count(), 0);
    }

    /// Any user can name a mount point of his, or a socket, like that.
    #[test]
    fn a_name_that_is_no_text_hides_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(
            file.path(),
            b"1 2 8:0 / /mnt/\xff rw - x\n1 2 8:16 / /srv rw - x\n",
        )
        .unwrap();
        let text = list(file.path()).unwrap();
        let found = mount_point(&text, &["8:16".to_owned()]);
        assert_eq!(found.as_deref(), Some("/srv"));
        let found = mount_point(&text, &["8:0".to_owned()]);
        assert_eq!(found.as_deref(), Some("/mnt/\u{fffd}"));
    }

    #[test]
    fn a_list_without_an_end_is_an_error_and_not_a_shorter_list() {
        assert!(whole(repeat(b'x')).is_err());
        assert_eq!(whole(repeat(b'x').take(MOST)).unwrap().len() as u64, MOST);
    }
}
