//! A directory, the service, and somebody who asks it by HTTP.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cryptvol_e2e::control_plane;
use cryptvol_e2e::identity_service::{IdentityService, Options};
use cryptvol_e2e::pki::Authority;
use cryptvol_e2e::slapd::{READER, READER_PASSWORD, SUFFIX, Slapd};
use cryptvol_e2e::workdir::WorkDir;
use reqwest::Method;
use serde_json::{Value, json};

/// How long anything that must come to pass may take on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Everything of one test.
pub struct Ground {
    pub work: WorkDir,
    pub slapd: Slapd,
    pub service: IdentityService,
    client: reqwest::Client,
    pub admin: String,
}

/// An answer.
pub struct Answer {
    pub status: u16,
    pub token: String,
    pub body: Value,
}

/// A person, as LDIF; the password is the name with `-Pw-1`.
pub fn person(name: &str) -> String {
    format!(
        "dn: uid={name},ou=people,{SUFFIX}\nobjectClass: inetOrgPerson\nuid: {name}\ncn: {name} of Example\nsn: {name}\n\
         mail: {name}@example.org\nuserPassword: {name}-Pw-1\n\n"
    )
}

/// The name of a person's entry.
pub fn dn(name: &str) -> String {
    format!("uid={name},ou=people,{SUFFIX}")
}

/// A group with these entries as members, as LDIF.
pub fn group(name: &str, members: &[String]) -> String {
    let mut text =
        format!("dn: cn={name},ou=groups,{SUFFIX}\nobjectClass: groupOfNames\ncn: {name}\n");
    for member in members {
        text.push_str(&format!("member: {member}\n"));
    }
    text + "\n"
}

/// The two folders of the tree.
pub fn folders() -> String {
    ["people", "groups"]
        .map(|name| {
            format!("dn: ou={name},{SUFFIX}\nobjectClass: organizationalUnit\nou: {name}\n\n")
        })
        .concat()
}

impl Ground {
    /// A directory with these entries, and the service with a folder for configurations of domains.
    pub async fn new(name: &str, entries: &str) -> Result<Self> {
        control_plane::init_tls();
        let work = WorkDir::new(name)?;
        let ca = work.dir("ldap-ca")?;
        let slapd = Slapd::start(&work.dir("slapd")?, &Authority::open(&ca)?, entries)?;
        let folder = work.dir("domains")?;
        let options = Options {
            serve_args: vec![
                "--domain-config-dir".into(),
                folder.to_string_lossy().into_owned(),
            ],
            ..Options::default()
        };
        let service = IdentityService::start(&work.dir("identity")?, options)?;
        let certificate = reqwest::Certificate::from_pem(&fs::read(service.ca_path())?)?;
        let client = reqwest::Client::builder()
            .tls_certs_only([certificate])
            .timeout(PATIENCE)
            // The service is started anew; a connection of before would be dead.
            .pool_max_idle_per_host(0)
            .build()?;
        let mut ground = Self {
            work,
            slapd,
            service,
            client,
            admin: String::new(),
        };
        ground.login_admin().await?;
        Ok(ground)
    }

    /// The administrator's token, needed anew after a restart only when it is old.
    pub async fn login_admin(&mut self) -> Result<()> {
        let password = self.service.password().to_owned();
        let scope = json!({"project": {"name": "admin", "domain": {"id": "default"}}});
        let answer = self
            .login("admin", "Default", &password, Some(scope))
            .await?;
        ensure!(answer.status == 201, "{}", answer.body);
        self.admin = answer.token;
        Ok(())
    }

    /// The authority of the directory's certificate.
    pub fn ldap_ca(&self) -> PathBuf {
        self.work.path().join("ldap-ca/ca.crt")
    }

