//! Who may have what: functions of the token review, the NodeVolume and the volume, nothing else.

use cryptvol_common::release::{Purpose, Request};
use cryptvol_crds::{
    EncryptedVolume, NodeVolume, names,
    v1alpha1::{DeletionPolicy, Desired},
};
use k8s_openapi::api::authentication::v1::TokenReviewStatus;

/// Extra of a bound token: the node of its pod.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// Extra of a bound token: its pod.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
/// Extra of a bound token: its pod's UID.
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// An agent, as its token proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Node that the token is bound to.
    pub node: String,
    /// Pod that the token is bound to.
    pub pod: String,
    /// UID of that pod.
    pub pod_uid: String,
}

/// Why nothing is given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The token is no good.
    #[error("the token is not accepted: {0}")]
    Token(String),
    /// The token was not made for key release.
    #[error("the token is not for the audience {}", names::KEY_RELEASE_AUDIENCE)]
    Audience,
    /// Another account.
    #[error("the token is not the node agent's but {0}'s")]
    Account(String),
    /// The token is not bound to a pod on a node.
    #[error("the token is not bound to a pod on a node ({0} is missing)")]
    Unbound(&'static str),
    /// No such NodeVolume, or another one by now.
    #[error("there is no such NodeVolume")]
    NoSuchVolume,
    /// The NodeVolume is another node's.
    #[error("the NodeVolume is not for node {0}")]
    OtherNode(String),
    /// The volume is not wanted there now.
    #[error("the volume shall not be attached on this node now: {0}")]
    NotWanted(&'static str),
}

impl Denied {
    /// A word for the audit record and metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Token(_) => "TokenInvalid",
            Self::Audience => "WrongAudience",
            Self::Account(_) => "WrongAccount",
            Self::Unbound(_) => "TokenNotBound",
            Self::NoSuchVolume => "NoSuchVolume",
            Self::OtherNode(_) => "OtherNode",
            Self::NotWanted(_) => "NotWanted",
        }
    }

    /// Whether the caller is unknown, rather than known and not allowed.
    pub fn is_unauthenticated(&self) -> bool {
        matches!(
            self,
            Self::Token(_) | Self::Audience | Self::Account(_) | Self::Unbound(_)
        )
    }
}

/// Who the caller is, by the review of its token. `namespace` is where the agent's service account lives.
///
/// # Errors
/// [`Denied`] for anything but a token of the agent's account, for our audience, bound to a pod and its node.
pub fn identify(review: &TokenReviewStatus, namespace: &str) -> Result<Caller, Denied> {
    if review.authenticated != Some(true) {
        let why = review.error.clone().unwrap_or_default();
        return Err(Denied::Token(why.chars().take(200).collect()));
    }
    let audiences = review.audiences.as_deref().unwrap_or_default();
    if !audiences.iter().any(|a| a == names::KEY_RELEASE_AUDIENCE) {
        return Err(Denied::Audience);
    }
    let user = review.user.as_ref();
    let name = user.and_then(|u| u.username.as_deref()).unwrap_or_default();
    if name
        != format!(
            "system:serviceaccount:{namespace}:{}",
            names::AGENT_SERVICE_ACCOUNT
        )
    {
        return Err(Denied::Account(name.chars().take(300).collect()));
    }
    let extra = |key: &'static str| {
        let values = user.and_then(|u| u.extra.as_ref()).and_then(|e| e.get(key));
        match values.map(Vec::as_slice) {
            Some([one]) if !one.is_empty() => Ok(one.clone()),
            _ => Err(Denied::Unbound(key)),
        }
    };
    Ok(Caller {
        node: extra(NODE_NAME)?,
        pod: extra(POD_NAME)?,
        pod_uid: extra(POD_UID)?,
    })
}

