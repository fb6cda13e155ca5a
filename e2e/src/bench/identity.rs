//! The identity service beside a real Keystone and a real Barbican: the same objects made through the same calls, the same
//! requests by the same load generator, one side after the other for every row.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::side::{
    Ask, CONNECTIONS, MORE_USERS, PASSWORD, PER_USER, SMALL_SITE, Side, address, load, median,
    one_login, start_to_answer,
};
use super::{Row, Rule};
use crate::http1::login_body;
use crate::identity_service::{IdentityService, Options};
use crate::openstack::OpenStack;
use crate::process::group_memory_kib;
use crate::workdir::WorkDir;

/// Cost of password hashes, Keystone's default.
const ROUNDS: u8 = 12;
const LOGINS: usize = 12;
/// The cheapest hash there is: what a login does besides would be lost in the noise of a longer one.
const FEW_ROUNDS: u8 = 4;
const SHORT_LOGINS: usize = 1000;

/// How ours is started: in the clear, as its peers are, and with Keystone's cost of a hash.
pub(super) fn options() -> Options {
    Options {
        password_rounds: ROUNDS,
        tls: false,
        ..Options::default()
    }
}

/// All rows.
pub(super) fn run() -> Result<Vec<Row>> {
    let work = WorkDir::new("bench-identity")?;
    let mut real = OpenStack::start(&work.dir("openstack")?)?;
    let options = options();
    let mut service = IdentityService::start(&work.dir("ours")?, options.clone())?;
    let mut rows = vec![starts(&mut service, &mut real)?];

    let peer = Side::set_up(real.identity(), real.key_manager(), real.password())?;
    let ours = Side::of(&service)?;
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
    let (login, theirs_above) = logins(&ours, &peer)?;
    rows.push(login);
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
    rows.extend(short_logins(&work, options, theirs_above)?);
    work.passed()?;
    Ok(rows)
}

/// From the start of the process (there, of the processes) to the first answer of the identity API.
fn starts(service: &mut IdentityService, real: &mut OpenStack) -> Result<Row> {
    let ours = start_to_answer(service)?;
    real.kill()?;
    let peer = real.launch()?.as_secs_f64();
    let goal = Some((Rule::AtMost, 0.3));
    Ok(Row::new("start to first answer, s", ours, peer, goal))
}

/// Logins in turn with the hash alone, one at a time: the row, and what theirs take above the hash, in milliseconds.
fn logins(ours: &Side, peer: &Side) -> Result<(Row, f64)> {
    let (mut own, mut real, mut hash) = (Vec::new(), Vec::new(), Vec::new());
    let stored = bcrypt::hash(PASSWORD, u32::from(ROUNDS))?;
    for _ in 0..LOGINS {
        own.push(ours.login(PASSWORD, 201)?);
        hash.push(hash_alone(PASSWORD, &stored)?);
        real.push(peer.login(PASSWORD, 201)?);
    }
    let (own, real) = (median(&mut own), median(&mut real));
    let row = Row::new("login, ms", own, real, None);
    Ok((row, real - median(&mut hash)))
}

/// Milliseconds.
fn hash_alone(password: &str, stored: &str) -> Result<f64> {
    let start = Instant::now();
    ensure!(bcrypt::verify(password, stored)?, "the hash is wrong");
    Ok(start.elapsed().as_secs_f64() * 1000.0)
}

/// With cheap hashes, so that nothing hides behind them, and in turn: what a login takes above its hash, beside what theirs take with
/// their own; and whether the time of a refusal tells an unknown user from a wrong password. That row is the share of pairs in which the
/// unknown user took longer; a half is what somebody sees who can see nothing.
fn short_logins(work: &WorkDir, options: Options, theirs_above: f64) -> Result<[Row; 2]> {
    let options = Options {
        password_rounds: FEW_ROUNDS,
        serve_args: vec!["--login-rate".into(), "0".into()],
        ..options
    };
    let mut service = IdentityService::start(&work.dir("short")?, options)?;
    let address = address(&service, "/identity/v3");
    let right = login_body("admin", service.password(), "admin");
    let stored = bcrypt::hash(service.password(), u32::from(FEW_ROUNDS))?;
    let (mut accepted, mut hash) = (Vec::new(), Vec::new());
    for _ in 0..SHORT_LOGINS {
        accepted.push(one_login(&address, &right, 201)?);
        hash.push(hash_alone(service.password(), &stored)?);
    }
    let above = median(&mut accepted) - median(&mut hash);
    let wrong = login_body("admin", "not-the-password", "admin");
    let nobody = login_body("nimda", "not-the-password", "admin");
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for round in 0..SHORT_LOGINS {
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
    Ok([
        Row::new(
            "login, ms above its hash alone",
            above,
            theirs_above,
            Some((Rule::AtMost, 1.0)),
        ),
        Row::new(
            "share of pairs in which an unknown user took longer than a wrong password",
            share,
            0.5,
            None,
        ),
    ])
}
