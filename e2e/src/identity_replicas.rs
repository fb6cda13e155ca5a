//! Two replicas of the embedded identity/keys service on one PostgreSQL: one is killed (SIGKILL) again and again, and at last one
//! is stopped in the midst of a change, as by a machine that stands still. What was answered holds on both, the other one goes on,
//! and what was ended or used up through one is so for the other.
//!
//! When the blows come is the same in every run; what they hit is not, because the machine is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::identity_http::Http;
use crate::identity_service::{IdentityService, Options};
use crate::identity_writes::{
    Acknowledged, Held, Reply, SEED, moment, nothing_half_written, verify, write, write_until_gone,
};
use crate::postgres::Postgres;
use crate::workdir::WorkDir;

/// Writers at each replica.
const WRITERS: u64 = 2;
/// Writers at the one that is stopped: one of them shall have a change open.
const WRITERS_STOPPED: u64 = 6;
/// What each writer at the other replica has to get done after a blow.
const AFTERWARDS: u32 = 2;
/// Secrets that the user with a quota gets anew for each round.
const QUOTA_A_ROUND: usize = 20;
/// How often the moment in which a replica has a change open is looked for.
const MOMENTS: u32 = 20;
/// How long a replica that was stopped may need to be of use again.
const PATIENCE: Duration = Duration::from_secs(120);
const USER: &str = "with-a-quota";
const PASSWORD: &str = "of the user with a quota";
const SECRETS: &str = "/key-manager/v1/secrets";

/// What was answered with success, and held.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// Records.
    pub held: Held,
    /// Tokens that were ended through one replica and refused by the other with the next request.
    pub ended: usize,
    /// The longest that one of the other replica's writers took, while one was killed, for a user, its edit, a secret, and a
    /// deletion or an order.
    pub after_kill: Duration,
    /// The same while one had stopped in the midst of a change.
    pub after_stop: Duration,
}

/// One writer's part.
#[derive(Default)]
struct Part {
    done: Acknowledged,
    ended: usize,
    longest: Duration,
}

impl Part {
    fn of(done: Acknowledged) -> Self {
        Self {
            done,
            ..Self::default()
        }
    }
}

struct Ground {
    runtime: Runtime,
    postgres: Postgres,
    replicas: [IdentityService; 2],
    /// The administrator at each.
    admins: [Http; 2],
    /// The user with a quota at each.
    users: [Http; 2],
    project: String,
}

/// Kills a replica `rounds` times and tells how it goes. Must run inside a sandbox.
///
/// # Errors
/// At the first thing that is not as it must be.
pub fn run(rounds: u32, tell: impl Fn(&str)) -> Result<Outcome> {
    let work = WorkDir::new("identity-replicas")?;
    let mut ground = Ground::new(&work)?;
    let mut all = Acknowledged::default();
    let mut outcome = Outcome::default();
    let mut seed = SEED;
    for round in 1..=rounds {
        let victim = (round % 2) as usize;
        let (parts, longest) = ground
            .kill_one(victim, round, moment(&mut seed))
            .with_context(|| format!("kill {round}"))?;
        outcome.after_kill = outcome.after_kill.max(longest);
        for part in parts {
            outcome.ended += part.ended;
            // Read where it was not written, and where the process is a new one.
            for admin in &ground.admins {
                ground
                    .runtime
                    .block_on(verify(admin, &part.done))
                    .with_context(|| format!("after kill {round}"))?;
            }
            all.add(part.done);
        }
    }
    tell(&format!("{rounds} kills: {:?}", all.held()));
    let (parts, longest) = ground
        .stop_one_amid_a_change(&all)
        .context("one that stands still")?;
    outcome.after_stop = longest;
    for part in parts {
        all.add(part.done);
    }
    for admin in &ground.admins {
        ground.runtime.block_on(verify(admin, &all))?;
        ground.runtime.block_on(nothing_half_written(admin))?;
    }
    outcome.held = all.held();
    tell(&format!("all of it holds: {outcome:?}"));
    for replica in &mut ground.replicas {
        replica.stop()?;
        let log = replica.log()?;
        ensure!(!log.contains("panicked"), "a replica panicked:\n{log}");
    }
    ground.postgres.stop()?;
    work.passed()?;
    Ok(outcome)
}

impl Ground {
    fn new(work: &WorkDir) -> Result<Self> {
        let postgres = Postgres::start(&work.dir("postgres")?)?;
        let options = Options {
            // One token for the whole of it, and logins as fast as they come.
            serve_args: ["--token-lifetime", "86400", "--login-rate", "0"]
                .map(Into::into)
                .to_vec(),
            database: Some(postgres.url_file()?),
            ..Options::default()
        };
        let first = IdentityService::start(&work.dir("first")?, options)?;
        let second = first.replica(&work.dir("second")?)?;
        let runtime = Runtime::new()?;
        let admin = runtime.block_on(Http::login(&first))?;
        let (project, user) = runtime.block_on(user_with_quota(&admin))?;
        Ok(Self {
            runtime,
            postgres,
            users: [user.clone(), user.at(&second.base_url())],
            admins: [admin.clone(), admin.at(&second.base_url())],
            replicas: [first, second],
            project,
        })
    }

