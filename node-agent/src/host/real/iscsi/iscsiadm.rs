//! The way for versions of open-iscsi whose requests are not known here: the host's own `iscsiadm`, in iscsid's mount
//! namespace. Without CHAP only: iscsiadm takes the secret as an argument or from its database on disk.

use std::process::{Command, Stdio};

use cryptvol_crds::conditions::Reason;

use super::{
    iscsid::Iscsid,
    request::{Code, Patience},
};
use crate::host::{
    Chap, Portal, StepError,
    real::{error::because, sysfs::SessionEntry},
};

/// Logs in.
///
/// # Errors
/// As for a login by request; `StepFailed` where CHAP is wanted.
pub fn login(
    iscsid: &Iscsid,
    iqn: &str,
    portal: &Portal,
    patience: Patience,
    chap: Option<&Chap>,
) -> Result<(), StepError> {
    if chap.is_some() {
        return Err(because(
            Reason::StepFailed,
            format!(
                "this open-iscsi ({}) is not known, and without knowing it the CHAP secret would have to lie on the node's disk: \
                 use a node with a version that is known (2.1.5 to 2.1.9), or a target without CHAP",
                iscsid.version.as_deref().unwrap_or("version not found")
            ),
        ));
    }
    let seconds = patience.seconds().to_string();
    // A record is needed before a login; making it and setting it are calls of their own.
    for step in [
        &["-o", "new"][..],
        &["-o", "update", "-n", "node.session.scan", "-v", "manual"],
        &[
            "-o",
            "update",
            "-n",
            "node.session.initial_login_retry_max",
            "-v",
            "1",
        ],
        &[
            "-o",
            "update",
            "-n",
            "node.conn[0].timeo.login_timeout",
            "-v",
            "10",
        ],
        &[
            "-o",
            "update",
            "-n",
            "node.session.timeo.replacement_timeout",
            "-v",
            &seconds,
        ],
        &["--login"],
    ] {
        match run(iscsid, &node(iqn, portal, step))? {
            Code::SUCCESS | Code::SESSION_EXISTS => {}
            code => return Err(code.of_login(iqn, portal, "this node")),
        }
    }
    Ok(())
}

/// Logs out and removes the record of the portal that the session was made through.
///
/// # Errors
/// `StepFailed`.
pub fn logout(iscsid: &Iscsid, iqn: &str, session: &SessionEntry) -> Result<(), StepError> {
    let code = run(
        iscsid,
        &[
            "-m".into(),
            "session".into(),
            "-r".into(),
            session.sid.to_string(),
            "--logout".into(),
        ],
    )?;
    if code != Code::SUCCESS && code != Code::SESSION_NOT_FOUND {
        return Err(because(
            Reason::StepFailed,
            format!("iscsiadm could not log out of {iqn}: {code}"),
        ));
    }
    // A record that is not there is as good as one that was removed.
    match &session.portal {
        Some(portal) => run(iscsid, &node(iqn, portal, &["-o", "delete"])).map(drop),
        None => Ok(()),
    }
}

fn node(iqn: &str, portal: &Portal, step: &[&str]) -> Vec<String> {
    ["-m", "node", "-T", iqn, "-p", &portal.to_string()]
        .into_iter()
        .chain(step.iter().copied())
        .map(str::to_owned)
        .collect()
}

fn run(iscsid: &Iscsid, args: &[String]) -> Result<Code, StepError> {
    // PID 1 stands for the host where iscsid itself cannot be seen.
    let namespace = format!("/proc/{}/ns/mnt", iscsid.pid.unwrap_or(1));
    let output = Command::new("nsenter")
        .arg(format!("--mount={namespace}"))
        .args(["--", "iscsiadm"])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| because(Reason::StepFailed, format!("running nsenter: {e}")))?;
    match output.status.code() {
        Some(code @ 0..=33) => Ok(Code(code)),
        _ => Err(because(
            Reason::StepFailed,
            format!(
                "iscsiadm on the host: {} {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            ),
        )),
    }
}