/// Whether the caller may have what it asks for, by the objects as they are now.
///
/// # Errors
/// [`Denied`] unless the NodeVolume is the one asked for, is the caller's node's, and its volume is wanted there now.
pub fn authorize(
    caller: &Caller,
    request: &Request,
    node_volume: Option<&NodeVolume>,
    volume: Option<&EncryptedVolume>,
) -> Result<(), Denied> {
    let nv = node_volume
        .filter(|nv| nv.metadata.uid.as_deref() == Some(request.uid.as_str()))
        .ok_or(Denied::NoSuchVolume)?;
    if nv.spec.node_name != caller.node {
        return Err(Denied::OtherNode(caller.node.clone()));
    }
    let reference = &nv.spec.volume_ref;
    let volume = volume
        .filter(|v| {
            v.metadata.uid.as_deref() == Some(reference.uid.as_str())
                && v.metadata.name.as_deref() == Some(reference.name.as_str())
                && v.metadata.namespace == nv.metadata.namespace
        })
        .ok_or(Denied::NotWanted("its EncryptedVolume is gone"))?;
    if nv.spec.ephemeral || volume.spec.source.ephemeral.is_some() {
        return Err(Denied::NotWanted(
            "its key is made on the node, and nobody has it",
        ));
    }
    let deleting = volume.metadata.deletion_timestamp.is_some();
    match (nv.spec.desired, request.purpose) {
        (Desired::Attached, _) => {
            if nv.metadata.deletion_timestamp.is_some() {
                return Err(Denied::NotWanted("its NodeVolume is being deleted"));
            }
            if deleting {
                return Err(Denied::NotWanted("its EncryptedVolume is being deleted"));
            }
            if is_key(request.purpose) && (nv.spec.suspended || volume.spec.suspended) {
                return Err(Denied::NotWanted("it is suspended"));
            }
            let wanted = &volume.spec.attachments;
            if !wanted.iter().any(|a| a.node_name == caller.node) {
                return Err(Denied::NotWanted(
                    "spec.attachments does not name this node",
                ));
            }
            Ok(())
        }
        // Erasing needs a login to the target and no key.
        (Desired::Erased, Purpose::ChapCredentials) => {
            if deleting && volume.spec.deletion_policy == DeletionPolicy::Erase {
                Ok(())
            } else {
                Err(Denied::NotWanted("its EncryptedVolume is not to be erased"))
            }
        }
        (Desired::Erased, Purpose::Passphrase | Purpose::NextPassphrase) => {
            Err(Denied::NotWanted("erasing needs no key"))
        }
        (Desired::Erased, Purpose::DiscoveryChapCredentials) => {
            Err(Denied::NotWanted("erasing needs no further portals"))
        }
        (Desired::Detached, _) => Err(Denied::NotWanted("it is being detached")),
    }
}