    /// Lets clients write, end tokens and use up a quota through both replicas, and kills one after `moment`; it is there again
    /// afterwards. Also the longest that a writer at the other one took.
    fn kill_one(
        &mut self,
        victim: usize,
        round: u32,
        moment: Duration,
    ) -> Result<(Vec<Part>, Duration)> {
        let other = 1 - victim;
        let quota = QUOTA_A_ROUND * round as usize;
        self.runtime
            .block_on(set_quota(&self.admins[other], &self.project, quota))?;
        let gone = Arc::new(AtomicBool::new(false));
        let mut tasks: Vec<JoinHandle<Result<Part>>> = Vec::new();
        for writer in 0..WRITERS {
            let label = |replica: usize| format!("r{round}-{replica}-w{writer}");
            let [dies, lives] = [victim, other].map(|at| self.admins[at].clone());
            let task = write_until_gone(dies, label(victim), writer, None, Arc::default());
            tasks.push(self.runtime.spawn(async { task.await.map(Part::of) }));
            let task = go_on(lives, label(other), writer, Arc::clone(&gone));
            tasks.push(self.runtime.spawn(task));
        }
        let [dies, lives] = [victim, other].map(|at| self.users[at].clone());
        let begun = Arc::new(AtomicBool::new(false));
        let ends = end_tokens(dies.clone(), lives.clone(), Arc::clone(&begun));
        let ends = self.runtime.spawn(ends);
        let fills = [(dies, true), (lives, false)]
            .map(|(http, dies)| self.runtime.spawn(use_up_quota(http, dies)));
        // However slow the machine is, all of it is on its way. An error of the task is told below.
        while !begun.load(Ordering::Acquire) && !ends.is_finished() {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(moment);
        self.replicas[victim].kill()?;
        gone.store(true, Ordering::Release);
        tasks.push(ends);
        let mut parts = Vec::new();
        for task in tasks {
            parts.push(self.runtime.block_on(task)??);
        }
        for fill in fills {
            self.runtime.block_on(fill)??;
        }
        self.replicas[victim].launch()?;
        // The one that lives stored until it was refused, so the quota is used up: not more, by either.
        for user in &self.users {
            let path = format!("{SECRETS}?limit=1");
            let (status, list) = self.runtime.block_on(user.json(Method::GET, &path, None))?;
            ensure!(
                status == StatusCode::OK && list["total"] == json!(quota),
                "a quota of {quota}: {status} {list}"
            );
        }
        let longest = parts.iter().map(|part| part.longest).max();
        Ok((parts, longest.unwrap_or_default()))
    }

    /// Stops one in the midst of a change, which then holds the lock that lets one write. The server ends its session; the other one
    /// reads meanwhile, writes after that, and refuses nothing. The stopped one is of use again when it goes on.
    fn stop_one_amid_a_change(&mut self, all: &Acknowledged) -> Result<(Vec<Part>, Duration)> {
        let [gone, over] = [false; 2].map(|set| Arc::new(AtomicBool::new(set)));
        let lives = self.admins[1].clone();
        let live = self
            .runtime
            .spawn(go_on(lives, "stopped-1".into(), 1, Arc::clone(&gone)));
        let mut parts = Vec::new();
        let mut writers = Vec::new();
        for writer in 0..WRITERS_STOPPED {
            let (http, over) = (self.admins[0].clone(), Some(Arc::clone(&over)));
            let label = format!("stopped-0-{writer}");
            let task = write_until_gone(http, label, writer, over, Arc::default());
            writers.push(self.runtime.spawn(task));
        }
        for number in 0.. {
            ensure!(number < MOMENTS, "never stopped in the midst of a change");
            // Only if something went wrong, which is told below.
            if live.is_finished() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
            self.replicas[0].signal(Signal::SIGSTOP)?;
            if self.holds_the_lock()? {
                break;
            }
            self.replicas[0].signal(Signal::SIGCONT)?;
        }
        gone.store(true, Ordering::Release);
        self.runtime
            .block_on(verify(&self.admins[1], all))
            .context("read while one holds the lock")?;
        let live = self.runtime.block_on(live)??;
        let longest = live.longest;
        parts.push(live);
        let log = self.postgres.log()?;
        ensure!(
            log.contains("idle-in-transaction timeout"),
            "nobody was ended by the server:\n{log}"
        );
        self.replicas[0].signal(Signal::SIGCONT)?;
        over.store(true, Ordering::Release);
        for writer in writers {
            parts.push(Part::of(self.runtime.block_on(writer)??));
        }
        let start = Instant::now();
        for number in 0.. {
            let mut done = Acknowledged::default();
            let name = format!("goes-on-{number}");
            let reply = write(&self.admins[0], &name, 0, &mut done);
            if self.runtime.block_on(reply)? == Reply::Success {
                parts.push(Part::of(done));
                break;
            }
            ensure!(start.elapsed() < PATIENCE, "it does not write again");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok((parts, longest))
    }

    /// Whether a session has held the lock for a second without a word: then it is that of the process that was stopped.
    fn holds_the_lock(&self) -> Result<bool> {
        let held = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted
                    AND state = 'idle in transaction' AND clock_timestamp() - state_change > interval '1 second'";
        for _ in 0..20 {
            if self.postgres.sql(held)? != "0" {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(false)
    }
}

/// A user that may store secrets in a project of its own: the project, and the user with a token.
async fn user_with_quota(admin: &Http) -> Result<(String, Http)> {
    let made = async |path: &str, body: Value| -> Result<Value> {
        let (status, made) = admin.json(Method::POST, path, Some(&body)).await?;
        ensure!(status == StatusCode::CREATED, "{path}: {status} {made}");
        Ok(made)
    };
    let id = |made: &Value, kind: &str| -> Result<String> {
        let id = made[kind]["id"].as_str();
        Ok(id.with_context(|| format!("no id of a {kind}"))?.to_owned())
    };
    let body = json!({"project": {"name": USER, "domain_id": "default"}});
    let project = id(&made("/identity/v3/projects", body).await?, "project")?;
    let body = json!({"user": {"name": USER, "domain_id": "default", "password": PASSWORD}});
    let user = id(&made("/identity/v3/users", body).await?, "user")?;
    let (_, roles) = admin
        .json(Method::GET, "/identity/v3/roles?name=member", None)
        .await?;
    let role = roles["roles"][0]["id"].as_str().context("no role member")?;
    let path = format!("/identity/v3/projects/{project}/users/{user}/roles/{role}");
    let (status, _) = admin.json(Method::PUT, &path, None).await?;
    ensure!(status == StatusCode::NO_CONTENT, "{path}: {status}");
    let user = admin.login_as(USER, PASSWORD, USER).await?;
    Ok((project, user))
}

async fn set_quota(admin: &Http, project: &str, secrets: usize) -> Result<()> {
    let body = json!({"project_quotas": {
        "secrets": secrets, "orders": -1, "containers": -1, "consumers": -1, "cas": -1}});
    let path = format!("/key-manager/v1/project-quotas/{project}");
    let (status, body) = admin.json(Method::PUT, &path, Some(&body)).await?;
    ensure!(
        status == StatusCode::NO_CONTENT,
        "set a quota: {status} {body}"
    );
    Ok(())
}

/// Writes until some of it was begun and answered after the other replica was `gone`. All has to be answered with success.
async fn go_on(http: Http, label: String, first: u64, gone: Arc<AtomicBool>) -> Result<Part> {
    let mut part = Part::default();
    let mut afterwards = 0;
    for number in 0_u64.. {
        let name = format!("{label}-{number}");
        afterwards += u32::from(gone.load(Ordering::Acquire));
        let start = Instant::now();
        match write(&http, &name, (first + number) % 3, &mut part.done).await? {
            Reply::Success => {}
            reply => bail!("the other replica: {reply:?} after {:?}", start.elapsed()),
        }
        part.longest = part.longest.max(start.elapsed());
        if afterwards == AFTERWARDS {
            break;
        }
    }
    Ok(part)
}

/// Ends tokens through a replica, until that does not answer any more; the other one has to refuse each at once.
async fn end_tokens(dies: Http, lives: Http, begun: Arc<AtomicBool>) -> Result<Part> {
    let mut part = Part::default();
    let list = "/identity/v3/auth/projects";
    loop {
        let token = match dies.login_as(USER, PASSWORD, USER).await {
            Ok(token) => token,
            Err(error) => match error.downcast_ref::<reqwest::Error>() {
                // No answer; one with a status is none that may be.
                Some(error) if error.status().is_none() => return Ok(part),
                _ => return Err(error),
            },
        };
        let elsewhere = token.at(lives.base());
        let (status, _) = elsewhere.send(Method::GET, list, None).await?;
        ensure!(
            status == StatusCode::OK,
            "a token of the other replica: {status}"
        );
        match token.end_token().await {
            Ok(StatusCode::NO_CONTENT) => {}
            Ok(status) => bail!("end a token: {status}"),
            Err(_) => return Ok(part),
        }
        let (status, _) = elsewhere.send(Method::GET, list, None).await?;
        ensure!(
            status == StatusCode::UNAUTHORIZED,
            "a token that the other replica ended: {status}"
        );
        part.ended += 1;
        begun.store(true, Ordering::Release);
    }
}

/// Stores secrets until the quota is used up, or, if the replica `dies`, until it does not answer any more.
async fn use_up_quota(http: Http, dies: bool) -> Result<()> {
    let body = json!({"name": "within", "payload": "payload of within", "payload_content_type": "text/plain"});
    loop {
        match http.send(Method::POST, SECRETS, Some(&body)).await {
            Ok((StatusCode::CREATED, _)) => {}
            Ok((StatusCode::FORBIDDEN, _)) => return Ok(()),
            Err(_) if dies => return Ok(()),
            Ok((status, _)) => bail!("store a secret within a quota: {status}"),
            Err(error) => return Err(error),
        }
    }
}
