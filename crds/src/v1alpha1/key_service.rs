//! KeyService: an identity/keys API that the operator may talk to.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An identity/keys API. The operator talks to no other address than those named here, so that a tenant's
/// `clouds.yaml` cannot send it elsewhere.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "cryptvol.dev",
    version = "v1alpha1",
    kind = "KeyService",
    shortname = "keysvc",
    category = "cryptvol",
    status = "KeyServiceStatus",
    derive = "PartialEq",
    doc = "An identity and key manager API: Keystone and Barbican, or the embedded service.",
    printcolumn(json_path = ".spec.authUrl", name = "Auth URL", type_ = "string"),
    printcolumn(
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        name = "Ready",
        type_ = "string"
    ),
    printcolumn(
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        name = "Reason",
        type_ = "string"
    ),
    printcolumn(
        json_path = ".metadata.creationTimestamp",
        name = "Age",
        type_ = "date"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self.tenancy == 'CredentialsPerNamespace'", "tenancy ProjectPerNamespace is not implemented in this version: use CredentialsPerNamespace, with a clouds.yaml Secret in each namespace"),
    validation = ("self.backend == 'Barbican'", "back ends Kmip and Vault are not implemented in this version: use Barbican"),
)]
pub struct KeyServiceSpec {
    /// Identity endpoint, version included, for example `https://keystone.example.com/identity/v3`.
    #[schemars(length(min = 8, max = 2048))]
    #[x_kube(validation = ("self.matches('^https://[^ ]+/v3/?$')", "authUrl is an https URL that ends in /v3, for example https://keystone.example.com/identity/v3"))]
    pub auth_url: String,
    /// Key manager endpoint without version. Where absent, the catalog of the token names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 2048))]
    #[x_kube(validation = ("self.matches('^https://[^ ]+$')", "keyManagerUrl is an https URL"))]
    pub key_manager_url: Option<String>,
    /// Region of the catalog to use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub region: Option<String>,
    /// Interface of the catalog to use.
    #[serde(default)]
    pub interface: Interface,
    /// Certificates (PEM) that the service's certificate must chain to. Where absent, the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 262144))]
    pub ca_bundle: Option<String>,
    /// How namespaces map to projects.
    #[serde(default)]
    pub tenancy: Tenancy,
    /// Kind of key manager.
    #[serde(default)]
    pub backend: Backend,
}

/// Interface of a catalog entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Interface {
    /// For everybody.
    #[default]
    Public,
    /// For services of the same site.
    Internal,
    /// For administrators.
    Admin,
}

/// How namespaces map to projects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Tenancy {
    /// Each namespace has a Secret with credentials of its own project.
    #[default]
    CredentialsPerNamespace,
    /// The operator makes a project for each namespace. Not implemented in this version.
    ProjectPerNamespace,
}

/// Kind of key manager.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Backend {
    /// Barbican v1 on the wire.
    #[default]
    Barbican,
    /// KMIP. Not implemented in this version.
    Kmip,
    /// Vault or OpenBao. Not implemented in this version.
    Vault,
}

/// What the operator last saw of the service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyServiceStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: the service answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(["type".into()].to_vec()))]
    pub conditions: Vec<Condition>,
    /// Identity API version that the service offers, for example `v3.14`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity_version: Option<String>,
    /// Highest key manager microversion that the service offers, for example `1.1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_manager_version: Option<String>,
    /// Quota of keys, where the service tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<QuotaStatus>,
    /// When this was last looked at and found changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition: Option<Time>,
}

/// Quota of keys in the key manager.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuotaStatus {
    /// Most secrets per project; -1 is unlimited.
    pub secrets: i64,
}
