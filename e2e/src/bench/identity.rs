//! The identity service beside a real Keystone and a real Barbican: the same objects made through the same calls, the same
//! requests by the same load generator, one side after the other for every row.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::load::{Load, Measured, drive};
use super::{Row, Rule};
use crate::http1::{Address, Client, JSON, login_body};
use crate::identity_service::{IdentityService, Options};
use crate::openstack::OpenStack;
use crate::process::group_memory_kib;
use crate::workdir::WorkDir;

const CONNECTIONS: usize = 32;
/// Cost of password hashes, Keystone's default.
const ROUNDS: u8 = 12;
const MORE_USERS: usize = 1000;
/// Effective assignments of the small site, and those that each further user brings.
const SMALL_SITE: usize = 11;
const PER_USER: usize = 2;
const TOKENS: usize = 8;
const LOGINS: usize = 12;
const REFUSED_LOGINS: usize = 1000;
const TENANT: &str = "tenant";
const PASSWORD: &str = "a-tenants-password";

/// What the load generator sends: where, which requests in turn, and the status of the answers that count.
type Ask = (Address, Vec<Vec<u8>>, u16);

/// One side, with what was made in it.
struct Side {
    identity: Address,
    keys: Address,
    admin: Client,
    tokens: Vec<String>,
    project: String,
    user: String,
    secret: String,
}

/// All rows.
pub(super) fn run() -> Result<Vec<Row>> {
    let work = WorkDir::new("bench-identity")?;
    let mut real = OpenStack::start(&work.dir("openstack")?)?;
    let options = Options {
        password_rounds: ROUNDS,
        tls: false,
        ..Options::default()
    };
    let mut service = IdentityService::start(&work.dir("ours")?, options.clone())?;
    let mut rows = vec![starts(&mut service, &mut real)?];

    let peer = Side::set_up(real.identity(), real.key_manager(), real.password())?;
    let mut admin = Client::new(&address(&service, "/identity/v3"));
    admin.login("admin", service.password(), "admin")?;
    // The real ones have a user that Barbican checks tokens with.
    let project = admin.make(
        "project",
        json!({"name": "service", "domain_id": "default"}),
    )?;
    let user = admin.make("user", json!({"name": "barbican", "domain_id": "default"}))?;
    admin.grant(&project, &user, "service")?;
    let ours = Side::set_up(
        address(&service, "/identity/v3"),
        address(&service, "/key-manager/v1"),
        service.password(),
    )?;
    let sides = (&ours, &peer);

    let at_least = |times| Some((Rule::RatioAtLeast, times));
    let mut spread = Vec::new();
    let mut both = |name: &str, goal, request: fn(&Side) -> Ask, seconds| {
        let (ours, peer) = (load(request(sides.0), 4)?, load(request(sides.1), seconds)?);
        eprintln!(
            "{name}: {:.0} /s, theirs {:.1} /s",
            ours.per_second, peer.per_second
        );
        for (side, measured) in [("ours", &ours), ("theirs", &peer)] {
            // The real services refuse some writes while SQLite is busy; those do not count as answered.
            if !measured.others.is_empty() {
                eprintln!("  other answers of {side}: {:?}", measured.others);
            }
        }
        spread.push((
            name.to_owned(),
            ours.p99_ms / ours.median_ms,
            peer.p99_ms / peer.median_ms,
        ));
        rows.push(Row::new(
            &format!("{name}, /s"),
            ours.per_second,
            peer.per_second,
            goal,
        ));
        Ok::<_, anyhow::Error>(())
    };
    both("token validation", at_least(100.0), Side::validation, 6)?;
    both(
        "effective role assignments, 11 rows",
        at_least(75.0),
        Side::assignments,
        6,
    )?;
    both(
        "one user's effective assignments, small site",
        None,
        Side::own_assignments,
        6,
    )?;
    both("secret payload", at_least(60.0), Side::payload, 6)?;
    both("key order", at_least(25.0), Side::order, 6)?;
    for side in [sides.0, sides.1] {
        side.more_users()?;
    }
    let large = format!(
        "effective role assignments, {} rows",
        SMALL_SITE + PER_USER * MORE_USERS
    );
    both(&large, at_least(60.0), Side::assignments, 15)?;
    both(
        "one user's effective assignments, large site",
        None,
        Side::own_assignments,
        6,
    )?;
    let per_second = |name: &str| {
        let row = rows.iter().find(|row| row.metric.starts_with(name));
        row.map_or(0.0, |row| row.ours)
    };
    let own = Row::new(
        "one user's assignments, large site against small site (ours), /s",
        per_second("one user's effective assignments, large"),
        per_second("one user's effective assignments, small"),
        at_least(0.8),
    );
    rows.push(own);
    rows.extend(spread.iter().filter(|(name, ..)| name != "key order").map(
        |(name, ours, peer)| {
            let name = format!("p99 / median at {CONNECTIONS} connections, {name}");
            Row::new(&name, *ours, *peer, Some((Rule::AtMost, 5.0)))
        },
    ));
    rows.extend(logins(&ours, &peer)?);
    let mib = |groups: &[i32]| -> Result<f64> {
        let kib = groups.iter().map(|group| group_memory_kib(*group));
        Ok(kib.sum::<Result<u64>>()? as f64 / 1024.0)
    };
    rows.push(Row::new(
        "memory after load, MiB",
        mib(&[service.pid()?])?,
        mib(&real.groups())?,
        Some((Rule::AtMost, 40.0)),
    ));
    service.stop()?;
    real.kill()?;
    rows.push(refused_logins(&work, options)?);
    work.passed()?;
    Ok(rows)
}