    /// Options of a domain over this directory, as the API takes them; `more` replaces and adds.
    pub fn options(&self, more: &Value) -> Value {
        let mut ldap = json!({
            "url": self.slapd.url(), "user": READER, "password": READER_PASSWORD,
            "user_tree_dn": format!("ou=people,{SUFFIX}"), "user_id_attribute": "uid", "user_name_attribute": "uid",
            "group_tree_dn": format!("ou=groups,{SUFFIX}"), "group_name_attribute": "cn",
            "tls_cacertfile": self.ldap_ca(), "page_size": 5, "pool_connection_timeout": 20,
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            ldap[name] = value.clone();
        }
        if let Some(ldap) = ldap.as_object_mut() {
            ldap.retain(|_, value| !value.is_null());
        }
        json!({"config": {"identity": {"driver": "ldap"}, "ldap": ldap}})
    }

    /// A new domain over this directory; its id.
    pub async fn domain(&self, name: &str, more: &Value) -> Result<String> {
        let made = self
            .admin(
                Method::POST,
                "domains",
                json!({"domain": {"name": name}}),
                201,
            )
            .await?;
        let id = text(&made["domain"], "id")?;
        self.admin(
            Method::PUT,
            &format!("domains/{id}/config"),
            self.options(more),
            201,
        )
        .await?;
        Ok(id)
    }

    /// One request below `/v3/`; null sends no body.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Result<Answer> {
        let url = format!("{}/{path}", self.service.auth_url());
        let mut request = self.client.request(method, url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !body.is_null() {
            request = request.json(body);
        }
        let answer = request.send().await?;
        let token = answer
            .headers()
            .get("x-subject-token")
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let status = answer.status().as_u16();
        let bytes = answer.bytes().await?;
        Ok(Answer {
            status,
            token,
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        })
    }

    /// As the administrator, with this status.
    pub async fn admin(
        &self,
        method: Method,
        path: &str,
        body: Value,
        status: u16,
    ) -> Result<Value> {
        let what = format!("{method} {path}");
        let answer = self
            .call(method, path, &[("X-Auth-Token", &self.admin)], &body)
            .await?;
        ensure!(
            answer.status == status,
            "{what}: {} instead of {status}: {}",
            answer.status,
            answer.body
        );
        Ok(answer.body)
    }

    /// A login by name.
    pub async fn login(
        &self,
        name: &str,
        domain: &str,
        password: &str,
        scope: Option<Value>,
    ) -> Result<Answer> {
        let user = json!({"name": name, "domain": {"name": domain}, "password": password});
        let mut auth = json!({"identity": {"methods": ["password"], "password": {"user": user}}});
        if let Some(scope) = scope {
            auth["scope"] = scope;
        }
        self.call(Method::POST, "auth/tokens", &[], &json!({ "auth": auth }))
            .await
    }

    /// The status of a login of a person without a scope.
    pub async fn login_status(&self, name: &str, domain: &str) -> Result<u16> {
        Ok(self
            .login(name, domain, &format!("{name}-Pw-1"), None)
            .await?
            .status)
    }

    /// A token of a person for a project of the first domain.
    pub async fn token(&self, name: &str, domain: &str, project: &str) -> Result<String> {
        let scope = json!({"project": {"name": project, "domain": {"id": "default"}}});
        let answer = self
            .login(name, domain, &format!("{name}-Pw-1"), Some(scope))
            .await?;
        ensure!(
            answer.status == 201,
            "login of {name}: {} {}",
            answer.status,
            answer.body
        );
        Ok(answer.token)
    }

    /// The status of validating a token.
    pub async fn status_of(&self, token: &str) -> Result<u16> {
        let headers = [
            ("X-Auth-Token", self.admin.as_str()),
            ("X-Subject-Token", token),
        ];
        Ok(self
            .call(Method::GET, "auth/tokens", &headers, &Value::Null)
            .await?
            .status)
    }

    /// Waits until a token is answered with this status; how long it took.
    pub async fn until(&self, token: &str, status: u16) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let now = self.status_of(token).await?;
            if now == status {
                return Ok(start.elapsed());
            }
            ensure!(
                start.elapsed() < PATIENCE,
                "the token is answered with {now}, not with {status}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The names in a list, sorted.
    pub async fn names(&self, path: &str, key: &str) -> Result<Vec<String>> {
        let list = self.admin(Method::GET, path, Value::Null, 200).await?;
        let mut names: Vec<String> = list[key]
            .as_array()
            .with_context(|| format!("no list {key}"))?
            .iter()
            .filter_map(|item| item["name"].as_str().map(str::to_owned))
            .collect();
        names.sort();
        Ok(names)
    }

    /// The id of the only thing with this name.
    pub async fn id(&self, kind: &str, name: &str, domain: &str) -> Result<String> {
        let path = format!("{kind}?name={name}&domain_id={domain}");
        let list = self.admin(Method::GET, &path, Value::Null, 200).await?;
        text(&list[kind][0], "id")
    }

    /// A new project of the first domain; its id.
    pub async fn project(&self, name: &str) -> Result<String> {
        let body = json!({"project": {"name": name, "domain_id": "default"}});
        text(
            &self.admin(Method::POST, "projects", body, 201).await?["project"],
            "id",
        )
    }

    /// Gives `users/ID` or `groups/ID` a role on a project.
    pub async fn grant(&self, project: &str, actor: &str, role: &str) -> Result<()> {
        let roles = self
            .admin(Method::GET, &format!("roles?name={role}"), Value::Null, 200)
            .await?;
        let role = text(&roles["roles"][0], "id")?;
        let path = format!("projects/{project}/{actor}/roles/{role}");
        self.admin(Method::PUT, &path, Value::Null, 204)
            .await
            .map(|_| ())
    }

    /// The test's last line.
    pub fn passed(mut self) -> Result<()> {
        self.service.stop()?;
        self.slapd.kill()?;
        self.work.passed()
    }
}

/// A text attribute.
pub fn text(object: &Value, name: &str) -> Result<String> {
    let text = object[name].as_str();
    Ok(text
        .with_context(|| format!("no text {name} in {object}"))?
        .to_owned())
}
