//! Logins and sessions: who proves what, which portal is used, and whose session it is.

use super::*;

fn mutual(secret: &str, proof: &str) -> Value {
    json!({
        "username": "node", "password": secret,
        "target": {"username": "array", "password": proof},
    })
}

/// The kernel's sessions.
async fn sessions(ground: &Ground) -> Result<Vec<String>> {
    let names = ground.sh("ls /sys/class/iscsi_session").await?;
    Ok(names.split_whitespace().map(str::to_owned).collect())
}

async fn state(ground: &Ground) -> Result<Value> {
    Ok(ground.observe().await?["session"]["state"].clone())
}

async fn becomes(ground: &Ground, wanted: &str) -> Result<()> {
    for _ in 0..300 {
        if state(ground).await? == wanted {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    bail!("the session is {}", state(ground).await?)
}

/// SIGKILL: at its end iscsid sends SIGTERM to its whole process group, and that is the harness's.
const KILL_ISCSID: &str =
    "kill -KILL $(pidof iscsid); while pidof iscsid >/dev/null; do sleep 0.1; done";

#[tokio::test]
async fn a_target_proves_itself_or_is_left_alone() -> Result<()> {
    let mut ground = Ground::new("host-mutual").await?;
    let target = ground.target()?;
    let login = |chap: Value| json!({"Login": [target, false, chap]});
    let (secret, proof) = ("correct horse 12", "proof of array 1");
    ground.array.set_chap(IQN, "node", secret)?;

    // It has no secret of its own, then another one.
    let message = ground
        .refused(Reason::ChapRejected, login(mutual(secret, proof)))
        .await?;
    ensure!(message.contains("no CHAP account"), "{message}");
    ground
        .array
        .set_own_chap(IQN, "array", "proof of others1")?;
    let message = ground
        .refused(Reason::TargetNotAuthentic, login(mutual(secret, proof)))
        .await?;
    ensure!(!message.contains("proof of"), "{message}");
    ensure!(sessions(&ground).await?.is_empty(), "a session is left");
    // Its proof does not help a node that it does not know.
    ground.array.set_own_chap(IQN, "array", proof)?;
    ground
        .refused(
            Reason::ChapRejected,
            login(mutual("another horse 34", proof)),
        )
        .await?;
    ground.done(login(mutual(secret, proof))).await?;
    ground.done(ground.scan(1).await?).await?;
    let device = ground.observe().await?["device"]["id"].clone();
    let traces = ground
        .sh("find /etc/iscsi /var/lib/iscsi /run -xdev -type f -exec grep -laE 'correct horse|proof of' {} + ; true")
        .await?;
    ensure!(traces.is_empty(), "a secret lies in {traces}");
    ground.done(json!({"DeleteDevice": device})).await?;

    // Secrets that change while the session is there: iscsid goes on with the old ones, and a connection that breaks is
    // not made again. A new session has the new ones.
    let (new_secret, new_proof) = ("another horse 34", "proof of array 2");
    ground.array.set_chap(IQN, "node", new_secret)?;
    ground.array.set_own_chap(IQN, "array", new_proof)?;
    ensure!(state(&ground).await? == "LOGGED_IN");
    ground.array.power_off()?;
    becomes(&ground, "FAILED").await?;
    let refusals = |log: String| log.matches("Initiator failed authentication").count();
    let before = refusals(ground.node.log("iscsid"));
    ground.array.power_on().await?;
    for _ in 0..300 {
        if refusals(ground.node.log("iscsid")) > before {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let log = ground.node.log("iscsid");
    ensure!(refusals(log.clone()) > before, "iscsid says: {log}");
    ensure!(state(&ground).await? == "FAILED");
    ground.done(ground.logout().await?).await?;
    ensure!(sessions(&ground).await?.is_empty(), "a session is left");
    ground
        .refused(Reason::ChapRejected, login(mutual(secret, proof)))
        .await?;
    ground.done(login(mutual(new_secret, new_proof))).await?;
    ground.done(ground.logout().await?).await?;
    ensure!(sessions(&ground).await?.is_empty(), "a session is left");
    ground.work.passed()
}

#[tokio::test]
async fn the_first_portal_that_answers_is_used() -> Result<()> {
    let ground = Ground::new("host-portals").await?;
    let [first, second] = ground.array.portals();
    let ipv6 = ground.array.add_ipv6()?;
    ground
        .sh(&format!(
            "modprobe ipv6 && ip -6 addr add fd77::{:x}/64 dev vec0 nodad && ip -6 route add default via fd77::1 \
             && echo '{} array.example' >>/etc/hosts",
            ground.node.ip().octets()[3],
            ground.array.ip()
        ))
        .await?;
    let nobody = first.replace(":3260", ":3999");
    let named = "array.example:3260".to_owned();
    for (cut, portals, used) in [
        (None, [&first, &second], &first),
        (None, [&second, &first], &second),
        (None, [&nobody, &second], &second),
        (None, [&nobody, &named], &first),
        (None, [&nobody, &ipv6], &ipv6),
        (Some(&first), [&first, &second], &second),
    ] {
        if let Some(portal) = cut {
            ground.array.cut_portal(portal, true)?;
        }
        let all = portals
            .iter()
            .map(|p| Ok(ground.target_at(p, IQN)?["portals"][0].clone()))
            .collect::<Result<Vec<_>>>()?;
        let target = json!({"portals": all, "iqn": IQN});
        ground.done(json!({"Login": [target, false, null]})).await?;
        ground.done(ground.scan(1).await?).await?;
        let observed = ground.observe().await?;
        let expected = ground.target_at(used, IQN)?["portals"][0].clone();
        ensure!(
            observed["session"]["portal"] == expected,
            "{portals:?}: {observed}"
        );
        // There is one already, whatever portal is named first.
        let turned = json!({"portals": all.iter().rev().collect::<Vec<_>>(), "iqn": IQN});
        ground.done(json!({"Login": [turned, false, null]})).await?;
        ensure!(sessions(&ground).await?.len() == 1, "a second session");
        let device = observed["device"]["id"].clone();
        ground.done(json!({"DeleteDevice": device})).await?;
        ground.done(ground.logout().await?).await?;
        ensure!(sessions(&ground).await?.is_empty(), "a session is left");
        if let Some(portal) = cut {
            ground.array.cut_portal(portal, false)?;
        }
    }
    // None answers: each is told of.
    let all = [&nobody, &first.replace(":3260", ":3998")];
    let all = all
        .iter()
        .map(|p| Ok(ground.target_at(p, IQN)?["portals"][0].clone()))
        .collect::<Result<Vec<_>>>()?;
    let message = ground
        .refused(
            Reason::PortalUnreachable,
            json!({"Login": [{"portals": all, "iqn": IQN}, false, null]}),
        )
        .await?;
    ensure!(
        message.contains(":3999") && message.contains(":3998"),
        "{message}"
    );
    ground.work.passed()
}

#[tokio::test]
async fn peer_failure_08_a_session_goes_with_its_last_disk_and_outlives_iscsid() -> Result<()> {
    let mut ground = Ground::new("host-session").await?;
    ground.array.create_lun(IQN, 2, 64 * MIB)?;
    let target = ground.target()?;
    let first = ground.device().await?;
    ground.done(ground.scan(2).await?).await?;
    let second = ground
        .done(json!({"Observe": {
            "source": {"Iscsi": {"target": target, "lun": 2}}, "mapping_name": "none", "link": LINK,
        }}))
        .await?["device"]["id"]
        .clone();
    let other = second["path"].as_str().context("path")?.to_owned();

    // Somebody has the second disk open: it stays, and so does the session.
    ground
        .sh(&format!(
            "mkfs.ext4 -q {other} && mkdir -p /run/theirs && mount {other} /run/theirs"
        ))
        .await?;
    ground
        .refused(Reason::DeviceBusy, json!({"DeleteDevice": second}))
        .await?;
    ground.done(json!({"DeleteDevice": first})).await?;
    ground.done(ground.logout().await?).await?;
    ensure!(state(&ground).await? == "LOGGED_IN");

    // iscsid anew: it finds the session in the kernel, and mends it after the portal was away.
    ground.sh(KILL_ISCSID).await?;
    ensure!(state(&ground).await? == "LOGGED_IN");
    ground
        .refused(
            Reason::StepFailed,
            json!({"Login": [ground.target_at(&ground.array.portal(), "iqn.2026-11.dev.cryptvol:absent")?, false, null]}),
        )
        .await?;
    ground.sh("iscsid </dev/null >/dev/null 2>&1").await?;
    ground.array.power_off()?;
    becomes(&ground, "FAILED").await?;
    ground.array.power_on().await?;
    becomes(&ground, "LOGGED_IN").await?;
    ground
        .sh("echo kept >/run/theirs/file && sync -f /run/theirs && echo 3 >/proc/sys/vm/drop_caches && grep kept /run/theirs/file")
        .await?;

    // It hangs: whoever needs it is told so, others go on.
    ground.sh("kill -STOP $(pidof iscsid)").await?;
    let absent = ground.target_at(&ground.array.portal(), "iqn.2026-11.dev.cryptvol:absent")?;
    let message = ground
        .refused(
            Reason::DeadlineExceeded,
            json!({"Login": [absent, false, null]}),
        )
        .await?;
    ensure!(message.contains("iscsid"), "{message}");
    let again = ground.device().await?;
    ensure!(again["wwid"] == first["wwid"], "{again}");
    ground.done(json!({"DeleteDevice": again})).await?;
    ground.sh("kill -CONT $(pidof iscsid)").await?;

    ground.sh("umount /run/theirs").await?;
    ground.done(json!({"DeleteDevice": second})).await?;
    ground.done(ground.logout().await?).await?;
    ensure!(sessions(&ground).await?.is_empty(), "a session is left");
    ground.work.passed()
}
