//! A service of its own for each test, and the client as its administrator.

use anyhow::{Context, Result};
use cryptvol_e2e::identity_service::{IdentityService, Options};
use cryptvol_e2e::openstack_client::{Cloud, OpenStackClient};
use cryptvol_e2e::workdir::WorkDir;
use serde_json::Value;

pub struct Ground {
    pub work: WorkDir,
    pub service: IdentityService,
    pub client: OpenStackClient,
    pub admin: Cloud,
}

impl Ground {
    pub fn new(name: &str) -> Result<Self> {
        let client = OpenStackClient::ensure()?;
        let work = WorkDir::new(name)?;
        let service = IdentityService::start(&work.dir("identity")?, Options::default())?;
        let admin = service.admin_cloud()?;
        Ok(Self {
            work,
            service,
            client,
            admin,
        })
    }

    pub fn json(&self, args: &[&str]) -> Result<Value> {
        self.client.json(&self.admin, args)
    }

    pub fn ok(&self, args: &[&str]) -> Result<String> {
        self.client.ok(&self.admin, args)
    }

    pub fn refused(&self, args: &[&str], text: &str) -> Result<()> {
        self.client.refused(&self.admin, args, text)
    }

    /// A user with a role on a project; its cloud.
    pub fn user(&self, user: &str, project: &str, role: Option<&str>) -> Result<Cloud> {
        let password = format!("Pw-of-{user}-77");
        self.ok(&["user", "create", "--password", &password, user])?;
        if let Some(role) = role {
            self.ok(&["role", "add", "--user", user, "--project", project, role])?;
        }
        self.service
            .password_cloud(user, user, &password, Some(project))
    }

    pub fn passed(mut self) -> Result<()> {
        self.service.stop()?;
        self.work.passed()
    }
}

pub fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str> {
    value[name]
        .as_str()
        .with_context(|| format!("no text {name} in {value}"))
}

pub fn names(list: &Value, column: &str) -> Vec<String> {
    let rows = list.as_array().cloned().unwrap_or_default();
    rows.iter()
        .filter_map(|row| row[column].as_str().map(str::to_owned))
        .collect()
}
