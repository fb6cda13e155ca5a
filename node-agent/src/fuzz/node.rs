//! What the node's kernel and daemons say: one test a parser. Root on the node, a guest's file system or a user's socket may have put
//! whatever bytes there.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Read, Write},
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::Path,
};

use cryptvol_crds::names;

use super::{feed, lines};
use crate::{
    host::{
        Access, LinkFound, Lun, Mapping, Portal, RawKind, Target,
        real::{
            dm, exclusion, files, links::Links, multipathd, names::Names, path_groups, proc,
            sysfs::Sysfs,
        },
    },
    volume::wanted::{is_file_name, is_scratch_name},
};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn dm_tables() {
    let corpus = lines(include_str!("../../corpus/dm-tables.txt"));
    feed(
        "dm table",
        &corpus,
        |len| 24 * len + 4096,
        |bytes| {
            let line = String::from_utf8_lossy(bytes);
            let (target, params) = line.split_once(' ').unwrap_or((&line, ""));
            let table = dm::crypt_table(target, params);
            // A key that lies open in the table is never taken for one that does not, and is told nowhere.
            let key = params.split(' ').nth(1).unwrap_or_default();
            assert!(!table.key_in_keyring || key.starts_with(':'));
            assert!(
                key.len() < 32
                    || table.target_type.contains(key)
                    || !format!("{table:?}").contains(key)
                    || params.matches(key).count() > 1
            );
        },
    );
}

/// A status says the same when it is written anew from what was read of it.
#[test]
fn multipath_status() {
    let corpus = lines(include_str!("../../corpus/multipath-status.txt"));
    let mut read = 0;
    feed(
        "multipath status",
        &corpus,
        |len| 64 * len + 4096,
        |bytes| {
            let text = text(bytes);
            let Some(status) = path_groups::status(&text) else {
                return;
            };
            read += 1;
            let words = text.split_whitespace().count();
            assert!(3 * status.members.len() <= words, "{text}");
            let groups = status.members.iter().map(|m| m.group).max().unwrap_or(0);
            let mut again = format!("0 0 {groups} {}", status.current);
            for group in 1..=groups {
                let of = || status.members.iter().filter(|m| m.group == group);
                again += &format!(" A 0 {} 0", of().count());
                for member in of() {
                    let word = if member.active { "A" } else { "F" };
                    again += &format!(" {} {word} 0", member.dev);
                }
            }
            assert_eq!(path_groups::status(&format!("{text} x")), None, "{text}");
            for member in &status.members {
                let (major, minor) = member.dev.split_once(':').unwrap();
                let digits = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
                assert!(digits(major) && digits(minor), "{text}");
            }
            assert_eq!(path_groups::status(&again), Some(status), "{text}");
        },
    );
    assert!(read > 50, "{read}");
}

/// What was sent to a daemon is forgotten, what it says is read.
struct Says<'a>(&'a [u8]);

impl Read for Says<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.0.read(to)
    }
}

impl Write for Says<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn multipathd_answers() {
    let framed = |length: usize, text: &[u8]| [&length.to_ne_bytes()[..], text].concat();
    let mut corpus: Vec<_> = lines(include_str!("../../corpus/multipathd-answers.txt"))
        .iter()
        .map(|line| framed(line.len() + 2, &[line, &b"\n\0"[..]].concat()))
        .collect();
    corpus.push(framed(usize::MAX, b"ok\n\0"));
    corpus.push(framed(multipathd::MAX_ANSWER, b"ok\n\0"));
    corpus.push(framed(0, b""));
    let mut answers = 0;
    feed(
        "multipathd",
        &corpus,
        // A length alone takes no memory.
        |len| 8 * len + 4096,
        |bytes| {
            let Ok(answer) = multipathd::exchange(Says(bytes), "show blacklist") else {
                return;
            };
            answers += 1;
            let (length, rest) = bytes.split_first_chunk().unwrap();
            let length = usize::from_ne_bytes(*length);
            assert!(length <= rest.len() && length <= multipathd::MAX_ANSWER);
            assert_eq!(answer, text(&rest[..length]).trim_end_matches('\0'));
        },
    );
    assert!(answers > 100, "{answers}");
}

