//! Logins that fail, as whole requests: most with names that nobody has, the others with the wrong password of somebody. What they
//! leave in the memory of the service, and how long the two kinds take beside each other.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::large::mib;
use super::load::answer;
use super::{Row, Rule};
use crate::http1::{Address, Client, JSON, login_body};
use crate::identity_service::{IdentityService, Options};
use crate::postgres::Postgres;
use crate::workdir::WorkDir;

/// Connections at once; more would find the queue for password checks full.
const CONNECTIONS: usize = 4;
/// Of so many attempts one has the name of a user.
const KNOWN: usize = 4;
/// Users that are tried, so many that nobody's attempts are too many in a second.
const USERS: usize = 2000;
/// After so many attempts the memory is what it is to stay.
const FIRST: usize = 20_000;
/// How often it says how far it is.
const PARTS: usize = 20;
/// Memory at the end, as a share of that.
const GROWTH: f64 = 1.1;

/// All rows, for `total` attempts; with the records in the data directory or in a PostgreSQL server.
pub(super) fn run(total: usize, postgres: bool) -> Result<Vec<Row>> {
    ensure!(total > FIRST, "it takes more than {FIRST} logins");
    let work = WorkDir::new("bench-failed-logins")?;
    let server = if postgres {
        Some(Postgres::start(&work.dir("postgres")?)?)
    } else {
        None
    };
    let options = Options {
        tls: false,
        database: server.as_ref().map(Postgres::url_file).transpose()?,
        ..Options::default()
    };
    let mut service = IdentityService::start(&work.dir("ours")?, options)?;
    let address = Address::new(service.port(), "/identity/v3");
    let mut admin = Client::new(&address);
    admin.login("admin", service.password(), "admin")?;
    for number in 0..USERS {
        let user =
            json!({"name": user(number), "domain_id": "default", "password": "a-users-password"});
        admin.make("user", user)?;
    }
    failed(&address, 0..FIRST)?;
    let before = mib(service.resident_kib()?);
    let begun = Instant::now();
    let mut times = Times::default();
    let part = (total - FIRST).div_ceil(PARTS);
    for start in (FIRST..total).step_by(part) {
        let end = total.min(start + part);
        times.extend(failed(&address, start..end)?);
        let rate = (end - FIRST) as f64 / begun.elapsed().as_secs_f64();
        let memory = mib(service.resident_kib()?);
        eprintln!("{end} of {total} failed logins, {rate:.0} /s, {memory:.1} MiB");
    }
    let took = begun.elapsed();
    let after = mib(service.resident_kib()?);
    admin
        .login("admin", service.password(), "admin")
        .context("nobody is let in any more")?;
    service.stop()?;
    if let Some(server) = server {
        server.stop()?;
    }
    work.passed()?;
    let rate = (total - FIRST) as f64 / took.as_secs_f64();
    Ok(vec![
        Row::new("failed logins", total as f64, 0.0, None),
        Row::new("failed logins, /s", rate, 0.0, None),
        Row::new(
            "memory after them and after the first 20,000, MiB",
            after,
            before,
            Some((Rule::RatioAtMost, GROWTH)),
        ),
        Row::new(
            "unknown user and wrong password, median ms",
            median_ms(&times.unknown),
            median_ms(&times.wrong),
            None,
        ),
    ])
}

/// How long the answers took, by why they refuse.
#[derive(Default)]
struct Times {
    unknown: Vec<Duration>,
    wrong: Vec<Duration>,
}

impl Times {
    fn extend(&mut self, more: Self) {
        self.unknown.extend(more.unknown);
        self.wrong.extend(more.wrong);
    }
}

fn user(number: usize) -> String {
    format!("user-{number}")
}

/// Whether an attempt has the name of a user, and its request.
fn attempt(address: &Address, number: usize) -> (bool, Vec<u8>) {
    let known = number.is_multiple_of(KNOWN);
    let name = if known {
        user(number / KNOWN % USERS)
    } else {
        // As long as the others.
        format!("none-{number}")
    };
    let body = login_body(&name, "a-wrong-password", "admin");
    (
        known,
        address.request("POST", "/auth/tokens", &[JSON], &body),
    )
}

/// Makes all attempts of a range, which must be refused with 401.
fn failed(address: &Address, numbers: Range<usize>) -> Result<Times> {
    let address = address.clone();
    let thread = std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(all(address, numbers))
    });
    match thread.join() {
        Ok(times) => times,
        Err(_) => anyhow::bail!("the load generator broke off"),
    }
}

async fn all(address: Address, numbers: Range<usize>) -> Result<Times> {
    let next = Arc::new(AtomicUsize::new(numbers.start));
    let tasks: Vec<_> = (0..CONNECTIONS)
        .map(|_| tokio::spawn(one(address.clone(), Arc::clone(&next), numbers.end)))
        .collect();
    let mut times = Times::default();
    for task in tasks {
        times.extend(task.await??);
    }
    Ok(times)
}

async fn one(address: Address, next: Arc<AtomicUsize>, end: usize) -> Result<Times> {
    let mut times = Times::default();
    let mut buffer = Vec::with_capacity(16 * 1024);
    let mut connection = None;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= end {
            return Ok(times);
        }
        let (known, request) = attempt(&address, number);
        let mut stream = match connection.take() {
            Some(stream) => stream,
            None => connect(address.socket()).await?,
        };
        let begun = Instant::now();
        stream.write_all(&request).await?;
        let head = answer(&mut stream, &mut buffer).await?;
        let took = begun.elapsed();
        ensure!(head.status == 401, "attempt {number}: {}", head.status);
        if known {
            times.wrong.push(took);
        } else {
            times.unknown.push(took);
        }
        if !head.close {
            connection = Some(stream);
        }
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).await.context("connect")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn median_ms(times: &[Duration]) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    times
        .get(times.len() / 2)
        .map_or(0.0, |time| time.as_secs_f64() * 1000.0)
}