/// Whether what is asked for opens the volume.
fn is_key(purpose: Purpose) -> bool {
    match purpose {
        Purpose::Passphrase | Purpose::NextPassphrase => true,
        Purpose::ChapCredentials | Purpose::DiscoveryChapCredentials => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cryptvol_crds::v1alpha1::{Attachment, EncryptedVolumeSpec, NodeVolumeSpec, VolumeRef};
    use k8s_openapi::{
        api::authentication::v1::UserInfo, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp,
    };

    const NS: &str = "cryptvol-system";

    fn review() -> TokenReviewStatus {
        let extra = [
            (NODE_NAME, "node-1"),
            (POD_NAME, "agent-x"),
            (POD_UID, "pu"),
        ];
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![names::KEY_RELEASE_AUDIENCE.into()]),
            user: Some(UserInfo {
                username: Some("system:serviceaccount:cryptvol-system:cryptvol-node-agent".into()),
                extra: Some(
                    extra
                        .map(|(k, v)| (k.to_owned(), vec![v.to_owned()]))
                        .into(),
                ),
                ..UserInfo::default()
            }),
            error: None,
        }
    }

    #[test]
    fn only_the_agents_bound_token_identifies() {
        assert_eq!(identify(&review(), NS).unwrap().node, "node-1");
        let denied = |change: &dyn Fn(&mut TokenReviewStatus)| {
            let mut r = review();
            change(&mut r);
            identify(&r, NS).unwrap_err().word()
        };
        assert_eq!(denied(&|r| r.authenticated = Some(false)), "TokenInvalid");
        assert_eq!(denied(&|r| r.authenticated = None), "TokenInvalid");
        assert_eq!(denied(&|r| r.audiences = None), "WrongAudience");
        assert_eq!(
            denied(&|r| r.audiences = Some(vec!["https://kubernetes.default.svc".into()])),
            "WrongAudience"
        );
        for other in [
            "system:serviceaccount:other:cryptvol-node-agent",
            "system:serviceaccount:cryptvol-system:default",
            "system:node:node-1",
            "",
        ] {
            assert_eq!(
                denied(&|r| r.user.as_mut().unwrap().username = Some(other.into())),
                "WrongAccount"
            );
        }
        for key in [NODE_NAME, POD_NAME, POD_UID] {
            let extra = |r: &mut TokenReviewStatus| r.user.as_mut().unwrap().extra.clone().unwrap();
            assert_eq!(
                denied(&|r| {
                    let mut e = extra(r);
                    e.remove(key);
                    r.user.as_mut().unwrap().extra = Some(e);
                }),
                "TokenNotBound"
            );
            assert_eq!(
                denied(&|r| {
                    let mut e = extra(r);
                    e.insert(key.into(), vec!["a".into(), "b".into()]);
                    r.user.as_mut().unwrap().extra = Some(e);
                }),
                "TokenNotBound"
            );
        }
        assert_eq!(denied(&|r| r.user = None), "WrongAccount");
    }

    fn objects() -> (Caller, Request, NodeVolume, EncryptedVolume) {
        let caller = identify(&review(), NS).unwrap();
        let mut nv = NodeVolume::new(
            "v.node-1",
            NodeVolumeSpec {
                node_name: "node-1".into(),
                volume_ref: VolumeRef {
                    name: "v".into(),
                    uid: "vu".into(),
                },
                desired: Desired::Attached,
                ..NodeVolumeSpec::default()
            },
        );
        nv.metadata.namespace = Some("t".into());
        nv.metadata.uid = Some("nu".into());
        let mut ev = EncryptedVolume::new(
            "v",
            EncryptedVolumeSpec {
                attachments: vec![Attachment {
                    node_name: "node-1".into(),
                }],
                ..EncryptedVolumeSpec::default()
            },
        );
        ev.metadata.namespace = Some("t".into());
        ev.metadata.uid = Some("vu".into());
        let request = Request {
            namespace: "t".into(),
            name: "v.node-1".into(),
            uid: "nu".into(),
            purpose: Purpose::Passphrase,
            request_id: "r".into(),
        };
        (caller, request, nv, ev)
    }

    fn gone() -> Option<Time> {
        Some(Time(Timestamp::UNIX_EPOCH))
    }

    #[test]
    fn a_node_gets_a_key_only_for_an_attachment_that_is_wanted_there_now() {
        let (caller, request, nv, ev) = objects();
        assert_eq!(authorize(&caller, &request, Some(&nv), Some(&ev)), Ok(()));
        let denied =
            |change: &dyn Fn(&mut Caller, &mut Request, &mut NodeVolume, &mut EncryptedVolume)| {
                let (mut caller, mut request, mut nv, mut ev) = objects();
                change(&mut caller, &mut request, &mut nv, &mut ev);
                authorize(&caller, &request, Some(&nv), Some(&ev))
                    .unwrap_err()
                    .word()
            };
        assert_eq!(
            authorize(&caller, &request, None, Some(&ev)),
            Err(Denied::NoSuchVolume)
        );
        assert_eq!(
            authorize(&caller, &request, Some(&nv), None)
                .unwrap_err()
                .word(),
            "NotWanted"
        );
        assert_eq!(
            denied(&|_, r, _, _| r.uid = "another".into()),
            "NoSuchVolume"
        );
        assert_eq!(
            denied(&|_, _, nv, _| nv.metadata.uid = None),
            "NoSuchVolume"
        );
        assert_eq!(denied(&|c, _, _, _| c.node = "node-2".into()), "OtherNode");
        assert_eq!(
            denied(&|_, _, nv, _| nv.spec.node_name = "node-2".into()),
            "OtherNode"
        );
        assert_eq!(
            denied(&|_, _, nv, _| nv.spec.desired = Desired::Detached),
            "NotWanted"
        );
        assert_eq!(
            denied(&|_, _, nv, _| nv.metadata.deletion_timestamp = gone()),
            "NotWanted"
        );
        assert_eq!(
            denied(&|_, _, _, ev| ev.metadata.deletion_timestamp = gone()),
            "NotWanted"
        );
        assert_eq!(
            denied(&|_, _, _, ev| ev.metadata.uid = Some("a new one".into())),
            "NotWanted"
        );
        assert_eq!(
            denied(&|_, _, _, ev| ev.metadata.namespace = Some("elsewhere".into())),
            "NotWanted"
        );
        assert_eq!(denied(&|_, _, nv, _| nv.spec.suspended = true), "NotWanted");
        assert_eq!(denied(&|_, _, _, ev| ev.spec.suspended = true), "NotWanted");
        assert_eq!(
            denied(&|_, _, _, ev| ev.spec.attachments.clear()),
            "NotWanted"
        );
        assert_eq!(
            denied(&|_, _, _, ev| ev.spec.attachments[0].node_name = "node-2".into()),
            "NotWanted"
        );
    }

    #[test]
    fn erasing_gets_chap_credentials_and_never_a_key() {
        let (caller, mut request, mut nv, mut ev) = objects();
        nv.spec.desired = Desired::Erased;
        ev.metadata.deletion_timestamp = gone();
        ev.spec.deletion_policy = DeletionPolicy::Erase;
        ev.spec.attachments.clear();
        assert!(authorize(&caller, &request, Some(&nv), Some(&ev)).is_err());
        request.purpose = Purpose::ChapCredentials;
        assert_eq!(authorize(&caller, &request, Some(&nv), Some(&ev)), Ok(()));
        request.purpose = Purpose::DiscoveryChapCredentials;
        assert!(authorize(&caller, &request, Some(&nv), Some(&ev)).is_err());
        request.purpose = Purpose::ChapCredentials;
        ev.spec.deletion_policy = DeletionPolicy::Retain;
        assert!(authorize(&caller, &request, Some(&nv), Some(&ev)).is_err());
        nv.spec.desired = Desired::Detached;
        assert!(authorize(&caller, &request, Some(&nv), Some(&ev)).is_err());
    }
}