/// Lists of the kernel and entries of udev's database: what stands in them is found whatever lies around it, and nothing else is.
#[test]
fn proc_lists() {
    const NUMBER: &str = "4000:7";
    const MOUNT: &str = "77 22 4000:7 / /srv/x rw - ext4 /dev/x rw";
    const SOCKET: &str = "0: 2 0 10000 1 1 9 @/org/kernel/linux/storage/multipathd";
    const TOLD: &str = "E:CRYPTVOL_DISK=1";
    let corpus = lines(include_str!("../../corpus/proc-lists.txt"));
    let file = tempfile::NamedTempFile::new().unwrap();
    let numbers = [NUMBER.to_owned()];
    let mut mounted = 0;
    feed(
        "lists",
        &corpus,
        |len| 64 * len + 8192,
        |bytes| {
            let noise = text(bytes);
            let own = proc::mount_point(&noise, &numbers);
            mounted += usize::from(own.is_some());
            assert!(own.is_none() || noise.contains(NUMBER), "{noise:?}");
            assert!(!multipathd::listens(&noise) || noise.contains("multipathd"));
            assert!(!exclusion::is_told(&noise) || noise.contains(TOLD));

            // As the kernel gives it, byte by byte.
            let good = format!("\n{MOUNT}\n{SOCKET}\n{TOLD}\n/dev/swap partition 8 0 -2\n");
            fs::write(file.path(), [bytes, good.as_bytes(), bytes].concat()).unwrap();
            let list = proc::list(file.path()).unwrap();
            let first = own.or(Some("/srv/x".to_owned()));
            assert_eq!(proc::mount_point(&list, &numbers), first);
            assert!(multipathd::listens(&list) && exclusion::is_told(&list));
            assert!(proc::swaps(&list).any(|path| path == "/dev/swap"));

            // A name that the kernel wrote so that it is one word is read as it is.
            let escaped = noise
                .chars()
                .map(|c| match c {
                    ' ' | '\t' | '\n' | '\\' => format!("\\{:03o}", u32::from(c)),
                    c => c.to_string(),
                })
                .collect::<String>();
            let line = MOUNT.replace("/srv/x", &format!("/{escaped}"));
            let found = proc::mount_point(&line, &numbers);
            assert_eq!(found, Some(format!("/{noise}")), "{line:?}");
        },
    );
    assert!(mounted > 30, "{mounted}");
}

/// A tree with one session, one disk of it and a map above.
struct Tree {
    root: tempfile::TempDir,
    files: Vec<std::path::PathBuf>,
}

fn tree() -> Tree {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path();
    let session = root.join("devices/platform/host2/session1");
    let scsi = session.join("target2:0:0/2:0:0:1");
    let block = scsi.join("block/sda");
    let class = session.join("iscsi_session/session1");
    let connection = root.join("class/iscsi_connection/connection1:0");
    let holder = block.join("holders/dm-0/dm");
    for dir in [
        &class,
        &connection,
        &holder,
        &root.join("class/iscsi_session"),
        &root.join("dev/block"),
    ] {
        fs::create_dir_all(dir).unwrap();
    }
    let link = |to: &str, at: &Path| symlink(to, at).unwrap();
    link(
        "../../devices/platform/host2/session1/iscsi_session/session1",
        &root.join("class/iscsi_session/session1"),
    );
    link(
        "../../devices/platform/host2/session1/target2:0:0/2:0:0:1/block/sda",
        &root.join("dev/block/8:0"),
    );
    link("../../../2:0:0:1", &block.join("device"));
    let files = vec![
        class.join("targetname"),
        class.join("state"),
        class.join("target_id"),
        scsi.join("type"),
        scsi.join("state"),
        scsi.join("wwid"),
        block.join("dev"),
        block.join("size"),
        connection.join("persistent_address"),
        connection.join("persistent_port"),
        scsi.join("inquiry"),
        scsi.join("dh_state"),
        scsi.join("access_state"),
        holder.join("uuid"),
        holder.join("name"),
    ];
    Tree { root: tmp, files }
}

