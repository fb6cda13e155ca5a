//! Status parts that more than one kind has.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The last thing that went wrong. It stays after recovery, so that a person can see what happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastError {
    /// PascalCase word that says what to do, as in the condition (see `conditions::reason`).
    pub reason: String,
    /// What happened and the next step, in a sentence. Never contains a secret.
    pub message: String,
    /// When it was first seen.
    pub time: Time,
}
