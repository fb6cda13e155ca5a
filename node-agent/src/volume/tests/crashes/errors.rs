//! Each call of a way fails, by each of its errors.

use std::collections::BTreeSet;

use cryptvol_crds::conditions::Reason;

use super::{super::lab::*, judge::*, ways::ways};

/// What each call can fail with, as `host::Host` and the office say it, from the errno tables of the kernel, iscsid's codes
/// and the operator's answers.
fn errors_of(call: &str) -> &'static [Reason] {
    use Reason as R;
    match call {
        "observe" => &[R::StepFailed, R::DeadlineExceeded],
        "login" => &[
            R::PortalUnreachable,
            R::TargetNotFound,
            R::ChapRejected,
            R::TargetNotAuthentic,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "scan" => &[R::LunNotFound, R::DeadlineExceeded, R::StepFailed],
        "discover" => &[
            R::DiscoveryRejected,
            R::DiscoveryFailed,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "gather" => &[
            R::WwidMismatch,
            R::SizeMismatch,
            R::DeviceBusy,
            R::NotOurs,
            R::MultipathUnsupported,
            R::KernelModuleMissing,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "read-header" => &[
            R::DeviceUnreadable,
            R::WwidMismatch,
            R::SizeMismatch,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "format" => &[
            R::DeviceNotBlank,
            R::ForeignSignature,
            R::HeaderMismatch,
            R::KeyDoesNotOpen,
            R::DeviceUnreadable,
            R::WwidMismatch,
            R::DeviceBusy,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "open" => &[
            R::KeyDoesNotOpen,
            R::DeviceNotBlank,
            R::ForeignSignature,
            R::HeaderMismatch,
            R::WwidMismatch,
            R::DeviceUnreadable,
            R::NotOurs,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "backup-header" => &[
            R::HeaderBackupUnsupported,
            R::HeaderMismatch,
            R::KeyDoesNotOpen,
            R::DeviceUnreadable,
            R::WwidMismatch,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "restore-header" => &[
            R::HeaderBackupInvalid,
            R::HeaderBackupUnsupported,
            R::ForeignSignature,
            R::HeaderMismatch,
            R::DeviceBusy,
            R::SizeMismatch,
            R::WwidMismatch,
            R::DeviceUnreadable,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "initialise" => &[
            R::DeviceBusy,
            R::DeviceUnreadable,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "link" | "unlink" | "name" => &[R::NotOurs, R::DeadlineExceeded, R::StepFailed],
        "close" => &[
            R::DeviceBusy,
            R::NotOurs,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "make-file" | "remove-file" => &[R::FileNotUsable, R::DeadlineExceeded, R::StepFailed],
        "attach-file" => &[
            R::FileNotUsable,
            R::DeviceInUse,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "lengthen-file" => &[
            R::FileNotUsable,
            R::FileSystemFull,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "grow" | "resume" => &[
            R::KeyDoesNotOpen,
            R::SizeMismatch,
            R::HeaderMismatch,
            R::WwidMismatch,
            R::DeviceUnreadable,
            R::NotOurs,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "suspend" => &[R::NotOurs, R::DeadlineExceeded, R::StepFailed],
        "sample" => &[
            R::PlaintextOnDisk,
            R::DeviceUnreadable,
            R::WwidMismatch,
            R::SizeMismatch,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "add-key-slot" => &[
            R::KeyDoesNotOpen,
            R::HeaderMismatch,
            R::NoFreeKeySlot,
            R::DeviceUnreadable,
            R::WwidMismatch,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "drop-key-slots" => &[
            R::KeyDoesNotOpen,
            R::HeaderMismatch,
            R::DeviceUnreadable,
            R::WwidMismatch,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "header-record" => &[
            R::HeaderRecordUnusable,
            R::HeaderBackupUnsupported,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "chap release" => &[
            R::KeyReleaseUnavailable,
            R::KeyReleaseRefused,
            R::ChapSecretInvalid,
        ],
        "delete-device" => &[R::DeviceBusy, R::DeadlineExceeded, R::StepFailed],
        "logout" => &[R::DeadlineExceeded, R::StepFailed],
        "erase" | "clear-header" => &[
            R::HeaderMismatch,
            R::DeviceUnreadable,
            R::WwidMismatch,
            R::DeviceBusy,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "discovery chap release" => &[
            R::KeyReleaseUnavailable,
            R::KeyReleaseRefused,
            R::ChapSecretInvalid,
        ],
        "key release" => &[
            R::KeyReleaseUnavailable,
            R::KeyReleaseRefused,
            R::KeyServiceUnavailable,
            R::KeyNotFound,
            R::KeyUnusable,
            R::RoleMissing,
            R::CredentialsExpired,
        ],
        "status write" => &[R::StepFailed],
        other => panic!("no errors are known of {other:?}"),
    }
}

#[test]
fn each_call_failing_by_each_of_its_errors_once_and_twice_converges() {
    let mut tried = 0;
    let mut met = BTreeSet::new();
    for way in ways() {
        let names = {
            let lab = prepared(way);
            let begin = lab.names.borrow().len();
            lab.want(1, way.desired);
            lab.settle(1);
            let mut names = lab.names.borrow()[begin..].to_vec();
            names.retain(|n| n.starts_with("before ") || n.starts_with("after "));
            names.sort();
            names.dedup();
            names
        };
        for name in &names {
            let call = name.split_once(' ').unwrap().1;
            met.insert(call.to_owned());
            for reason in errors_of(call) {
                for times in 1..=2 {
                    let lab = prepared(way);
                    *lab.next_faults.borrow_mut() =
                        vec![(name.clone(), Fault::Fail(*reason)); times];
                    lab.want(1, way.desired);
                    // A status that could not be written looks like rest.
                    for _ in 0..=times {
                        lab.settle(1);
                    }
                    for _ in 0..times {
                        if call == "sample" && way.stops.is_none() {
                            take_note(&lab);
                        }
                    }
                    for _ in 0..times {
                        if !judge(way, &lab, &[]) {
                            // Only a format of which nobody knows how far it got.
                            assert!(call == "format" || call == "open", "{name} {reason}");
                            allow_once_more(&lab);
                        }
                    }
                    let stops = way.stops.map(Reason::as_str);
                    assert_eq!(lab.reason(1).as_deref(), stops, "{name} {reason}");
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 500, "{tried}");
    for (call, _) in documented() {
        assert!(met.contains(&call), "no way comes by {call}");
    }
}

/// A sample that is not as it should be closes for good what is to be closed: a person takes note of it by a suspension.
fn take_note(lab: &Lab) {
    let broken = lab.status(1).proof.is_some_and(|p| !p.holds);
    if broken && lab.volume(1).spec.fail_closed {
        for suspended in [true, false] {
            lab.change(1, |s| s.suspended = suspended);
            lab.settle(1);
        }
    }
}

/// The calls of `host::Host` that a volume's way may come by, with the reasons that its documentation names.
fn documented() -> Vec<(String, Vec<Reason>)> {
    let mut calls: Vec<(String, Vec<Reason>)> = Vec::new();
    let (mut reasons, mut errors) = (Vec::new(), false);
    for line in include_str!("../../../host/mod.rs").lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            errors |= text.trim() == "# Errors";
            // What is between a pair of backquotes.
            for word in text.split('`').skip(1).step_by(2).filter(|_| errors) {
                reasons.extend(Reason::parse(word));
                let same = word.replace('_', "-");
                let of = calls.iter().find(|(call, _)| *call == same);
                reasons.extend(of.map(|(_, of)| of.clone()).unwrap_or_default());
            }
        } else if let Some(text) = line.strip_prefix("fn ") {
            let name = text.split('(').next().unwrap_or_default();
            calls.push((name.replace('_', "-"), std::mem::take(&mut reasons)));
            errors = false;
        }
    }
    // Asked of the whole node, not on a volume's way.
    calls.retain(|(call, _)| call != "belongings");
    calls
}

#[test]
fn the_table_has_each_error_that_a_call_is_documented_to_have() {
    let calls = documented();
    assert!(calls.len() > 25, "{calls:?}");
    let of = |name: &str| {
        calls
            .iter()
            .find(|(call, _)| call == name)
            .unwrap()
            .1
            .clone()
    };
    assert!(of("login").contains(&Reason::TargetNotAuthentic));
    assert!(of("resume").contains(&Reason::SizeMismatch), "as of grow");
    for (call, reasons) in &calls {
        for reason in reasons {
            assert!(errors_of(call).contains(reason), "{call}: {reason}");
        }
    }
}