/// One line of a corpus is a whole tree: its attributes with `|` between. Those that are left out are not there.
fn fill(files: &[std::path::PathBuf], line: &[u8]) {
    let mut values = line.split(|b| *b == b'|');
    for file in files {
        match values.next() {
            Some(value) => fs::write(file, value).unwrap(),
            None => drop(fs::remove_file(file)),
        }
    }
}

fn attribute(file: &Path) -> String {
    let bytes = fs::read(file).unwrap_or_default();
    text(&bytes).trim().to_owned()
}

#[test]
fn sysfs_values() {
    let Tree { root, files } = tree();
    let sysfs = Sysfs::at(root.path());
    let corpus = lines(include_str!("../../corpus/sysfs.txt"));
    let (mut found, mut same, mut named) = (0, 0, 0);
    feed(
        "sysfs",
        &corpus,
        |len| 64 * len + (64 << 10),
        |bytes| {
            fill(&files, bytes);
            let value = |n: usize| attribute(&files[n]);
            let target = Target {
                portals: vec![Portal {
                    address: "192.0.2.1".into(),
                    port: 3260,
                }],
                iqn: value(0),
            };
            let Ok(paths) = sysfs.paths(&Lun { target, lun: 1 }) else {
                return;
            };
            for path in paths {
                let session = path.session.unwrap();
                if let Some(portal) = &session.portal {
                    assert_eq!(portal.address, value(8));
                    assert_eq!(Ok(portal.port), value(9).parse());
                }
                assert_eq!(
                    path.named,
                    session
                        .portal
                        .is_some_and(|p| p.address == "192.0.2.1" && p.port == 3260)
                );
                let Some(device) = path.disk else { continue };
                found += 1;
                assert!(device.id.path == "/dev/sda" && device.id.size_bytes.is_multiple_of(512));
                // The array's word counts where its INQUIRY says so, and only the kernel's own handler has it.
                let inquiry = fs::read(&files[10]).unwrap_or_default();
                let tells = inquiry.get(5).is_some_and(|b| b & 0x30 != 0);
                let word = Access::parse(&value(12));
                let access = match value(11).as_str() {
                    "alua" if files[12].exists() => word,
                    _ => Access::Unknown,
                };
                assert_eq!(device.access, tells.then_some(access));
                // A map of multipathd's is told by its own name.
                let foreign = value(13).starts_with("mpath-");
                assert_eq!(device.holders.len(), 1);
                assert_eq!(device.holders[0].starts_with("dm-0, the map "), foreign);
                // What was found is the same a moment later, and is found by its number where that is its own.
                let again = sysfs.same_device(&device.id);
                if device.id.dev == "8:0" {
                    same += 1;
                    again.unwrap();
                    let block = sysfs.block_dir(&device.id).unwrap().unwrap();
                    if let Ok(Some(name)) = exclusion::name_of(&sysfs, &block) {
                        named += 1;
                        assert!(name.starts_with("ip-") && !name.contains('/'), "{name:?}");
                    }
                }
            }
        },
    );
    assert!(
        found > 100 && same > 100 && named > 100,
        "{found} {same} {named}"
    );
}