fn address(service: &IdentityService, root: &str) -> Address {
    Address::new(service.port(), root)
}

fn load((address, requests, wanted): Ask, seconds: u64) -> Result<Measured> {
    let load = Load {
        connections: CONNECTIONS,
        warm_up: Duration::from_secs(1),
        run: Duration::from_secs(seconds),
    };
    drive(address.socket(), requests, wanted, load)
}

/// From the start of the process (there, of the processes) to the first answer of the identity API.
fn starts(service: &mut IdentityService, real: &mut OpenStack) -> Result<Row> {
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
    real.kill()?;
    let peer = real.launch()?.as_secs_f64();
    let goal = Some((Rule::AtMost, 0.3));
    Ok(Row::new(
        "start to first answer, s",
        median(&mut times),
        peer,
        goal,
    ))
}

impl Side {
    fn set_up(identity: Address, keys: Address, password: &str) -> Result<Self> {
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
    fn more_users(&self) -> Result<()> {
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

    fn validation(&self) -> Ask {
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

    fn assignments(&self) -> Ask {
        self.listing("/role_assignments?effective")
    }

    fn own_assignments(&self) -> Ask {
        self.listing(&format!(
            "/role_assignments?effective&user.id={}",
            self.user
        ))
    }

    fn listing(&self, path: &str) -> Ask {
        let headers = [("X-Auth-Token", self.admin.token())];
        let request = self.identity.request("GET", path, &headers, b"");
        (self.identity.clone(), vec![request], 200)
    }

    fn payload(&self) -> Ask {
        let path = format!("/secrets/{}/payload", self.secret);
        let request = |token: &String| {
            let headers = [
                ("X-Auth-Token", token.as_str()),
                ("Accept", "application/octet-stream"),
            ];
            self.keys.request("GET", &path, &headers, b"")
        };
        (
            self.keys.clone(),
            self.tokens.iter().map(request).collect(),
            200,
        )
    }

    fn order(&self) -> Ask {
        let meta = json!({
            "name": "bench", "algorithm": "aes", "bit_length": 256, "mode": "cbc",
            "payload_content_type": "application/octet-stream",
        });
        let body = json!({"type": "key", "meta": meta}).to_string();
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

    /// One login in milliseconds.
    fn login(&self, password: &str, wanted: u16) -> Result<f64> {
        one_login(
            &self.identity,
            &login_body(TENANT, password, TENANT),
            wanted,
        )
    }
}

fn one_login(address: &Address, body: &[u8], wanted: u16) -> Result<f64> {
    let client = Client::new(address);
    let start = Instant::now();
    let status = client.send("POST", "/auth/tokens", &[JSON], body)?.status;
    ensure!(status == wanted, "a login: {status}, not {wanted}");
    Ok(start.elapsed().as_secs_f64() * 1000.0)
}

/// Logins in turn with the hash alone, one at a time.
fn logins(ours: &Side, peer: &Side) -> Result<Vec<Row>> {
    let (mut own, mut real, mut hash) = (Vec::new(), Vec::new(), Vec::new());
    let stored = bcrypt::hash(PASSWORD, u32::from(ROUNDS))?;
    for _ in 0..LOGINS {
        own.push(ours.login(PASSWORD, 201)?);
        let start = Instant::now();
        ensure!(bcrypt::verify(PASSWORD, &stored)?, "the hash is wrong");
        hash.push(start.elapsed().as_secs_f64() * 1000.0);
        real.push(peer.login(PASSWORD, 201)?);
    }
    let (own, real, hash) = (median(&mut own), median(&mut real), median(&mut hash));
    Ok(vec![
        Row::new("login, ms", own, real, None),
        Row::new(
            "login, ms above its hash alone",
            own - hash,
            real - hash,
            Some((Rule::AtMost, 1.0)),
        ),
    ])
}

/// Whether the time of a refusal tells an unknown user from a wrong password: with cheap hashes, so that nothing hides
/// behind them, and in turn. The row is the share of pairs in which the unknown user took longer; a half is what
/// somebody sees who can see nothing.
fn refused_logins(work: &WorkDir, options: Options) -> Result<Row> {
    let options = Options {
        password_rounds: 4,
        serve_args: vec!["--login-rate".into(), "0".into()],
        ..options
    };
    let mut service = IdentityService::start(&work.dir("refused")?, options)?;
    let address = address(&service, "/identity/v3");
    let wrong = login_body("admin", "not-the-password", "admin");
    let nobody = login_body("nimda", "not-the-password", "admin");
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for round in 0..REFUSED_LOGINS {
        // The one that comes first changes, because it is not quite the same to be second.
        if round % 2 == 0 {
            known.push(one_login(&address, &wrong, 401)?);
            unknown.push(one_login(&address, &nobody, 401)?);
        } else {
            unknown.push(one_login(&address, &nobody, 401)?);
            known.push(one_login(&address, &wrong, 401)?);
        }
    }
    let longer = unknown
        .iter()
        .map(|time| known.iter().filter(|other| time > other).count());
    let share = longer.sum::<usize>() as f64 / (known.len() * unknown.len()) as f64;
    let (known, unknown) = (median(&mut known), median(&mut unknown));
    eprintln!(
        "refused logins: unknown user {unknown:.3} ms, wrong password {known:.3} ms (medians)"
    );
    service.stop()?;
    Ok(Row::new(
        "share of pairs in which an unknown user took longer than a wrong password",
        share,
        0.5,
        None,
    ))
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or_default()
}
