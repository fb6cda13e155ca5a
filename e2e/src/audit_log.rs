//! What the API server wrote down: who did what. The tests of "an idle cluster writes nothing" count here.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::volumes::PATIENCE;

/// Without a write for this long, what an action brings along is over.
const QUIET: Duration = Duration::from_secs(5);

/// Audit policy (audit.k8s.io/v1): one line a request, when it was answered, without bodies.
pub(crate) const POLICY: &str = r#"{"apiVersion":"audit.k8s.io/v1","kind":"Policy","omitStages":["RequestReceived","ResponseStarted"],"rules":[{"level":"Metadata"}]}"#;

/// One answered request.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEvent {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, …
    pub verb: String,
    /// Path and query.
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    /// The caller.
    pub user: AuditUser,
    /// Absent for requests such as `/readyz`.
    pub object_ref: Option<AuditObject>,
    /// The HTTP status.
    pub response_status: Option<AuditStatus>,
    /// RFC 3339 with microseconds.
    pub stage_timestamp: String,
    /// The caller's program.
    #[serde(default)]
    pub user_agent: String,
}

/// The caller.
#[derive(Debug, Clone, Deserialize)]
pub struct AuditUser {
    /// For example `system:serviceaccount:cryptvol-system:cryptvol-operator`.
    pub username: String,
}

/// What was asked for.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuditObject {
    /// Plural name of the kind.
    pub resource: String,
    /// Empty for objects without one.
    pub namespace: String,
    /// Empty for lists.
    pub name: String,
    /// `status`, `token`, …
    pub subresource: String,
    /// API group.
    pub api_group: String,
}

/// The outcome.
#[derive(Debug, Clone, Deserialize)]
pub struct AuditStatus {
    /// HTTP status code.
    pub code: u16,
}

impl AuditEvent {
    /// True for verbs that change something.
    pub fn is_write(&self) -> bool {
        matches!(
            self.verb.as_str(),
            "create" | "update" | "patch" | "delete" | "deletecollection"
        )
    }

    /// True for a write that ends up in etcd. `create` of a review or of a token is a question, not an object.
    pub fn is_stored_write(&self) -> bool {
        const QUESTIONS: [&str; 5] = [
            "tokenreviews",
            "subjectaccessreviews",
            "selfsubjectaccessreviews",
            "selfsubjectreviews",
            "localsubjectaccessreviews",
        ];
        self.is_write()
            && self.object_ref.as_ref().is_none_or(|o| {
                !QUESTIONS.contains(&o.resource.as_str()) && o.subresource != "token"
            })
            && !self.request_uri.contains("dryRun=All")
    }

    /// `resource` or `resource/subresource`; empty when the request was for no object.
    pub fn resource(&self) -> String {
        match &self.object_ref {
            Some(object) if object.subresource.is_empty() => object.resource.clone(),
            Some(object) => format!("{}/{}", object.resource, object.subresource),
            None => String::new(),
        }
    }
}

/// The file, and reading from a remembered place on.
#[derive(Debug, Clone)]
pub struct AuditLog {
    path: PathBuf,
}

impl AuditLog {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The present end, for [`AuditLog::since`].
    pub fn mark(&self) -> Result<u64> {
        Ok(std::fs::metadata(&self.path)
            .with_context(|| format!("look at {}", self.path.display()))?
            .len())
    }

    /// Waits until nothing that `counts` was answered for some seconds, and gives the end of the log then: what follows an
    /// action (Events, a report, a status) is over, however slow the machine is.
    ///
    /// # Errors
    /// When it never gets quiet.
    pub async fn quiet(&self, counts: impl Fn(&AuditEvent) -> bool) -> Result<u64> {
        let begun = Instant::now();
        loop {
            let mark = self.mark()?;
            tokio::time::sleep(QUIET).await;
            let seen: Vec<_> = self.since(mark)?.into_iter().filter(&counts).collect();
            if seen.is_empty() {
                return self.mark();
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "it does not get quiet: {:?}",
                seen.iter().map(|e| &e.request_uri).collect::<Vec<_>>()
            );
        }
    }

    /// Everything that was answered after `mark`.
    pub fn since(&self, mark: u64) -> Result<Vec<AuditEvent>> {
        let mut file =
            File::open(&self.path).with_context(|| format!("open {}", self.path.display()))?;
        file.seek(SeekFrom::Start(mark))?;
        let mut events = Vec::new();
        for line in BufReader::new(file).lines() {
            // A line that is being written just now has no end yet; it is read next time.
            if let Ok(event) = serde_json::from_str(&line?) {
                events.push(event);
            }
        }
        Ok(events)
    }
}