/// A disk, partition or device-mapper device of the node.
#[test]
fn sysfs_of_local_devices() {
    let tmp = tempfile::tempdir().unwrap();
    let block = tmp.path().join("devices/virtual/block/dm-3");
    for dir in [
        block.join("dm"),
        block.join("device"),
        block.join("holders"),
        tmp.path().join("dev/block"),
    ] {
        fs::create_dir_all(dir).unwrap();
    }
    // A major number that no machine has, so that nothing of the one that the test runs on is mounted there.
    let to = "../../devices/virtual/block/dm-3";
    symlink(to, tmp.path().join("dev/block/4001:3")).unwrap();
    let files = [
        "size",
        "ro",
        "serial",
        "wwid",
        "device/state",
        "device/scsi_level",
        "partition",
        "dm/uuid",
    ]
    .map(|file| block.join(file));
    let sysfs = Sysfs::at(tmp.path());
    let mapping = Mapping {
        name: "m".into(),
        uuid: names::mapping_uuid("l", "v"),
        path: "/dev/dm-4".into(),
        dev: "4001:4".into(),
        deps: vec!["4001:3".into()],
        table: None,
        suspended: false,
        open_count: 0,
        size_bytes: 0,
    };
    let corpus = lines(include_str!("../../corpus/sysfs-local.txt"));
    let mut found = 0;
    feed(
        "local devices",
        &corpus,
        // With the machine's own mounts.
        |len| 64 * len + (4 << 20),
        |bytes| {
            fill(&files, bytes);
            let value = |n: usize| attribute(&files[n]);
            let Ok(Some(device)) = sysfs.local("/nonexistent", Some(&mapping)) else {
                return;
            };
            found += 1;
            assert_eq!(device.id.path, "/dev/dm-3");
            assert_eq!(device.id.kind, RawKind::Local);
            assert_ne!(device.id.wwid.as_deref(), Some(""));
            if files[7].exists() {
                assert_eq!(device.id.wwid.unwrap_or_default(), value(7));
            }
            let says = |words: &str| device.holders.iter().any(|h| h.starts_with(words));
            assert_eq!(says("the kernel, which has it read-only"), value(1) == "1");
            let ours = value(7).starts_with(names::DM_UUID_PREFIX);
            assert_eq!(says("another volume"), ours);
        },
    );
    assert!(found > 100, "{found}");
}

/// Names of loop devices' files are those of whoever made them.
#[test]
fn loop_files() {
    let corpus = lines(include_str!("../../corpus/loop-files.txt"));
    let mut taken = 0;
    feed(
        "loop",
        &corpus,
        |len| 8 * len + 4096,
        |bytes| {
            let shown = text(bytes);
            let Some((path, name)) = files::shown_name(&shown) else {
                return;
            };
            taken += 1;
            assert!(shown.starts_with(path) && path.ends_with(name));
            assert!(is_file_name(name) || is_scratch_name(name));
            assert!(!name.contains('/') && !name.starts_with('.') && name.len() <= 255);
        },
    );
    assert!(taken > 100, "{taken}");
}

