//! One side of the benchmarks of identity services: what is made in it, and what the load generator asks it for.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::load::{Load, Measured, drive};
use crate::http1::{Address, Client, JSON, login_body};
use crate::identity_service::IdentityService;

/// Connections at once.
pub(super) const CONNECTIONS: usize = 32;
pub(super) const MORE_USERS: usize = 1000;
/// Effective assignments of the small site, and those that each further user brings.
pub(super) const SMALL_SITE: usize = 11;
pub(super) const PER_USER: usize = 2;
const TOKENS: usize = 8;
const TENANT: &str = "tenant";
pub(super) const PASSWORD: &str = "a-tenants-password";

/// What the load generator sends: where, which requests in turn, and the status of the answers that count.
pub(super) type Ask = (Address, Vec<Vec<u8>>, u16);

/// One side, with what was made in it.
pub(super) struct Side {
    pub(super) identity: Address,
    keys: Address,
    admin: Client,
    tokens: Vec<String>,
    pub(super) project: String,
    pub(super) user: String,
    secret: String,
}

impl Side {
    /// The embedded service, freshly bootstrapped, with what the real ones have besides: a user that Barbican checks tokens
    /// with.
    pub(super) fn of(service: &IdentityService) -> Result<Self> {
        let mut admin = Client::new(&address(service, "/identity/v3"));
        admin.login("admin", service.password(), "admin")?;
        let project = admin.make(
            "project",
            json!({"name": "service", "domain_id": "default"}),
        )?;
        let user = admin.make("user", json!({"name": "barbican", "domain_id": "default"}))?;
        admin.grant(&project, &user, "service")?;
        Self::set_up(
            address(service, "/identity/v3"),
            address(service, "/key-manager/v1"),
            service.password(),
        )
    }

    pub(super) fn set_up(identity: Address, keys: Address, password: &str) -> Result<Self> {
        let mut admin = Client::new(&identity);
        admin.login("admin", password, "admin")?;
        let project = admin.make("project", json!({"name": TENANT, "domain_id": "default"}))?;
        let user = admin.make(
            "user",
            json!({"name": TENANT, "domain_id": "default", "password": PASSWORD}),
        )?;
        admin.grant(&project, &user, "member")?;
        // Ours gives the administrator the domain too; with it, both have the same assignments.
        let id = |path: &str, pointer: &str| -> Result<String> {
            let found = admin.get(path, &[])?.json();
            let id = found.pointer(pointer).and_then(Value::as_str);
            Ok(id.with_context(|| format!("nothing at {path}"))?.to_owned())
        };
        let (owner, role) = (
            id("/users?name=admin", "/users/0/id")?,
            id("/roles?name=admin", "/roles/0/id")?,
        );
        let path = format!("/domains/default/users/{owner}/roles/{role}");
        admin.json("PUT", &path, &Value::Null)?;
        let mut tokens = Vec::new();
        let mut tenant = Client::new(&identity);
        for _ in 0..TOKENS {
            tenant.login(TENANT, PASSWORD, TENANT)?;
            tokens.push(tenant.token().to_owned());
        }
        let made = tenant.at(&keys).json(
            "POST",
            "/secrets",
            &json!({
                "name": "bench", "payload": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
                "payload_content_type": "application/octet-stream", "payload_content_encoding": "base64",
                "algorithm": "aes", "bit_length": 256, "mode": "cbc", "secret_type": "symmetric",
            }),
        )?;
        let made = made.json();
        let reference = made["secret_ref"].as_str().context("no secret_ref")?;
        let secret = reference.rsplit('/').next().unwrap_or_default().to_owned();
        let side = Self {
            identity,
            keys,
            admin,
            tokens,
            project,
            user,
            secret,
        };
        side.expect_rows(SMALL_SITE)?;
        Ok(side)
    }

    /// Both sides must have the same work to do.
    fn expect_rows(&self, wanted: usize) -> Result<()> {
        let list = self.admin.get("/role_assignments?effective", &[])?.json();
        let rows = list["role_assignments"].as_array().map_or(0, Vec::len);
        ensure!(
            rows == wanted,
            "{} has {rows} effective assignments, not {wanted}: {list}",
            self.identity.url()
        );
        Ok(())
    }

    /// Users without a password, each a member of the project.
    pub(super) fn more_users(&self) -> Result<()> {
        let roles = self.admin.get("/roles?name=member", &[])?.json();
        let role = roles["roles"][0]["id"].as_str().context("no role member")?;
        for number in 0..MORE_USERS {
            let name = format!("user-{number}");
            let user = self
                .admin
                .make("user", json!({"name": name, "domain_id": "default"}))?;
            let path = format!("/projects/{}/users/{user}/roles/{role}", self.project);
            self.admin.json("PUT", &path, &Value::Null)?;
        }
        self.expect_rows(SMALL_SITE + PER_USER * MORE_USERS)
    }

    pub(super) fn validation(&self) -> Ask {
        let request = |token: &String| {
            let headers = [
                ("X-Auth-Token", self.admin.token()),
                ("X-Subject-Token", token),
            ];
            self.identity.request("GET", "/auth/tokens", &headers, b"")
        };
        (
            self.identity.clone(),
            self.tokens.iter().map(request).collect(),
            200,
        )
    }

