//! How many connections the service has to a directory.

use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use cryptvol_e2e::process::wait_for;
use futures::future::try_join_all;
use reqwest::Method;
use serde_json::{Value, json};

use super::ground::{Ground, PATIENCE, folders, person};

/// As `[ldap] pool_size` has it.
const SIZE: usize = 2;
/// Requests at once.
const CROWD: usize = 8;

/// What a part of the server's log says of connections.
#[derive(Debug, Default)]
struct Connections {
    /// That were made.
    made: usize,
    /// That were closed.
    closed: usize,
    /// That were open at the same time, at the most.
    at_once: usize,
}

impl Connections {
    fn of(log: &str) -> Self {
        let mut all = Self::default();
        let mut open = BTreeSet::new();
        for line in log.lines() {
            let Some(name) = line.split_whitespace().find(|w| w.starts_with("conn=")) else {
                continue;
            };
            if line.contains(" ACCEPT ") {
                all.made += 1;
                open.insert(name);
            } else if line.contains(" closed") {
                all.closed += 1;
                open.remove(name);
            }
            all.at_once = all.at_once.max(open.len());
        }
        all
    }
}

impl Ground {
    fn connections(&self, since: usize) -> Result<Connections> {
        let log = self.slapd.log()?;
        Ok(Connections::of(log.get(since..).unwrap_or_default()))
    }
}

/// Connections to this port that the kernel has, whether or not who listens there has taken them.
fn to_port(port: u16) -> Result<usize> {
    let established = |line: &&str| {
        let mut words = line.split_whitespace().skip(2);
        let (to, state) = (words.next().unwrap_or_default(), words.next());
        state == Some("01") && to.ends_with(&format!(":{port:04X}"))
    };
    let all = fs::read_to_string("/proc/self/net/tcp")?;
    Ok(all.lines().filter(established).count())
}

/// However many ask, a directory has no more searches at once than `pool_size`; what was connected serves the next ones, and what a restart of
/// the directory cut off is made anew without an error to anybody.
#[tokio::test]
async fn connections_are_bounded_kept_and_made_anew() -> Result<()> {
    let mut ground = Ground::new("ldap-pool", &[folders(), person("alice")].concat()).await?;
    let port = ground.slapd.url();
    let port: u16 = port.rsplit(':').next().context("a port")?.parse()?;
    let domain = ground.domain("Corp", &json!({"pool_size": SIZE})).await?;
    let path = format!("users?name=alice&domain_id={domain}");
    let ask = || ground.admin(Method::GET, &path, Value::Null, 200);

    let since = ground.slapd.log()?.len();
    ensure!(to_port(port)? == 0, "something asked the directory already");
    ground.slapd.freeze(true)?;
    // Nobody is answered until as many wait at the directory as may.
    let waiting = async {
        wait_for(
            "searches to wait at the directory",
            PATIENCE,
            || async { Ok((to_port(port)? >= SIZE).then_some(())) },
            String::new,
        )
        .await?;
        ground.slapd.freeze(false)
    };
    let (answers, ()) = tokio::try_join!(try_join_all((0..CROWD).map(|_| ask())), waiting)?;
    for answer in answers {
        assert_eq!(answer["users"][0]["name"], "alice", "{answer}");
    }
    let crowd = ground.connections(since)?;
    assert_eq!((crowd.made, crowd.closed), (SIZE, 0), "{crowd:?}");
    for _ in 0..CROWD {
        ask().await?;
    }
    let kept = ground.connections(since)?;
    assert_eq!((kept.made, kept.closed), (SIZE, 0), "{kept:?}");

    // A password is proved on a connection of its own, which ends with it: nobody else's search is to run as that person.
    assert_eq!(ground.login_status("alice", "Corp").await?, 201);
    let begun = Instant::now();
    let proved = loop {
        let now = ground.connections(since)?;
        if now.closed > 0 {
            break now;
        }
        ensure!(begun.elapsed() < PATIENCE, "it stays open: {now:?}");
        tokio::task::yield_now().await;
    };
    assert_eq!(
        (proved.made, proved.closed, proved.at_once),
        (SIZE + 1, 1, SIZE + 1),
        "{proved:?}"
    );

    ground.slapd.kill()?;
    ground.slapd.launch()?;
    // Whoever waited for it to answer has connected by now.
    let since = ground.slapd.log()?.len();
    let ask = || ground.admin(Method::GET, &path, Value::Null, 200);
    for _ in 0..CROWD {
        ask().await?;
    }
    let anew = ground.connections(since)?;
    assert_eq!(anew.made, 1, "{anew:?}");
    ground.passed()
}
