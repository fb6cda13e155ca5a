//! Links that hypervisors open: `/dev/cryptvol/<namespace>/<name>`, each leading to `/dev/dm-N`. Every step holds the directory
//! it works in, so that nobody can put another one in its place.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use cryptvol_crds::{conditions::Reason, names::LINK_DIR};
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, open, openat, readlinkat, renameat},
    sys::stat::{Mode, SFlag, fstatat, mkdirat},
    unistd::{UnlinkatFlags, symlinkat, unlinkat},
};

use super::{
    error::{because, failed},
    sysfs::names,
};
use crate::host::{LinkFound, StepError};

/// The directory of links.
#[derive(Clone, Debug)]
pub struct Links {
    /// Where the directory really is.
    root: PathBuf,
}

impl Default for Links {
    fn default() -> Self {
        Self {
            root: PathBuf::from(LINK_DIR),
        }
    }
}

impl Links {
    /// Links below another directory, for tests.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// What is at a link's path.
    ///
    /// # Errors
    /// `StepFailed` for a path outside of the directory, or when it cannot be read.
    pub fn observe(&self, link: &str) -> Result<LinkFound, StepError> {
        let (namespace, name) = parts(link)?;
        let path = self.root.join(namespace).join(name);
        match std::fs::read_link(&path) {
            Ok(to) => Ok(LinkFound::To(to.to_string_lossy().into_owned())),
            Err(e) => match Errno::from_raw(e.raw_os_error().unwrap_or(0)) {
                Errno::ENOENT | Errno::ENOTDIR => Ok(LinkFound::Absent),
                Errno::EINVAL => Ok(LinkFound::NoLink),
                _ => Err(failed(format!("reading {link}"), e)),
            },
        }
    }

    /// All symbolic links in the directory, with what they lead to. What is no link, or has no name of an object, is left out.
    ///
    /// # Errors
    /// `StepFailed` when a directory cannot be read.
    pub fn all(&self) -> Result<BTreeMap<String, String>, StepError> {
        let read = |e| failed(format!("reading {LINK_DIR}"), e);
        let mut found = BTreeMap::new();
        for namespace in names(&self.root).map_err(read)? {
            // A link in the place of a namespace's directory is not followed, and a file has nothing in it.
            let dir = self.root.join(&namespace);
            if !dir.symlink_metadata().is_ok_and(|m| m.is_dir()) {
                continue;
            }
            for name in names(&dir).map_err(read)? {
                let link = format!("{LINK_DIR}/{namespace}/{name}");
                if parts(&link).is_ok()
                    && let LinkFound::To(to) = self.observe(&link)?
                {
                    found.insert(link, to);
                }
            }
        }
        Ok(found)
    }

    /// Makes the link lead to a mapping's device, by rename over what is there.
    ///
    /// # Errors
    /// `NotOurs` when what is there is no link to a mapping; `StepFailed`.
    pub fn set(&self, link: &str, device: &str) -> Result<(), StepError> {
        let fail = |e: Errno| failed(format!("linking {link}"), e);
        if !is_mapping(device) {
            return Err(failed(
                format!("linking {link}"),
                format!("{device} is no device-mapper device"),
            ));
        }
        let (namespace, name) = parts(link)?;
        let dir = self.make_dirs(namespace).map_err(fail)?;
        match self.ours(&dir, name, link)? {
            Some(to) if to == device => return Ok(()),
            _ => {}
        }
        // A dot begins no name of a Kubernetes object.
        let temporary = format!(".{name}");
        match unlinkat(&dir, &*temporary, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(e) => return Err(fail(e)),
        }
        symlinkat(device, &dir, &*temporary).map_err(fail)?;
        renameat(&dir, &*temporary, &dir, name).map_err(fail)
    }

    /// Removes the link, and its namespace's directory when that is empty. Absent is success.
    ///
    /// # Errors
    /// `NotOurs`, `StepFailed`.
    pub fn remove(&self, link: &str) -> Result<(), StepError> {
        let fail = |e: Errno| failed(format!("removing {link}"), e);
        let (namespace, name) = parts(link)?;
        let root = match self.root_dir() {
            Ok(root) => root,
            Err(Errno::ENOENT) => return Ok(()),
            Err(e) => return Err(fail(e)),
        };
        let dir = match openat(&root, namespace, DIR, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::ENOENT) => return Ok(()),
            Err(e) => return Err(fail(e)),
        };
        if self.ours(&dir, name, link)?.is_some() {
            unlinkat(&dir, name, UnlinkatFlags::NoRemoveDir).map_err(fail)?;
        }
        match unlinkat(&root, namespace, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOENT) => Ok(()),
            Err(e) => Err(fail(e)),
        }
    }

    /// Where our link leads; nothing when nothing is there.
    fn ours(&self, dir: &OwnedFd, name: &str, link: &str) -> Result<Option<String>, StepError> {
        let not_ours = |what: String| Err(because(Reason::NotOurs, format!("{link} is {what}")));
        let stat = match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => return Ok(None),
            Err(e) => return Err(failed(format!("reading {link}"), e)),
        };
        if SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) != SFlag::S_IFLNK {
            return not_ours("no symbolic link".into());
        }
        let to = readlinkat(dir, name).map_err(|e| failed(format!("reading {link}"), e))?;
        let to = to.to_string_lossy().into_owned();
        if !is_mapping(&to) {
            return not_ours(format!("a link to {to}"));
        }
        Ok(Some(to))
    }

    fn root_dir(&self) -> nix::Result<OwnedFd> {
        open(&self.root, DIR, Mode::empty())
    }

    fn make_dirs(&self, namespace: &str) -> nix::Result<OwnedFd> {
        let above = self.root.parent().unwrap_or(Path::new("/"));
        let name = self.root.file_name().ok_or(Errno::EINVAL)?;
        let above = open(above, DIR, Mode::empty())?;
        let root = make_dir(&above, Path::new(name))?;
        make_dir(&root, Path::new(namespace))
    }
}

