//! Which of a node's belongings no volume wants, whose they probably are and what to do: pure.

use std::collections::BTreeSet;

use cryptvol_crds::{
    names,
    orphans::{Orphan, OrphanKind},
};

use crate::host::{Belongings, Below, LoopDevice, Mapping, Session};

/// What is asked of a NodeVolume, on whatever node: as much as can be read of one that this agent does not understand, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// `namespace/name` of the NodeVolume.
    pub display: String,
    /// Its node.
    pub node: String,
    /// UID of the volume.
    pub uid: String,
    /// Link of the volume.
    pub link: String,
    /// Target of the volume, where it has one.
    pub iqn: Option<String>,
    /// File of the volume, where it has one.
    pub file: Option<String>,
}

/// Something that no volume known so far wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// What kind of thing it is.
    pub kind: OrphanKind,
    /// What tells it from the others of its kind.
    pub name: String,
    /// UID of the volume that it is of.
    pub volume_uid: Option<String>,
    /// What it is.
    pub what: String,
    /// What is told of a thing of this kind, whosever it is.
    hint: String,
    /// Its target, of a session.
    iqn: Option<String>,
    /// Its file, of a loop device.
    file: Option<String>,
    /// What takes it away.
    remove: String,
}

impl Suspect {
    /// What it is known by from one look to the next.
    pub fn key(&self) -> (OrphanKind, String) {
        (self.kind, self.name.clone())
    }

    /// Whether a volume of this node wants it.
    fn wanted_by(&self, record: &Record) -> bool {
        match self.kind {
            // By both: a volume finds its mapping by its name, and a name proves nothing.
            OrphanKind::Mapping | OrphanKind::Paths => {
                self.of(record) && self.name.contains(&record.uid)
            }
            OrphanKind::Link => self.name == record.link,
            OrphanKind::Session => self.iqn == record.iqn,
            OrphanKind::Loop => self.file == record.file,
        }
    }

    /// Whether it is a mapping of a volume, whatever it is called and on whatever node that is now.
    fn of(&self, record: &Record) -> bool {
        let mapping = matches!(self.kind, OrphanKind::Mapping | OrphanKind::Paths);
        mapping && self.volume_uid.as_ref() == Some(&record.uid)
    }

    /// The whole of it, by what the API server says of all NodeVolumes now; nothing where a volume of this node wants it after all.
    pub fn tell(self, records: &[Record], node: &str, since: String) -> Option<Orphan> {
        let here = |r: &&Record| r.node == node;
        if records.iter().filter(here).any(|r| self.wanted_by(r)) {
            return None;
        }
        let same = || records.iter().filter(|r| self.of(r));
        let remove = &self.remove;
        let (whose, next_step) = if let Some(r) = same().find(here) {
            let right = match self.kind {
                OrphanKind::Paths => names::paths_name(&r.uid),
                _ => names::mapping_name(&r.uid),
            };
            (
                format!(
                    "It is of NodeVolume {} of this node, and somebody gave it another name",
                    r.display
                ),
                format!(
                    "Give it its name back: dmsetup rename {} {right}",
                    self.name
                ),
            )
        } else if let Some(r) = same().next() {
            (
                format!(
                    "NodeVolume {} has its volume on node {} now",
                    r.display, r.node
                ),
                format!(
                    "Where this node was {} before, give it that name back. Else two nodes may write to one disk: end what uses it \
                     here, then: {remove}",
                    r.node
                ),
            )
        } else {
            let whose = match (&self.volume_uid, self.kind) {
                (Some(uid), _) => format!(
                    "It was made for the volume with UID {uid}, and no NodeVolume of the cluster has that: one was removed by force, or \
                     is of another cluster"
                ),
                _ => self.hint.clone(),
            };
            (
                whose,
                format!("If no guest is to use it any more: {remove}"),
            )
        };
        Some(Orphan {
            kind: self.kind,
            name: self.name,
            what: self.what,
            volume_uid: self.volume_uid,
            whose,
            next_step,
            since,
        })
    }
}

