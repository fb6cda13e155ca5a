//! What is worth an Event: what changed between two statuses, never a state that lasts.

use std::collections::BTreeSet;

use cryptvol_crds::{
    conditions::{
        ENCRYPTION_PROVEN, HEADER_BACKED_UP, KEY_ROTATED, PATHS_HEALTHY, PORTALS_DISCOVERED, READY,
        Reason, get, is_true,
    },
    paths::is_down,
    v1alpha1::{EncryptedVolumeStatus, PermitState},
};

use super::second_copy;

/// One Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Whether it is a warning.
    pub warning: bool,
    /// One word.
    pub reason: String,
    /// What was being done.
    pub action: &'static str,
    /// A sentence.
    pub text: String,
}

/// The Events of a change.
pub fn between(old: &EncryptedVolumeStatus, new: &EncryptedVolumeStatus) -> Vec<Note> {
    let mut notes = vec![];
    let mut note = |warning, reason: &str, action, text: String| {
        notes.push(Note {
            warning,
            reason: reason.to_owned(),
            action,
            text,
        });
    };
    if let (None, Some(key)) = (&old.key, &new.key) {
        let text = format!("key {} in KeyService {}", key.id, key.key_service_name);
        note(false, "KeyReady", "PrepareKey", text);
    }
    let spent = |s: &EncryptedVolumeStatus| {
        s.format_permit
            .as_ref()
            .filter(|p| p.state != PermitState::Issued)
            .and_then(|p| p.spent_by.clone())
    };
    if let (None, Some(node)) = (spent(old), spent(new)) {
        let text = format!("node {node} spent the format permit and writes the LUKS header");
        note(false, "Formatting", "Format", text);
    }
    if let (None, Some(receipt)) = (&old.erased, &new.erased) {
        let text = format!(
            "node {} wiped {} key slots and found none left",
            receipt.node_name, receipt.key_slots_wiped
        );
        note(false, "Erased", "Erase", text);
    }
    if old.data_lost != new.data_lost {
        let text = "the volume's random key went with the node's kernel (a restart of the node is the usual cause), and the data with it: \
                    it begins anew with another key";
        note(true, "DataLost", "Attach", text.to_owned());
    }
    let refused = |s: &EncryptedVolumeStatus| {
        let error = s.last_error.clone();
        let of_grow = [Reason::QuotaExceeded, Reason::GrowUnsupported].map(Reason::as_str);
        error.filter(|e| of_grow.contains(&e.reason.as_str()))
    };
    if let Some(error) = refused(new).filter(|_| is_true(&new.conditions, READY))
        && refused(old).is_none_or(|before| before.message != error.message)
    {
        note(true, &error.reason, "Grow", error.message);
    }
    if let (None, Some(rotation)) = (&old.rotation, &new.rotation) {
        let text = format!(
            "key version {} is to replace key {}",
            rotation.version, rotation.former_key_id
        );
        note(false, "KeyRotationBegun", "RotateKey", text);
    }
    if new.header_backup.is_some() && new.header_backup != old.header_backup {
        let key = new.key.as_ref().map_or("", |k| &k.id);
        let text = format!("a backup of the header is on record, sealed under key {key}");
        note(false, "HeaderBackedUp", "BackUpHeader", text);
    }
    let copy = |s: &EncryptedVolumeStatus| {
        let now = get(&s.conditions, HEADER_BACKED_UP).cloned();
        now.filter(|_| second_copy::is_told(s))
    };
    match (copy(old), copy(new)) {
        (before, Some(now)) if before.as_ref().is_none_or(|b| b.reason != now.reason) => {
            note(true, &now.reason, "KeepHeader", now.message);
        }
        (Some(_), None) => {
            if let Some(secret) = &new.header_secret {
                let text = format!(
                    "the header's second copy is secret {} of the key manager",
                    secret.id
                );
                note(false, "HeaderCopyKept", "KeepHeader", text);
            }
        }
        _ => {}
    }
    if let (None, Some(_)) = (&old.header_restore, &new.header_restore) {
        let text = "the header is to be written anew from its backup, where it does not open";
        note(false, "HeaderRestoreOrdered", "RestoreHeader", text.into());
    }
    if new.header_restored.is_some() && new.header_restored != old.header_restored {
        let text = "the volume was opened after its header was restored";
        note(false, "HeaderRestored", "RestoreHeader", text.into());
    }
    let rotated = |s: &EncryptedVolumeStatus| get(&s.conditions, KEY_ROTATED).cloned();
    let change = rotated(new).filter(|n| rotated(old).is_none_or(|o| o.reason != n.reason));
    if let Some(now) = change {
        match Reason::parse(&now.reason) {
            Some(Reason::AsDesired) => note(false, "KeyRotated", "RotateKey", now.message),
            Some(r) if !r.next_step().is_empty() => {
                note(true, &now.reason, "RotateKey", now.message);
            }
            _ => {}
        }
    }
    let proof = |s: &EncryptedVolumeStatus| get(&s.conditions, ENCRYPTION_PROVEN).cloned();
    let change = proof(new).filter(|n| proof(old).is_none_or(|o| o.status != n.status));
    match change {
        // Events of one reason are counted together under the first one's text: what it was says the Event of `Ready`.
        Some(now) if now.status == "False" => note(
            true,
            "EncryptionNotProven",
            "Prove",
            "what lies between the link and the disk is not as it should be: see the condition EncryptionProven".into(),
        ),
        Some(now) if now.status == "True" && proof(old).is_some_and(|o| o.status == "False") => {
            note(
                false,
                "EncryptionProven",
                "Prove",
                "the volume is as it should be again".into(),
            );
        }
        _ => {}
    }
    for told in [paths(old, new), discovery(old, new)].into_iter().flatten() {
        note(told.warning, &told.reason, told.action, told.text);
    }
    let ready = |s: &EncryptedVolumeStatus| is_true(&s.conditions, READY);
    let word = |s: &EncryptedVolumeStatus| get(&s.conditions, READY).map(|c| c.reason.clone());
    if ready(new) && !ready(old) {
        let text = get(&new.conditions, READY).map(|c| c.message.clone());
        note(false, "Attached", "Attach", text.unwrap_or_default());
    } else if let Some(now) = word(new).filter(|w| Some(w) != word(old).as_ref()) {
        match Reason::parse(&now) {
            Some(Reason::Detached) if word(old).is_some() => {
                note(
                    false,
                    "Detached",
                    "Detach",
                    "the volume is off its node".into(),
                );
            }
            Some(r) if !r.next_step().is_empty() => {
                let text = get(&new.conditions, READY).map(|c| c.message.clone());
                let warning = r != Reason::Initialising;
                note(warning, &now, "Reconcile", text.unwrap_or_default());
            }
            _ => {}
        }
    }
    notes
}