const DIR: OFlag = OFlag::O_DIRECTORY
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

fn make_dir(above: &OwnedFd, name: &Path) -> nix::Result<OwnedFd> {
    match mkdirat(above, name, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(e) => return Err(e),
    }
    openat(above, name, DIR, Mode::empty())
}

/// Whether a path is `/dev/dm-<number>`.
fn is_mapping(path: &str) -> bool {
    path.strip_prefix("/dev/dm-")
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Namespace and name of a link's path.
fn parts(link: &str) -> Result<(&str, &str), StepError> {
    let good = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
    };
    link.strip_prefix(LINK_DIR)
        .and_then(|below| below.strip_prefix('/')?.split_once('/'))
        .filter(|(namespace, name)| good(namespace) && good(name))
        .ok_or_else(|| failed("link", format!("{link:?} is not {LINK_DIR}/NAMESPACE/NAME")))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const LINK: &str = "/dev/cryptvol/shop/db-0";

    fn links() -> (tempfile::TempDir, Links) {
        let tmp = tempfile::tempdir().unwrap();
        let links = Links::at(tmp.path().join("cryptvol"));
        (tmp, links)
    }

    #[test]
    fn made_changed_and_removed() {
        let (tmp, links) = links();
        assert_eq!(links.observe(LINK).unwrap(), LinkFound::Absent);
        links.remove(LINK).unwrap();
        for device in ["/dev/dm-3", "/dev/dm-3", "/dev/dm-14"] {
            links.set(LINK, device).unwrap();
            assert_eq!(links.observe(LINK).unwrap(), LinkFound::To(device.into()));
        }
        links.set("/dev/cryptvol/shop/db-1", "/dev/dm-4").unwrap();
        let all: Vec<_> = links.all().unwrap().into_iter().collect();
        let of = |name: &str, to: &str| (format!("/dev/cryptvol/shop/{name}"), to.to_owned());
        assert_eq!(all, [of("db-0", "/dev/dm-14"), of("db-1", "/dev/dm-4")]);
        links.remove(LINK).unwrap();
        assert_eq!(links.observe(LINK).unwrap(), LinkFound::Absent);
        assert!(tmp.path().join("cryptvol/shop").exists());
        links.remove("/dev/cryptvol/shop/db-1").unwrap();
        assert!(!tmp.path().join("cryptvol/shop").exists());
    }

    #[test]
    fn what_is_not_ours_stays() {
        let (tmp, links) = links();
        let dir = tmp.path().join("cryptvol/shop");
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("db-0");
        let refused = |links: &Links| {
            for result in [links.set(LINK, "/dev/dm-0"), links.remove(LINK)] {
                assert_eq!(result.unwrap_err().reason(), Reason::NotOurs);
            }
        };
        fs::write(&path, "data").unwrap();
        refused(&links);
        assert!(links.all().unwrap().is_empty());
        assert_eq!(links.observe(LINK).unwrap(), LinkFound::NoLink);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        refused(&links);
        fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink("/dev/sda", &path).unwrap();
        refused(&links);
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("/dev/sda"));
    }

    #[test]
    fn never_outside_and_never_through_a_link() {
        let (tmp, links) = links();
        for bad in [
            "/dev/cryptvol/../sda",
            "/dev/cryptvol/a",
            "/dev/cryptvol/a/b/c",
            "/dev/cryptvolx/a/b",
            "/dev/sda",
            "/dev/cryptvol/a/..",
        ] {
            assert!(links.set(bad, "/dev/dm-0").is_err(), "{bad}");
            assert!(links.remove(bad).is_err(), "{bad}");
        }
        assert!(links.set(LINK, "/dev/sda").is_err());
        // A namespace directory that leads elsewhere is not followed.
        let elsewhere = tmp.path().join("elsewhere");
        fs::create_dir_all(&elsewhere).unwrap();
        fs::create_dir_all(tmp.path().join("cryptvol")).unwrap();
        std::os::unix::fs::symlink(&elsewhere, tmp.path().join("cryptvol/shop")).unwrap();
        assert!(links.set(LINK, "/dev/dm-0").is_err());
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        std::os::unix::fs::symlink("/dev/dm-0", elsewhere.join("db-0")).unwrap();
        assert!(links.all().unwrap().is_empty());
    }
}