/// What no volume of this node wants, in a fixed order. Of sessions only those that open-iscsi's own tools cannot have made, and whose
/// disks nobody but our mappings uses: others' are none of our business.
pub fn suspects(found: &Belongings, here: &[Record]) -> Vec<Suspect> {
    let mappings = found.mappings.iter().map(|m| mapping(m, found));
    let links = found.links.iter().map(|(link, to)| Suspect {
        kind: OrphanKind::Link,
        name: link.clone(),
        volume_uid: None,
        what: format!("link {link} to {to}"),
        hint: "No NodeVolume of this node has this link. Numbers of devices are given anew: it may come to lead to another volume"
            .to_owned(),
        iqn: None,
        file: None,
        remove: format!("rm {link}"),
    });
    let ours: BTreeSet<_> = found
        .mappings
        .iter()
        .map(|m| m.path.trim_start_matches("/dev/"))
        .collect();
    let sessions = found.sessions.iter();
    let sessions = sessions.filter(|s| !s.recorded && s.users.iter().all(|u| ours.contains(&**u)));
    let sessions = sessions.map(|s| Suspect {
        kind: OrphanKind::Session,
        name: s.session.sid.to_string(),
        volume_uid: None,
        what: session(&s.iqn, &s.session),
        hint: "No NodeVolume of this node names its target. open-iscsi has no record of it, as its own tools make one, and no mount and no \
               mapping but cryptvol's uses its disks: probably it is cryptvol's"
            .to_owned(),
        iqn: Some(s.iqn.clone()),
        file: None,
        remove: format!("iscsiadm -m session -r {} -u", s.session.sid),
    });
    let wanted = |s: &Suspect| here.iter().any(|r| s.wanted_by(r));
    // What is below a volume's mapping is the volume's, whatever its record says of the source.
    let above = |l: &LoopDevice| {
        let mut above = found.mappings.iter().filter(|m| m.deps.contains(&l.dev));
        above.any(|m| wanted(&mapping(m, found)))
    };
    let loops = found.loops.iter().filter(|l| !above(l)).map(looped);
    let all = mappings.chain(links).chain(sessions).chain(loops);
    all.filter(|s| !wanted(s)).collect()
}

fn looped(l: &LoopDevice) -> Suspect {
    let LoopDevice { path, file, .. } = l;
    let used = match l.users.is_empty() {
        true => String::new(),
        false => format!(", used by {}", l.users.join(" and ")),
    };
    let name = file.rsplit('/').next().unwrap_or_default();
    Suspect {
        kind: OrphanKind::Loop,
        name: path.clone(),
        volume_uid: names::scratch_owner(name).map(str::to_owned),
        what: format!("loop device {path} over the file {file}{used}"),
        hint: "No NodeVolume of this node has this file, and the directory is cryptvol's: one was removed by force, or somebody tried something \
               out by hand"
            .to_owned(),
        iqn: None,
        file: Some(file.clone()),
        remove: format!("losetup -d {path} (the file stays)"),
    }
}

fn mapping(m: &Mapping, found: &Belongings) -> Suspect {
    let paths = m
        .uuid
        .strip_prefix(names::DM_UUID_PREFIX)
        .is_some_and(|u| u.starts_with("PATHS-"));
    let (kind, word) = match paths {
        true => (OrphanKind::Paths, "map of paths"),
        false => (OrphanKind::Mapping, "mapping"),
    };
    let below: Vec<_> = m
        .deps
        .iter()
        .map(|dev| match found.below.get(dev) {
            Some(Below {
                path,
                session: Some((iqn, s)),
            }) => format!("{path} of {}", session(iqn, s)),
            Some(Below { path, .. }) => path.clone(),
            None => format!("a device that is gone ({dev})"),
        })
        .collect();
    let on = match below.is_empty() {
        true => "nothing".to_owned(),
        false => below.join(" and "),
    };
    Suspect {
        kind,
        name: m.name.clone(),
        volume_uid: names::volume_of_mapping(&m.uuid).map(str::to_owned),
        what: format!("{word} {} ({}, UUID {}) on {on}", m.name, m.path, m.uuid),
        hint: "Its UUID names no volume: another version of cryptvol made it, or somebody by hand"
            .to_owned(),
        iqn: None,
        file: None,
        remove: removal(m),
    }
}

/// Takes a mapping away, with the layer of tags that authenticated sectors have below it.
fn removal(m: &Mapping) -> String {
    let (name, tags) = (&m.name, names::tags_name(&m.name));
    match &m.table {
        Some(table) if table.integrity.is_some() => {
            format!("dmsetup remove {name} && dmsetup remove {tags}")
        }
        // It may be all that is left of one.
        None if !m.name.starts_with(&names::paths_name("")) => {
            format!("dmsetup remove {name}, or {tags} where only that is there")
        }
        _ => format!("dmsetup remove {name}"),
    }
}

fn session(iqn: &str, session: &Session) -> String {
    let sid = session.sid;
    match &session.portal {
        Some(portal) => format!("session {sid} to {iqn} through {portal}"),
        None => format!("session {sid} to {iqn}"),
    }
}

/// What is to be told after a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is there, and was not, or was another.
    Found(Orphan),
    /// It was there.
    Gone(Orphan),
}

/// What changed from one list to the next.
pub fn changes(before: &[Orphan], now: &[Orphan]) -> Vec<Change> {
    let key = |o: &Orphan| (o.kind, o.name.clone());
    let gone = before
        .iter()
        .filter(|o| !now.iter().any(|n| key(n) == key(o)));
    let found = now.iter().filter(|n| !before.contains(n));
    gone.cloned()
        .map(Change::Gone)
        .chain(found.cloned().map(Change::Found))
        .collect()
}
