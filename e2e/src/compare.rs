//! The same requests to a real Keystone and Barbican and to the identity service, and what their answers differ in:
//! status, headers, fields, values. `assets/compare.txt` and `assets/compare-strict.txt` have the requests, `docs/compare.md` the differences that stay,
//! each with its reason; a difference that is not listed there, and a listed one that is no more, is an error.

mod answer;
mod commands;
mod known;
mod proof;
mod script;
mod signed;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::http1::{Address, Answer, Client};
use crate::identity_service::{IdentityService, Options};
use crate::openstack::OpenStack;
use crate::workdir::{WorkDir, workspace_root};

use answer::{Difference, Normal, differences};
use script::{Api, Step};

const SCRIPT: &str = include_str!("../assets/compare.txt");
/// The same for services whose limits are strict in two levels.
const STRICT: &str = include_str!("../assets/compare-strict.txt");
/// Signs a request; no header of the wire.
const OAUTH1: &str = "OAuth1";
/// What stands before the names of its requests.
const STRICT_MARK: &str = "strict-two-level";
/// Where the differences that stay are listed.
const LIST: &str = "docs/compare.md";

/// One side while the script runs.
struct Side {
    identity: Address,
    keys: Address,
    /// What steps captured: ids, references.
    values: BTreeMap<String, String>,
    /// Tokens by the name of their owner.
    tokens: BTreeMap<String, String>,
    /// Requests that were signed: no two have the same nonce.
    signed: u32,
}

/// Requests by name, and what the answers differ in.
type Found = BTreeSet<(String, Difference)>;

/// Runs the scripts on both sides and prints what differs.
///
/// # Errors
/// If a difference is not in the list, or the list has one that is no more.
pub fn run() -> Result<()> {
    crate::sandbox::require()?;
    let work = WorkDir::new("compare")?;
    let (usual, strict) = (script::read(SCRIPT)?, script::read(STRICT)?);
    let (mut found, sent) = on_both(&work.dir("usual")?, &usual, false)?;
    let (found_strict, sent_strict) = on_both(&work.dir("strict")?, &strict, true)?;
    found.extend(
        found_strict
            .into_iter()
            .map(|(request, difference)| (format!("{STRICT_MARK} {request}"), difference)),
    );
    let dir = work.dir("commands")?;
    let pair = Pair::start(&dir, false)?;
    let (found_commands, commands) = commands::walked(&pair, &dir)?;
    pair.stop()?;
    found.extend(found_commands);
    let list = workspace_root().join(LIST);
    let text = std::fs::read_to_string(&list).with_context(|| list.display().to_string())?;
    let verdict = known::judge(&text, &found)?;
    println!(
        "{} requests, {commands} commands, {} differences listed in {LIST}",
        sent + sent_strict,
        verdict.listed
    );
    for (request, Difference(difference)) in &verdict.new {
        println!("NOT LISTED  | `{request}` | `{difference}` |");
    }
    for row in &verdict.gone {
        println!("NO MORE     {row}");
    }
    work.passed()?;
    ensure!(
        verdict.new.is_empty() && verdict.gone.is_empty(),
        "{} differences are not listed in {LIST}, {} that are listed there are no more",
        verdict.new.len(),
        verdict.gone.len()
    );
    Ok(())
}

/// Both services, with the same records at first.
struct Pair {
    real: OpenStack,
    service: IdentityService,
}

impl Pair {
    /// Starts both in `dir`, with limits strict in two levels or each for itself.
    fn start(dir: &Path, strict: bool) -> Result<Self> {
        let real = OpenStack::start_with(
            &dir.join("openstack"),
            if strict {
                "[unified_limit]\nenforcement_model = strict_two_level\n"
            } else {
                // As it is by default, and one-time passwords.
                "[auth]\nmethods = external,password,token,oauth1,mapped,application_credential,ec2credential,totp\n"
            },
        )?;
        let options = Options {
            tls: false,
            serve_args: if strict {
                vec!["--limit-model=strict-two-level".into()]
            } else {
                Vec::new()
            },
            ..Options::default()
        };
        let service = IdentityService::start(&dir.join("ours"), options)?;
        // What Barbican needs on the other side.
        let mut admin = Client::new(&Address::new(service.port(), "/identity/v3"));
        admin.login("admin", service.password(), "admin")?;
        let project = admin.make(
            "project",
            json!({"name": "service", "domain_id": "default"}),
        )?;
        let user =
            json!({"name": "barbican", "domain_id": "default", "password": "bootstrap-password"});
        admin.grant(&project, &admin.make("user", user)?, "service")?;
        Ok(Self { real, service })
    }

    fn stop(mut self) -> Result<()> {
        self.service.stop()?;
        self.real.kill()
    }
}

