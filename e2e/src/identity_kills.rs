//! The embedded identity/keys service, killed (SIGKILL) again and again while clients write: what was answered is there, what
//! was deleted is not, and nothing half-written is seen.
//!
//! When the blows come is the same in every run; what they hit is not, because the machine is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::identity_http::Http;
use crate::identity_service::{IdentityService, Options};
use crate::identity_writes::{
    ALL_KINDS, Acknowledged, Held, SEED, moment, nothing_half_written, verify, write_until_gone,
};
use crate::process::wait_for;
use crate::workdir::WorkDir;

/// Writers beside each other.
const WRITERS: u64 = 4;
/// Rounds after which everything is looked at once more.
const LONG: u32 = 100;
/// Each so many rounds the blow waits until every kind of write was answered, so that also on a slow machine there is something of each
/// to be held against it.
const WHOLE: u32 = 5;
/// For that.
const PATIENCE: Duration = Duration::from_secs(60);

/// Kills the service `rounds` times and tells how it goes.
///
/// # Errors
/// At the first thing that is not as it must be.
pub fn run(rounds: u32, tell: impl Fn(&str)) -> Result<Held> {
    let work = WorkDir::new("identity-killed")?;
    let options = Options {
        // One token for the whole of it.
        serve_args: vec!["--token-lifetime".into(), "86400".into()],
        ..Options::default()
    };
    let mut service = IdentityService::start(&work.dir("identity")?, options)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let http = runtime.block_on(Http::login(&service))?;
    let mut all = Acknowledged::default();
    let mut seed = SEED;
    for round in 1..=rounds {
        let kinds = Arc::new(AtomicU8::new(0));
        let writers: Vec<_> = (0_u64..WRITERS)
            .map(|writer| {
                runtime.spawn(write_until_gone(
                    http.clone(),
                    format!("r{round}-w{writer}"),
                    writer,
                    None,
                    Arc::clone(&kinds),
                ))
            })
            .collect();
        if round % WHOLE == 1 {
            runtime.block_on(wait_for(
                &format!("an answered write of each kind before kill {round}"),
                PATIENCE,
                || async { Ok((kinds.load(Ordering::Relaxed) == ALL_KINDS).then_some(())) },
                String::new,
            ))?;
        }
        std::thread::sleep(moment(&mut seed));
        service.kill()?;
        let mut done = Acknowledged::default();
        for writer in writers {
            done.add(runtime.block_on(writer)??);
        }
        service.launch()?;
        // Those of this round; all of them once more from time to time, and at the end.
        runtime
            .block_on(verify(&http, &done))
            .with_context(|| format!("kill {round}"))?;
        all.add(done);
        if round % LONG == 0 && round != rounds {
            runtime
                .block_on(verify(&http, &all))
                .with_context(|| format!("after kill {round}"))?;
            tell(&format!("{round} kills: {:?}", all.held()));
        }
    }
    runtime.block_on(verify(&http, &all))?;
    tell(&format!(
        "{rounds} kills, and all of it holds: {:?}",
        all.held()
    ));
    runtime.block_on(nothing_half_written(&http))?;
    service.stop()?;
    work.passed()?;
    Ok(all.held())
}
