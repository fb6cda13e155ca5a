//! The identity service with a large site: what it takes to start, to answer and to hold, beside the same process before the
//! site was put into it. The real services are no peer here: to make so many records through their API takes days.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::identity::options;
use super::side::{Ask, Side, load, start_to_answer};
use super::{Row, Rule};
use crate::identity_service::{IdentityService, product_binary};
use crate::process::peak_kib;
use crate::workdir::WorkDir;

const USERS: usize = 100_000;
const PROJECTS: usize = 20_000;
const SECRETS: usize = 1_000_000;
/// MiB before and with the large site.
const MEMORY: (f64, f64) = (40.0, 80.0);
/// Seconds to the first answer.
const START: (f64, f64) = (0.3, 2.0);
/// What must not get slower by the size of the site, as a share of what the small one answers.
const KEPT: f64 = 0.8;
/// Seconds that each request is sent for.
const SECONDS: u64 = 4;
/// Longest silence in the longest answer.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a request is made for a side.
type Asked = fn(&Side) -> Ask;

/// What is asked, and the share of the small site's answers that is to be reached.
const ASKED: [(&str, Asked, Option<f64>); 7] = [
    ("token validation", Side::validation, Some(KEPT)),
    (
        "one user's effective assignments",
        Side::own_assignments,
        Some(KEPT),
    ),
    (
        "one project's effective assignments",
        Side::assignments_here,
        None,
    ),
    ("secret payload", Side::payload, Some(KEPT)),
    ("key order", Side::order, None),
    ("a page of users", Side::page_of_users, None),
    (
        "a page of secrets, in a project of thousands",
        Side::page_of_secrets,
        None,
    ),
];

/// All rows.
pub(super) fn run() -> Result<Vec<Row>> {
    let work = WorkDir::new("bench-identity-large")?;
    let mut service = IdentityService::start(&work.dir("ours")?, options())?;
    let start = start_to_answer(&mut service)?;
    let side = Side::of(&service)?;
    let small = answers(&side)?;
    let memory = mib(service.resident_kib()?);
    let mut rows = vec![
        Row::new(
            "start to first answer, small site, s",
            start,
            0.0,
            Some((Rule::AtMost, START.0)),
        ),
        Row::new(
            "memory after load, small site, MiB",
            memory,
            0.0,
            Some((Rule::AtMost, MEMORY.0)),
        ),
    ];
    service.stop()?;
    let users = seed(&service, [USERS, PROJECTS, SECRETS])?;
    rows.push(Row::new(
        "start to first answer, s",
        start_to_answer(&mut service)?,
        start,
        Some((Rule::AtMost, START.1)),
    ));
    rows.push(Row::new(
        "memory after start, MiB",
        mib(service.resident_kib()?),
        0.0,
        None,
    ));
    for ((name, _, share), (ours, before)) in ASKED.iter().zip(answers(&side)?.iter().zip(&small)) {
        let goal = share.map(|share| (Rule::RatioAtLeast, share));
        rows.push(Row::new(&format!("{name}, /s"), *ours, *before, goal));
    }
    let each = load(side.assignments_of(&users), SECONDS)?;
    rows.push(Row::new(
        "effective assignments of a thousand users in turn, /s",
        each.per_second,
        0.0,
        None,
    ));
    rows.push(Row::new(
        "memory after load, MiB",
        mib(service.resident_kib()?),
        memory,
        Some((Rule::AtMost, MEMORY.1)),
    ));
    // Nobody should ask for them, but somebody will.
    for (name, list) in [
        ("users", side.all_users()),
        ("effective assignments", side.all_assignments()),
    ] {
        let begun = Instant::now();
        let bytes = drain(&list)?;
        let row =
            |what: &str, value| Row::new(&format!("list of all {name}, {what}"), value, 0.0, None);
        rows.push(row("s", begun.elapsed().as_secs_f64()));
        rows.push(row("its length, MiB", mib(bytes / 1024)));
        rows.push(row("memory after it, MiB", mib(service.resident_kib()?)));
    }
    rows.push(Row::new(
        "most memory at any time, MiB",
        mib(peak_kib(service.pid()?)?),
        0.0,
        Some((Rule::AtMost, MEMORY.1)),
    ));
    service.stop()?;
    work.passed()?;
    Ok(rows)
}

fn answers(side: &Side) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    for (name, request, _) in ASKED {
        let measured = load(request(side), SECONDS)?;
        eprintln!("{name}: {:.0} /s", measured.per_second);
        ensure!(
            measured.others.is_empty(),
            "{name}: other answers: {:?}",
            measured.others
        );
        all.push(measured.per_second);
    }
    Ok(all)
}

/// Puts a site of so many users, projects and secrets into the service's records. Ids of a thousand of its users.
pub(super) fn seed(service: &IdentityService, site: [usize; 3]) -> Result<Vec<String>> {
    let begun = Instant::now();
    let output = Command::new(product_binary("examples/seed_site")?)
        .arg(service.place())
        .arg(service.secrets_dir().join("kek"))
        .args(site.map(|count| count.to_string()))
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("start seed_site")?;
    ensure!(output.status.success(), "seed_site: {}", output.status);
    let [users, projects, secrets] = site;
    eprintln!(
        "{users} users, {projects} projects, {secrets} secrets in {:.0?}",
        begun.elapsed()
    );
    let ids = String::from_utf8(output.stdout)?;
    Ok(ids.lines().map(str::to_owned).collect())
}

/// Sends a request and throws the answer away, whatever its length. Bytes of it.
fn drain((address, requests, _): &Ask) -> Result<u64> {
    let request = requests.first().context("no request")?;
    let mut stream = TcpStream::connect(address.socket())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request)?;
    let mut first = [0; 12];
    stream.read_exact(&mut first)?;
    ensure!(first.ends_with(b" 200"), "{}", first.escape_ascii());
    Ok(std::io::copy(&mut stream, &mut std::io::sink())?)
}

/// KiB as MiB.
pub(super) fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