/// Sends the steps to both sides of a [`Pair`]. With how many requests.
fn on_both(dir: &Path, steps: &[Step], strict: bool) -> Result<(Found, usize)> {
    let pair = Pair::start(dir, strict)?;
    let (real, service) = (&pair.real, &pair.service);
    let mut theirs = Side::new(real.identity(), real.key_manager(), real.password())?;
    let address = |root: &str| Address::new(service.port(), root);
    let mut ours = Side::new(
        address("/identity/v3"),
        address("/key-manager/v1"),
        service.password(),
    )?;

    let mut found = Found::new();
    let mut sent = 0;
    for step in steps {
        // What can be read is asked for without its content too.
        for step in std::iter::once(step.clone()).chain(step.head()) {
            let (mine, other) = (ours.take(&step)?, theirs.take(&step)?);
            sent += 1;
            found.extend(
                differences(&mine, &other)
                    .into_iter()
                    .map(|difference| (step.name(), difference)),
            );
        }
    }
    pair.stop()?;
    Ok((found, sent))
}

impl Side {
    fn new(identity: Address, keys: Address, password: &str) -> Result<Self> {
        let mut admin = Client::new(&identity);
        admin.login("admin", password, "admin")?;
        let user = admin.get("/users?name=admin", &[])?.json();
        let project = admin.get("/projects?name=admin", &[])?.json();
        let id = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let values = BTreeMap::from([
            ("password".to_owned(), password.to_owned()),
            ("admin".to_owned(), id(&user["users"][0]["id"])),
            (
                "admin_project".to_owned(),
                id(&project["projects"][0]["id"]),
            ),
        ]);
        Ok(Self {
            tokens: BTreeMap::from([("admin".to_owned(), admin.token().to_owned())]),
            identity,
            keys,
            values,
            signed: 0,
        })
    }

    /// Sends one request, keeps what it is to give, and returns the answer without what must differ.
    fn take(&mut self, step: &Step) -> Result<Normal> {
        let address = match step.api {
            Api::Identity => &self.identity,
            Api::KeyManager => &self.keys,
        };
        let path = proof::with_long_texts(&script::expand(&step.path, &self.values))?;
        let now = proof::now()?;
        let body = script::expand(&step.body, &self.values);
        let body = signed::with_requests(&proof::with_passcodes(&body, now)?, now)?;
        let body = proof::with_long_texts(&body)?;
        let mut headers = Vec::new();
        for (name, value) in &step.headers {
            let value = proof::with_long_texts(&self.header(value))?;
            headers.push(if name == OAUTH1 {
                self.signed += 1;
                let (url, nonce) = (format!("{}{path}", address.url()), self.signed.to_string());
                let value = proof::authorization(&step.method, &url, &value, now, &nonce)?;
                ("Authorization".to_owned(), value)
            } else {
                (name.clone(), value)
            });
        }
        if let Some(token) = self.tokens.get(&step.who) {
            headers.push(("X-Auth-Token".into(), token.clone()));
        }
        if !body.is_empty() && !headers.iter().any(|(name, _)| name == "Content-Type") {
            headers.push(("Content-Type".into(), "application/json".into()));
        }
        let headers: Vec<(&str, &str)> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        // The real services drop the connection where they break; that is an answer too, with no status.
        let answer = Client::new(address)
            .send(&step.method, &path, &headers, body.as_bytes())
            .unwrap_or_else(|_| Answer {
                status: 0,
                headers: BTreeMap::new(),
                body: Vec::new(),
            });
        let content = answer::content(&answer).unwrap_or_default();
        for (name, from) in &step.keep {
            // What was refused has nothing to keep; the status says so, and what follows differs too.
            let value = if from.starts_with('/') {
                content.pointer(from).and_then(|value| value.as_str())
            } else {
                answer.headers.get(from).map(String::as_str)
            };
            // Of a reference, the id.
            let value = value
                .unwrap_or_default()
                .rsplit('/')
                .next()
                .unwrap_or_default();
            self.values.insert(name.clone(), value.to_owned());
        }
        if let Some(owner) = &step.login {
            let token = answer.headers.get("x-subject-token").cloned();
            self.tokens.insert(owner.clone(), token.unwrap_or_default());
        }
        let roots = [self.identity.url(), self.keys.url()];
        Ok(Normal::of(&answer, &roots, &self.values))
    }

    /// A header's value; `@NAME` is the token of that owner.
    fn header(&self, value: &str) -> String {
        match value.strip_prefix('@') {
            Some(owner) => self.tokens.get(owner).cloned().unwrap_or_default(),
            None => script::expand(value, &self.values),
        }
    }
}