/// Files and links in udev's directories, which anybody who is root may write.
#[test]
fn udev_names() {
    const NAME: &str = "ip-192.0.2.1:3260-iscsi-iqn.x:y-lun-1";
    const OWNER: &str = "cryptvol-9c1fbb0a";
    let tmp = tempfile::tempdir().unwrap();
    let names = Names::at(tmp.path());
    let (kept, given) = ["kept/by-path", "given"]
        .map(|dir| tmp.path().join("udev/cryptvol").join(dir))
        .into();
    for dir in [&kept, &given] {
        fs::create_dir_all(dir).unwrap();
    }
    let link = tmp.path().join("disk/by-path").join(NAME);
    let name = format!("/dev/disk/by-path/{NAME}");
    let corpus = lines(include_str!("../../corpus/udev-names.txt"));
    let (mut ours, mut others) = (0, 0);
    feed(
        "udev's names",
        &corpus,
        |len| 32 * len + (32 << 10),
        |bytes| {
            let bytes: Vec<_> = bytes
                .iter()
                .map(|b| if *b == b'~' { b'\n' } else { *b })
                .collect();
            fill(&[kept.join(NAME), given.join("CRYPTVOL-1")], &bytes);
            let to = bytes.split(|b| *b == b'|').nth(2).unwrap_or_default();
            let to: Vec<_> = to.iter().copied().filter(|b| *b != 0).take(200).collect();
            drop(fs::remove_file(&link));
            let linked = symlink(OsStr::from_bytes(&to), &link).is_ok();
            let found = names.observe(Some(&name), OWNER).unwrap();
            let said = |file: &Path, key: &str| {
                let text = attribute(file);
                let mut lines = text.lines().filter_map(|l| l.split_once('='));
                lines.find(|(k, _)| *k == key).map(|(_, v)| v.to_owned())
            };
            let owner = said(&kept.join(NAME), "CRYPTVOL_KEPT_FOR").unwrap_or_default();
            let there = kept.join(NAME).exists();
            assert_eq!(found.kept.contains(&name), owner == OWNER);
            assert_eq!(found.kept_for_another.is_some(), there && owner != OWNER);
            let given_to = said(&given.join("CRYPTVOL-1"), "CRYPTVOL_NAME");
            let gives = given_to.is_some_and(|n| format!("/dev/{n}") == name);
            assert_eq!(found.given.is_some(), gives);
            if let Some(leads) = found.leads {
                assert!(linked);
                let device = leads.strip_prefix("/dev/").unwrap();
                assert!(!device.is_empty() && !device.contains('/'), "{leads:?}");
            }
            ours += usize::from(!found.kept.is_empty());
            others += usize::from(found.kept_for_another.is_some());
        },
    );
    assert!(ours > 100 && others > 100, "{ours} {others}");
}

/// Names of directories and links, and what links lead to, where the agent keeps its own.
#[test]
fn link_directory() {
    let corpus = lines(include_str!("../../corpus/links.txt"));
    let mut found = 0;
    feed(
        "links",
        &corpus,
        |len| 64 * len + (32 << 10),
        |bytes| {
            let tmp = tempfile::tempdir().unwrap();
            let mut parts = bytes.split(|b| *b == b'|').map(|part| {
                let name: Vec<_> = part
                    .iter()
                    .copied()
                    .filter(|b| *b != 0 && *b != b'/')
                    .take(200)
                    .collect();
                text(&name)
            });
            let mut part = || parts.next().unwrap_or_default();
            let (dir, link, to) = (part(), part(), part());
            if ["", ".", ".."].contains(&dir.as_str()) {
                return;
            }
            let dir = tmp.path().join(dir);
            if fs::create_dir(&dir).is_err() || symlink(&to, dir.join(&link)).is_err() {
                return;
            }
            let links = Links::at(tmp.path());
            for (path, leads) in links.all().unwrap() {
                found += 1;
                assert_eq!(leads, to);
                let (namespace, name) = path
                    .strip_prefix("/dev/cryptvol/")
                    .and_then(|rest| rest.split_once('/'))
                    .unwrap();
                for word in [namespace, name] {
                    assert!(!word.is_empty() && !word.starts_with('.') && !word.contains('/'));
                }
                assert_eq!(links.observe(&path).unwrap(), LinkFound::To(to.clone()));
            }
        },
    );
    assert!(found > 100, "{found}");
}

/// UUIDs of other tools' device-mapper devices are of any form.
#[test]
fn mapping_uuids() {
    let corpus = lines(include_str!("../../corpus/mapping-uuids.txt"));
    let mut taken = 0;
    feed(
        "UUID of a mapping",
        &corpus,
        |len| 8 * len + 4096,
        |bytes| {
            let uuid = text(bytes);
            if let Some(volume) = names::volume_of_mapping(&uuid) {
                taken += 1;
                assert!(names::is_uuid(volume) && uuid.ends_with(volume));
                assert!(uuid.starts_with(names::DM_UUID_PREFIX));
            }
            if let Some(mapping) = names::mapping_of_tags(&uuid) {
                assert_eq!(names::tags_uuid(&mapping), uuid);
            }
        },
    );
    assert!(taken > 100, "{taken}");
}
