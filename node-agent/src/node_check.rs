//! Whether this node can hold encrypted volumes: found by looking, shown as a condition of the Node, and told to the volumes.

use std::{rc::Rc, time::Duration};

use cryptvol_crds::{conditions::Reason, names};
use k8s_openapi::{
    api::core::v1::{Node, NodeCondition},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use crate::{
    host::probe::NodeCheck,
    worker::{
        pool::Pool,
        protocol::{Answer, Call},
    },
};

/// Time between two looks at a node that is fit.
const CALM: Duration = Duration::from_secs(300);
/// At one that is not, or could not be looked at or shown.
const SOON: Duration = Duration::from_secs(20);
/// Of one exchange with the API server.
const API: Duration = Duration::from_secs(10);

/// What the last look said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Fitness {
    /// Not looked yet.
    #[default]
    Unknown,
    /// All that is needed is there.
    Fit {
        /// What should be different all the same, for the node; mostly empty.
        remarks: String,
    },
    /// Something is missing.
    Unfit {
        /// The names of what is missing, for the volumes. Their message has little room and points to the node.
        lacks: String,
        /// What was found and what to do, for the node.
        why: String,
    },
}

/// What the node check says to a volume that is to be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave<'a> {
    /// Nothing stands against it.
    Given,
    /// The first look is not over.
    NotYet,
    /// It cannot be begun here.
    Refused {
        /// The names of what is missing.
        lacks: &'a str,
    },
}

impl Fitness {
    /// Whether the node was not looked at yet.
    pub fn is_unknown(&self) -> bool {
        *self == Self::Unknown
    }

    /// Whether a volume that is to be attached may be worked on. `attached` is what its status says, so it may be of before a boot, and then its
    /// disks are yet to be brought: where they are kept from multipathd (`excluded`), it waits as well until udev was told how to know them.
    pub fn leave(&self, attached: bool, excluded: bool) -> Leave<'_> {
        match self {
            Self::Unknown if !attached || excluded => Leave::NotYet,
            Self::Unfit { lacks, .. } if !attached => Leave::Refused { lacks },
            Self::Unknown | Self::Fit { .. } | Self::Unfit { .. } => Leave::Given,
        }
    }

    /// What a list of checks says.
    pub fn of(checks: &[NodeCheck]) -> Self {
        let missing: Vec<_> = checks.iter().filter(|c| !c.ok).collect();
        let said = |c: &&NodeCheck| {
            let detail = c.detail.trim_end_matches('.');
            format!("{}: {detail}. {}", c.name, c.next_step)
        };
        let all = |checks: &[&NodeCheck]| checks.iter().map(said).collect::<Vec<_>>().join(" ");
        if missing.is_empty() {
            let remarked: Vec<_> = checks.iter().filter(|c| !c.next_step.is_empty()).collect();
            return Self::Fit {
                remarks: all(&remarked),
            };
        }
        let lacks: Vec<_> = missing.iter().map(|c| c.name.as_str()).collect();
        Self::Unfit {
            lacks: format!("the node lacks {}", lacks.join(", ")),
            why: all(&missing),
        }
    }
}

/// Looks at the node again and again, shows and tells what was found. Before each look the volumes' disks are kept from multipathd, or are not
/// any more, as `exclude` has it: no disk is brought before the first look was told ([`Fitness::leave`]).
pub async fn watch(
    client: Client,
    node: String,
    pool: Rc<Pool>,
    exclude: bool,
    tell: watch::Sender<Fitness>,
) {
    loop {
        let settled = pool
            .call("node check", Call::ExcludeFromMultipathd(exclude))
            .await;
        let mut checks = match pool.call("node check", Call::Probe).await {
            Ok(Answer::Probed(checks)) => checks,
            Ok(_) => vec![],
            Err(error) => vec![NodeCheck {
                name: "worker".to_owned(),
                ok: false,
                detail: error.message,
                next_step: "See the agent's log on that node.".to_owned(),
            }],
        };
        if let Err(error) = settled {
            checks.push(not_settled(exclude, error.message));
        }
        let fitness = Fitness::of(&checks);
        tell.send_if_modified(|old| {
            let changed = *old != fitness;
            if changed {
                match &fitness {
                    Fitness::Unfit { why, .. } => {
                        warn!("this node cannot hold encrypted volumes: {why}")
                    }
                    Fitness::Fit { remarks } if !remarks.is_empty() => {
                        warn!("this node can hold encrypted volumes, but {remarks}")
                    }
                    _ => info!("this node can hold encrypted volumes"),
                }
                *old = fitness.clone();
            }
            changed
        });
        let shown = timeout(API, show(&client, &node, &fitness, &checks))
            .await
            .unwrap_or_else(|_| Err(kube::Error::Service("no answer in time".into())));
        if let Err(error) = &shown {
            warn!(%error, "the node's condition cannot be written");
        }
        let calm = matches!(fitness, Fitness::Fit { .. }) && shown.is_ok();
        sleep(if calm { CALM } else { SOON }).await;
    }
}

/// A node whose multipathd is not told holds volumes all the same.
fn not_settled(exclude: bool, detail: String) -> NodeCheck {
    let next_step = match exclude {
        true => {
            "Look at `multipathd show blacklist` on the node, exclude the disks by hand (examples/multipathd/cryptvol.conf), or start the agent \
             without --exclude-from-multipathd."
        }
        false => {
            "Remove /etc/multipath/conf.d/cryptvol-agent.conf on the node, then multipathd reconfigure."
        }
    };
    NodeCheck {
        name: "multipathd-exclusion".to_owned(),
        ok: true,
        detail,
        next_step: next_step.to_owned(),
    }
}