    pub(super) fn assignments(&self) -> Ask {
        self.listing("/role_assignments?effective")
    }

    pub(super) fn own_assignments(&self) -> Ask {
        self.listing(&format!(
            "/role_assignments?effective&user.id={}",
            self.user
        ))
    }

    /// Of each of these users in turn.
    pub(super) fn assignments_of(&self, users: &[String]) -> Ask {
        let requests = users.iter().map(|user| {
            let path = format!("/role_assignments?effective&user.id={user}");
            self.as_admin(&path, &[])
        });
        (self.identity.clone(), requests.collect(), 200)
    }

    /// Of everybody on the tenant's project.
    pub(super) fn assignments_here(&self) -> Ask {
        self.listing(&format!(
            "/role_assignments?effective&scope.project.id={}",
            self.project
        ))
    }

    /// Of everybody.
    pub(super) fn all_assignments(&self) -> Ask {
        self.whole("/role_assignments?effective")
    }

    pub(super) fn all_users(&self) -> Ask {
        self.whole("/users")
    }

    /// On a connection that ends with the answer.
    fn whole(&self, path: &str) -> Ask {
        let request = self.as_admin(path, &[("Connection", "close")]);
        (self.identity.clone(), vec![request], 200)
    }

    pub(super) fn page_of_users(&self) -> Ask {
        self.listing("/users?limit=3")
    }

    pub(super) fn page_of_secrets(&self) -> Ask {
        self.as_tenant("/secrets?limit=10", &[])
    }

    fn listing(&self, path: &str) -> Ask {
        let request = self.as_admin(path, &[]);
        (self.identity.clone(), vec![request], 200)
    }

    fn as_admin(&self, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
        let headers = [&[("X-Auth-Token", self.admin.token())], headers].concat();
        self.identity.request("GET", path, &headers, b"")
    }

    /// From the key manager, with each of the tenant's tokens in turn.
    fn as_tenant(&self, path: &str, headers: &[(&str, &str)]) -> Ask {
        let request = |token: &String| {
            let headers = [&[("X-Auth-Token", token.as_str())], headers].concat();
            self.keys.request("GET", path, &headers, b"")
        };
        (
            self.keys.clone(),
            self.tokens.iter().map(request).collect(),
            200,
        )
    }

    pub(super) fn payload(&self) -> Ask {
        let path = format!("/secrets/{}/payload", self.secret);
        self.as_tenant(&path, &[("Accept", "application/octet-stream")])
    }

    pub(super) fn order_body(&self) -> String {
        let meta = json!({
            "name": "bench", "algorithm": "aes", "bit_length": 256, "mode": "cbc",
            "payload_content_type": "application/octet-stream",
        });
        json!({"type": "key", "meta": meta}).to_string()
    }

    pub(super) fn order(&self) -> Ask {
        let body = self.order_body();
        let request = |token: &String| {
            let headers = [("X-Auth-Token", token.as_str()), JSON];
            self.keys
                .request("POST", "/orders", &headers, body.as_bytes())
        };
        (
            self.keys.clone(),
            self.tokens.iter().map(request).collect(),
            202,
        )
    }

    /// Who asks the key manager for the tenant.
    pub(super) fn tenant(&self) -> Result<Client> {
        let mut tenant = Client::new(&self.identity);
        tenant.login(TENANT, PASSWORD, TENANT)?;
        Ok(tenant.at(&self.keys))
    }

    /// One login in milliseconds.
    pub(super) fn login(&self, password: &str, wanted: u16) -> Result<f64> {
        one_login(
            &self.identity,
            &login_body(TENANT, password, TENANT),
            wanted,
        )
    }
}

pub(super) fn address(service: &IdentityService, root: &str) -> Address {
    Address::new(service.port(), root)
}

pub(super) fn load((address, requests, wanted): Ask, seconds: u64) -> Result<Measured> {
    let load = Load {
        connections: CONNECTIONS,
        warm_up: Duration::from_secs(1),
        run: Duration::from_secs(seconds),
    };
    drive(address.socket(), requests, wanted, load)
}

/// Seconds from the start of the process to the first answer of the identity API: the middle one of five starts. It runs
/// afterwards.
pub(super) fn start_to_answer(service: &mut IdentityService) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..5 {
        service.stop()?;
        let start = Instant::now();
        service.spawn()?;
        let client = Client::new(&address(service, "/identity/v3"));
        while client.get("", &[]).is_err() {
            ensure!(
                start.elapsed() < Duration::from_secs(60),
                "no answer of ours"
            );
            std::thread::sleep(Duration::from_micros(500));
        }
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(median(&mut times))
}

pub(super) fn one_login(address: &Address, body: &[u8], wanted: u16) -> Result<f64> {
    let client = Client::new(address);
    let start = Instant::now();
    let status = client.send("POST", "/auth/tokens", &[JSON], body)?.status;
    ensure!(status == wanted, "a login: {status}, not {wanted}");
    Ok(start.elapsed().as_secs_f64() * 1000.0)
}

pub(super) fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or_default()
}
