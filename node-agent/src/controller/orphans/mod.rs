//! What of ours is on the node and belongs to no NodeVolume: told, never removed. Whose guests use it, and whether a record of it is in
//! another cluster or under the node's former name, only a person can say; a key that is nowhere else would be lost with it.
//!
//! What is told is right or is not told: not before all NodeVolumes of this node were listed, not while one of them cannot be read, not at
//! the first look (a volume that is just being let go is gone at the second), and not while the API server does not answer.

mod judge;
mod tell;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use cryptvol_crds::{
    NodeVolume,
    conditions::Reason,
    names,
    orphans::{Orphan, OrphanKind, Orphans},
};
use k8s_openapi::jiff::Timestamp;
use tokio::time::sleep;
use tracing::{info, warn};

use self::{
    judge::{Change, Record, Suspect},
    tell::Teller,
};
use super::Context;
use crate::{
    host::{Belongings, StepError},
    worker::protocol::{Answer, Call},
};

/// Before the first look, so that the watch has listed all volumes.
const FIRST: Duration = Duration::from_secs(60);
/// Before the look that shows whether what is new is there to stay.
const SOON: Duration = Duration::from_secs(30);

/// Looks again and again.
pub async fn watch(cx: Rc<Context>) {
    let teller = Teller::new(cx.client.clone(), cx.node_name.clone());
    let mut sight = Sight::default();
    let mut pause = FIRST;
    loop {
        sleep(pause.min(cx.orphan_interval)).await;
        pause = match look(&cx, &teller, &mut sight).await {
            Ok(true) => SOON,
            Ok(false) => cx.orphan_interval,
            Err(error) => {
                warn!(%error, "what belongs to no volume cannot be told");
                cx.orphan_interval
            }
        };
    }
}

/// One look. Says whether there is something that only the next one can tell.
async fn look(cx: &Context, teller: &Teller, sight: &mut Sight) -> Result<bool, StepError> {
    if !cx.readiness.missing().is_empty() {
        return Ok(false);
    }
    if let Some(volume) = cx.unreadable.borrow().first() {
        info!(
            volume,
            "a NodeVolume cannot be read, so what belongs to none is not told"
        );
        return Ok(false);
    }
    let here: Vec<_> = cx.volumes.borrow().values().map(|v| record(v)).collect();
    let known = here.iter().filter_map(|r| r.iqn.clone());
    let known: BTreeSet<_> = known.collect();
    let call = Call::Belongings(known.into_iter().collect());
    let Answer::Belongings(found) = cx.pool.call("belongings", call).await? else {
        return Ok(false);
    };
    let before = match sight.told.take() {
        Some(told) => told,
        None => teller.told().await?,
    };
    let before = sight.told.insert(before).clone();
    let (suspects, fresh) = sight.confirm(&found, &here);
    let now = match suspects.is_empty() {
        true => vec![],
        false => describe(
            suspects,
            &before.orphans,
            &teller.records().await?,
            &cx.node_name,
        ),
    };
    cx.metrics.orphans(now.iter().map(|o| o.kind));
    let now = list(now);
    for change in judge::changes(&before.orphans, &now.orphans) {
        match &change {
            Change::Found(o) => warn!("{}", text(o)),
            Change::Gone(o) => info!("{}", text(o)),
        }
        let (reason, orphan) = match &change {
            Change::Found(o) => (Reason::OrphanFound, o),
            Change::Gone(o) => (Reason::OrphanGone, o),
        };
        teller.publish(reason, orphan, &text(orphan)).await?;
    }
    if now != before {
        teller.write(&now).await?;
        sight.told = Some(now);
    }
    Ok(fresh)
}

/// What the looks so far have shown.
#[derive(Default)]
struct Sight {
    /// At the last look.
    seen: BTreeSet<(OrphanKind, String)>,
    /// What the Node says; nothing before it was read.
    told: Option<Orphans>,
}

impl Sight {
    /// Takes a look. Gives back what was there at the last one too, or was told before, and whether there is more.
    fn confirm(&mut self, found: &Belongings, here: &[Record]) -> (Vec<Suspect>, bool) {
        let suspects = judge::suspects(found, here);
        let told = self.told.iter().flat_map(|t| &t.orphans);
        let told = told.map(|o| (o.kind, o.name.clone()));
        let before: BTreeSet<_> = self.seen.iter().cloned().chain(told).collect();
        self.seen = suspects.iter().map(Suspect::key).collect();
        let (old, new): (Vec<_>, Vec<_>) = suspects
            .into_iter()
            .partition(|s| before.contains(&s.key()));
        (old, !new.is_empty())
    }
}

/// All of them in full; what was told before keeps its time.
fn describe(
    suspects: Vec<Suspect>,
    before: &[Orphan],
    records: &[Record],
    node: &str,
) -> Vec<Orphan> {
    let since: BTreeMap<_, _> = before
        .iter()
        .map(|o| ((o.kind, o.name.clone()), &o.since))
        .collect();
    let now = Timestamp::from_second(Timestamp::now().as_second())
        .unwrap_or_default()
        .to_string();
    suspects
        .into_iter()
        .filter_map(|s| {
            let since = since.get(&s.key()).map(|s| (*s).clone());
            s.tell(records, node, since.unwrap_or_else(|| now.clone()))
        })
        .collect()
}

/// As many as there is room for.
fn list(mut orphans: Vec<Orphan>) -> Orphans {
    let more = orphans.len().saturating_sub(Orphans::MOST);
    orphans.truncate(Orphans::MOST);
    Orphans { orphans, more }
}

/// One of them in sentences.
fn text(o: &Orphan) -> String {
    let mut what = o.what.clone();
    if let Some(first) = what.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    format!(
        "{what}, since {}. {}. {}",
        o.since,
        o.whose.trim_end_matches('.'),
        o.next_step
    )
}

fn record(volume: &NodeVolume) -> Record {
    let spec = &volume.spec;
    Record {
        display: names::display(volume),
        node: spec.node_name.clone(),
        uid: spec.volume_ref.uid.clone(),
        link: spec.link.clone(),
        iqn: spec.source.iscsi.as_ref().map(|i| i.iqn.clone()),
        file: spec.source.file.as_ref().map(|f| f.path.clone()),
    }
}