/// Writes condition and annotation, if they are not there as they should be.
async fn show(
    client: &Client,
    name: &str,
    fitness: &Fitness,
    checks: &[NodeCheck],
) -> kube::Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    let node = api.get(name).await?;
    let old = node
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .find(|c| c.type_ == names::NODE_CONDITION);
    let annotation = serde_json::to_string(checks).unwrap_or_default();
    let annotated = node
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(names::NODE_CHECK_ANNOTATION));
    let new = condition(fitness, old, Timestamp::now());
    if old.is_some_and(|old| same(old, &new)) && annotated == Some(&annotation) {
        return Ok(());
    }
    // Merged by the conditions' type: those of the kubelet stay.
    let patch = Patch::Strategic(json!({
        "metadata": { "annotations": { names::NODE_CHECK_ANNOTATION: annotation } },
        "status": { "conditions": [new] },
    }));
    let params = PatchParams {
        field_manager: Some(names::AGENT_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    api.patch_status(name, &params, &patch).await.map(drop)
}

fn condition(fitness: &Fitness, old: Option<&NodeCondition>, now: Timestamp) -> NodeCondition {
    let (status, reason, message) = match fitness {
        Fitness::Unknown => ("Unknown", Reason::InProgress, String::new()),
        Fitness::Fit { remarks } => {
            let there = "device-mapper, dm-crypt, iSCSI, udev and the kernel keyring are there";
            let message = match remarks.is_empty() {
                true => there.to_owned(),
                false => format!("{there}. {remarks}"),
            };
            ("True", Reason::AsDesired, message)
        }
        Fitness::Unfit { why, .. } => ("False", Reason::NodeUnfit, why.clone()),
    };
    let since = old
        .filter(|old| old.status == status)
        .and_then(|old| old.last_transition_time.clone());
    NodeCondition {
        type_: names::NODE_CONDITION.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.as_str().to_owned()),
        message: Some(message),
        last_transition_time: Some(since.unwrap_or(Time(now))),
        last_heartbeat_time: Some(Time(now)),
    }
}

fn same(a: &NodeCondition, b: &NodeCondition) -> bool {
    (&a.status, &a.reason, &a.message) == (&b.status, &b.reason, &b.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, ok: bool) -> NodeCheck {
        NodeCheck {
            name: name.into(),
            ok,
            detail: "not found".into(),
            next_step: if ok { "" } else { "Load it." }.into(),
        }
    }

    fn fit(remarks: &str) -> Fitness {
        Fitness::Fit {
            remarks: remarks.into(),
        }
    }

    #[test]
    fn an_unfit_node_names_what_is_missing_and_what_to_do() {
        assert_eq!(Fitness::of(&[check("a", true)]), fit(""));
        // What should be different makes no node unfit.
        let mut remark = check("multipathd", true);
        remark.next_step = "Exclude them.".into();
        let remarks = "multipathd: not found. Exclude them.";
        assert_eq!(Fitness::of(&[check("a", true), remark]), fit(remarks));
        let shown = condition(&fit(remarks), None, Timestamp::UNIX_EPOCH);
        assert_eq!(shown.status, "True");
        assert!(shown.message.unwrap().ends_with(remarks));
        let unfit = Fitness::of(&[
            check("dm-crypt", false),
            check("a", true),
            check("b", false),
        ]);
        let Fitness::Unfit { lacks, why } = unfit else {
            panic!()
        };
        assert_eq!(lacks, "the node lacks dm-crypt, b");
        assert_eq!(why, "dm-crypt: not found. Load it. b: not found. Load it.");
    }

    #[test]
    fn what_was_attached_before_a_boot_waits_where_its_disks_are_to_be_kept_from_multipathd() {
        let lacks = "the node lacks dm-crypt";
        let unfit = Fitness::of(&[check("dm-crypt", false)]);
        for (fitness, attached, excluded, leave) in [
            (&Fitness::Unknown, false, false, Leave::NotYet),
            (&Fitness::Unknown, false, true, Leave::NotYet),
            (&Fitness::Unknown, true, false, Leave::Given),
            (&Fitness::Unknown, true, true, Leave::NotYet),
            (&unfit, false, false, Leave::Refused { lacks }),
            (&unfit, false, true, Leave::Refused { lacks }),
            (&unfit, true, false, Leave::Given),
            (&unfit, true, true, Leave::Given),
        ] {
            let case = (fitness, attached, excluded);
            assert_eq!(fitness.leave(attached, excluded), leave, "{case:?}");
        }
        for (attached, excluded) in [(false, false), (false, true), (true, false), (true, true)] {
            assert_eq!(fit("").leave(attached, excluded), Leave::Given);
        }
    }

    #[test]
    fn a_multipathd_that_is_not_told_is_a_remark() {
        for exclude in [true, false] {
            let check = not_settled(exclude, "it does not answer".into());
            let Fitness::Fit { remarks } = Fitness::of(&[check]) else {
                panic!()
            };
            assert!(remarks.starts_with("multipathd-exclusion: it does not answer. "));
        }
    }

    #[test]
    fn an_unchanged_condition_is_the_same_whatever_the_time() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let first = condition(&fit(""), None, at(1));
        let second = condition(&fit(""), Some(&first), at(2));
        assert!(same(&first, &second));
        assert_eq!(second.last_transition_time, Some(Time(at(1))));
        let third = condition(&Fitness::of(&[check("x", false)]), Some(&second), at(3));
        assert!(!same(&second, &third));
        assert_eq!(third.last_transition_time, Some(Time(at(3))));
    }
}