/// Of several paths: one went or came while others are missing, I/O waited too long for one, or all are back. How a path that is down describes itself tells nothing
/// new.
fn paths(old: &EncryptedVolumeStatus, new: &EncryptedVolumeStatus) -> Option<Note> {
    let health = |s: &EncryptedVolumeStatus| get(&s.conditions, PATHS_HEALTHY).cloned();
    let (before, now) = (health(old), health(new)?);
    let was_bad = before.as_ref().is_some_and(|c| c.status == "False");
    let other = before.is_none_or(|c| c.reason != now.reason) || down(old) != down(new);
    let (warning, reason, text) = match now.status.as_str() {
        "False" if other => (
            true,
            now.reason,
            "not all paths to the disk work: the condition PathsHealthy names those that do not",
        ),
        "True" if was_bad => (
            false,
            PATHS_HEALTHY.to_owned(),
            "all paths to the disk work again",
        ),
        _ => return None,
    };
    Some(Note {
        warning,
        reason,
        action: "WatchPaths",
        text: text.to_owned(),
    })
}

/// The array told of other portals than before, or could not be asked any more. Events of one reason are counted together under the first one's
/// text, so which portals is said by the condition.
fn discovery(old: &EncryptedVolumeStatus, new: &EncryptedVolumeStatus) -> Option<Note> {
    let of = |s: &EncryptedVolumeStatus| get(&s.conditions, PORTALS_DISCOVERED).cloned();
    let (before, now) = (of(old), of(new)?);
    let before = before.as_ref();
    let (warning, reason, text) = match now.status.as_str() {
        "False" if before.is_none_or(|c| c.reason != now.reason) => (
            true,
            now.reason,
            "the array tells of no further portals, and the named ones are used: the condition PortalsDiscovered says why",
        ),
        "True" if before.is_none_or(|c| c.message != now.message) => (
            false,
            PORTALS_DISCOVERED.to_owned(),
            "the array told of its portals: the condition PortalsDiscovered names those that are used, and those that are not and why",
        ),
        _ => return None,
    };
    Some(Note {
        warning,
        reason,
        action: "DiscoverPortals",
        text: text.to_owned(),
    })
}

/// The paths that do not work: node and portal.
fn down(status: &EncryptedVolumeStatus) -> BTreeSet<(&str, &str)> {
    status
        .attachments
        .iter()
        .flat_map(|a| a.paths.iter().map(move |p| (a.node_name.as_str(), p)))
        .filter(|(_, p)| is_down(p))
        .map(|(node, p)| (node, p.portal.as_str()))
        .collect()
}
