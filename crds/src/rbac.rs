//! What each component may do in the API server, in terms of the API's own types. The chart's roles are generated from
//! this, so that a renamed kind or a new subresource cannot leave a role behind.

use k8s_openapi::api::{
    authentication::v1::TokenReview,
    coordination::v1::Lease,
    core::v1::{Namespace, Node, Secret},
    events::v1::Event,
    rbac::v1::PolicyRule,
};
use kube::Resource;

use crate::{EncryptedVolume, EncryptionClass, KeyService, NodeVolume};

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "update", "patch", "delete"];

/// Where the rules of a role hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In every namespace, and for what has none.
    Cluster,
    /// In the namespace of the chart's release.
    Release,
    /// In the namespace of this name.
    Namespace(&'static str),
}

/// Where Events on objects without a namespace lie.
const EVENTS_OF_NODES: &str = "default";

/// The rules of one role.
#[derive(Clone, Debug)]
pub struct Role {
    /// Name of the role, and of the service account that it is bound to where there is one.
    pub name: &'static str,
    /// What the role is for, in one sentence.
    pub purpose: &'static str,
    /// Where the rules hold.
    pub scope: Scope,
    /// The built-in roles that this one becomes part of; empty for a role that is bound to a service account.
    pub aggregate_to: &'static [&'static str],
    /// The rules.
    pub rules: Vec<PolicyRule>,
}

/// All roles of the chart.
pub fn roles() -> Vec<Role> {
    vec![
        operator(),
        operator_namespaced(),
        agent(),
        agent_events(),
        edit(),
        view(),
    ]
}

fn operator() -> Role {
    Role {
        name: crate::names::OPERATOR_SERVICE_ACCOUNT,
        purpose: "reads what users wrote, hands work to the agents, reports back",
        scope: Scope::Cluster,
        aggregate_to: &[],
        rules: vec![
            // `patch` sets and removes the finalizer; users own the spec.
            rule::<EncryptedVolume>(&["get", "list", "watch", "patch"]),
            on::<EncryptedVolume>("status", &["patch"]),
            // An owner reference with blockOwnerDeletion asks for this where OwnerReferencesPermissionEnforcement is on.
            on::<EncryptedVolume>("finalizers", &["update"]),
            // Server-side apply makes and changes it.
            rule::<NodeVolume>(&[READ, &["create", "patch", "delete"]].concat()),
            rule::<KeyService>(READ),
            on::<KeyService>("status", &["patch"]),
            rule::<EncryptionClass>(READ),
            // Credentials and CHAP secrets lie in the users' namespaces.
            rule::<Secret>(READ),
            rule::<Node>(READ),
            // Whether a namespace is being deleted decides how a volume in it can go.
            rule::<Namespace>(&["get"]),
            rule::<TokenReview>(&["create"]),
            rule::<Event>(&["create", "patch"]),
        ],
    }
}

fn operator_namespaced() -> Role {
    Role {
        name: crate::names::OPERATOR_SERVICE_ACCOUNT,
        purpose: "keeps the lease by which one replica reconciles",
        scope: Scope::Release,
        aggregate_to: &[],
        rules: vec![rule::<Lease>(&["get", "create", "update"])],
    }
}

fn agent() -> Role {
    Role {
        name: crate::names::AGENT_SERVICE_ACCOUNT,
        purpose: "reads its node's volumes and reports on them; an admission policy narrows writes to its own node",
        scope: Scope::Cluster,
        aggregate_to: &[],
        rules: vec![
            rule::<NodeVolume>(READ),
            on::<NodeVolume>("status", &["patch"]),
            rule::<Node>(&["get"]),
            on::<Node>("status", &["patch"]),
        ],
    }
}

fn agent_events() -> Role {
    Role {
        name: crate::names::AGENT_SERVICE_ACCOUNT,
        purpose: "tells of its node by Events; those on Nodes lie in this namespace, and an admission policy narrows them to its own node",
        scope: Scope::Namespace(EVENTS_OF_NODES),
        aggregate_to: &[],
        rules: vec![rule::<Event>(&["create"])],
    }
}

fn edit() -> Role {
    Role {
        name: "cryptvol-edit",
        purpose: "lets those who may edit a namespace make and change encrypted volumes",
        scope: Scope::Cluster,
        aggregate_to: &["admin", "edit"],
        rules: vec![rule::<EncryptedVolume>(WRITE)],
    }
}

fn view() -> Role {
    Role {
        name: "cryptvol-view",
        purpose: "lets those who may view a namespace see encrypted volumes and how they fare",
        scope: Scope::Cluster,
        aggregate_to: &["admin", "edit", "view"],
        rules: vec![
            rule::<EncryptedVolume>(READ),
            rule::<NodeVolume>(READ),
            rule::<EncryptionClass>(READ),
            rule::<KeyService>(READ),
        ],
    }
}

fn rule<K: Resource<DynamicType = ()>>(verbs: &[&str]) -> PolicyRule {
    resource::<K>(K::plural(&()).into_owned(), verbs)
}

fn on<K: Resource<DynamicType = ()>>(subresource: &str, verbs: &[&str]) -> PolicyRule {
    resource::<K>(format!("{}/{subresource}", K::plural(&())), verbs)
}

fn resource<K: Resource<DynamicType = ()>>(name: String, verbs: &[&str]) -> PolicyRule {
    PolicyRule {
        api_groups: Some(vec![K::group(&()).into_owned()]),
        resources: Some(vec![name]),
        verbs: verbs.iter().map(|&v| v.to_owned()).collect(),
        ..PolicyRule::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(role: &Role, group: &str, resource: &str) -> Vec<String> {
        let has = |list: &Option<Vec<String>>, word: &str| {
            list.as_ref().is_some_and(|l| l.iter().any(|x| x == word))
        };
        role.rules
            .iter()
            .filter(|r| has(&r.api_groups, group) && has(&r.resources, resource))
            .flat_map(|r| r.verbs.clone())
            .collect()
    }

    #[test]
    fn an_agent_sees_no_secret_and_writes_nothing_but_status() {
        let agent = agent();
        assert!(allowed(&agent, "", "secrets").is_empty());
        assert_eq!(allowed(&agent, "cryptvol.dev", "nodevolumes"), READ);
        assert_eq!(
            allowed(&agent, "cryptvol.dev", "nodevolumes/status"),
            ["patch"]
        );
        assert!(allowed(&agent, "events.k8s.io", "events").is_empty());
        let events = agent_events();
        assert_eq!(events.scope, Scope::Namespace("default"));
        assert_eq!(allowed(&events, "events.k8s.io", "events"), ["create"]);
        assert_eq!(events.rules.len(), 1);
    }

    #[test]
    fn no_role_has_a_wildcard() {
        for role in roles() {
            for rule in &role.rules {
                let all = [&rule.api_groups, &rule.resources, &Some(rule.verbs.clone())];
                assert!(
                    all.into_iter().flatten().flatten().all(|word| word != "*"),
                    "{}",
                    role.name
                );
            }
        }
    }

    #[test]
    fn the_operator_cannot_change_what_users_and_nodes_own() {
        let operator = operator();
        assert_eq!(allowed(&operator, "", "secrets"), READ);
        assert_eq!(allowed(&operator, "", "nodes"), READ);
        assert!(!allowed(&operator, "cryptvol.dev", "encryptedvolumes").contains(&"delete".into()));
    }
}
