//! Which replica reconciles: the one that holds the Lease.
//!
//! A Lease of 30 s, renewed every 10 s. The holder stops 10 s before others may take it; a process that lost it ends,
//! so that nothing of its work is left half led. Every write carries the version that it was decided from.

use std::{future::Future, time::Duration};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Others may take a Lease that was not renewed for this long.
const DURATION: Duration = Duration::from_secs(30);
/// The holder renews this often.
const RENEW: Duration = Duration::from_secs(10);
/// The holder gives up when it could not renew for this long.
const GIVE_UP: Duration = Duration::from_secs(20);
/// Pause between attempts.
const RETRY: Duration = Duration::from_secs(2);
/// One call.
const CALL: Duration = Duration::from_secs(5);

/// Why leading ended.
#[derive(Debug, thiserror::Error)]
pub enum LeaderError {
    /// Another replica has the Lease.
    #[error("the lease was taken by {0}")]
    Taken(String),
    /// The Lease could not be renewed in time.
    #[error("the lease could not be renewed in time: {0}")]
    NotRenewed(String),
}

/// A candidate.
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
}

/// The Lease, held.
pub struct Held {
    candidate: Candidate,
    lease: Lease,
    renewed: Instant,
}

/// What a candidate last saw of the Lease, and since when by its own clock: clocks of nodes differ.
#[derive(Default)]
struct Observed {
    renew_time: Option<MicroTime>,
    holder: Option<String>,
    since: Option<Instant>,
}

impl Observed {
    /// Whether the Lease may be taken: it has no holder, or was not renewed for its duration while we watched.
    fn may_take(&mut self, spec: &LeaseSpec, me: &str, now: Instant) -> bool {
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder.is_empty() || holder == me {
            return true;
        }
        if self.since.is_none()
            || self.renew_time != spec.renew_time
            || self.holder.as_deref() != Some(holder)
        {
            self.renew_time.clone_from(&spec.renew_time);
            self.holder = Some(holder.to_owned());
            self.since = Some(now);
            return false;
        }
        let seconds = spec.lease_duration_seconds.unwrap_or(30);
        let duration = Duration::from_secs(u64::try_from(seconds).unwrap_or(30));
        self.since
            .is_some_and(|since| now.duration_since(since) >= duration)
    }
}

impl Candidate {
    /// A candidate. `identity` must be this process's alone.
    pub fn new(client: Client, namespace: &str, name: &str, identity: String) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity,
        }
    }

    /// Waits until the Lease is ours. Waiting writes nothing.
    pub async fn acquire(self) -> Held {
        let mut observed = Observed::default();
        loop {
            let begun = Instant::now();
            match call(self.attempt(&mut observed)).await {
                Ok(Some(lease)) => {
                    tracing::info!(lease = %self.name, "leading");
                    return Held {
                        candidate: self,
                        lease,
                        renewed: begun,
                    };
                }
                Ok(None) => {}
                Err(why) => tracing::warn!(lease = %self.name, why, "lease not read or taken"),
            }
            sleep(RETRY).await;
        }
    }

    async fn attempt(&self, observed: &mut Observed) -> Result<Option<Lease>, kube::Error> {
        let Some(lease) = self.api.get_opt(&self.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(None)),
            };
            return won(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        if !observed.may_take(&spec, &self.identity, Instant::now()) {
            return Ok(None);
        }
        let mut wanted = lease;
        wanted.spec = Some(self.spec(Some(&spec)));
        won(self
            .api
            .replace(&self.name, &PostParams::default(), &wanted)
            .await)
    }

    fn spec(&self, old: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(old.and_then(|o| o.lease_transitions).map_or(0, |n| n + 1)),
            ..LeaseSpec::default()
        }
    }
}

impl Held {
    /// Renews until that fails.
    pub async fn hold(&mut self) -> LeaderError {
        loop {
            sleep(RENEW).await;
            let last_chance = self.renewed + GIVE_UP;
            let mut why = "no answer in time".to_owned();
            let renewed = timeout_at(last_chance, async {
                loop {
                    let begun = Instant::now();
                    match call(self.renew()).await {
                        Ok(()) => return Ok(begun),
                        Err(e) => {
                            tracing::warn!(why = e, "lease not renewed");
                            why = e;
                        }
                    }
                    if let Some(other) = self.taken().await {
                        return Err(LeaderError::Taken(other));
                    }
                    sleep(RETRY).await;
                }
            });
            match renewed.await {
                Ok(Ok(begun)) => self.renewed = begun,
                Ok(Err(lost)) => return lost,
                Err(_) => return LeaderError::NotRenewed(why),
            }
        }
    }

    /// Gives the Lease back, so that another replica takes it at once.
    pub async fn release(mut self) {
        if let Some(spec) = &mut self.lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        let c = &self.candidate;
        let params = PostParams::default();
        let done = c.api.replace(&c.name, &params, &self.lease);
        if let Err(why) = call(done).await {
            tracing::warn!(why, "lease not given back; others wait until it ends");
        }
    }

    async fn renew(&mut self) -> Result<(), kube::Error> {
        let c = &self.candidate;
        if let Some(spec) = &mut self.lease.spec {
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        self.lease = c
            .api
            .replace(&c.name, &PostParams::default(), &self.lease)
            .await?;
        Ok(())
    }

    /// The other holder, if there is one. Where the Lease is still ours its version is taken over: an answer that was
    /// lost on its way back made us miss it.
    async fn taken(&mut self) -> Option<String> {
        let c = &self.candidate;
        let found = call(c.api.get(&c.name)).await.ok()?;
        let holder = found.spec.as_ref()?.holder_identity.clone()?;
        if holder == c.identity {
            self.lease = found;
            None
        } else {
            Some(holder)
        }
    }
}

fn won(result: Result<Lease, kube::Error>) -> Result<Option<Lease>, kube::Error> {
    match result {
        Ok(lease) => Ok(Some(lease)),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
        Err(e) => Err(e),
    }
}

async fn call<T>(f: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
    match timeout(CALL, f).await {
        Ok(Ok(t)) => Ok(t),
        Ok(Err(e)) => Err(crate::tenants::api_words(&e)),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, renewed: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(30),
            renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_is_taken_only_after_it_was_seen_unrenewed_for_its_duration() {
        let (mut o, t) = (Observed::default(), Instant::now());
        // However old the time in it is: the holder's clock is not ours.
        assert!(!o.may_take(&lease("other", 0), "me", t));
        assert!(!o.may_take(&lease("other", 0), "me", t + Duration::from_secs(29)));
        assert!(
            !o.may_take(&lease("other", 10), "me", t + Duration::from_secs(31)),
            "renewed"
        );
        assert!(
            !o.may_take(&lease("third", 10), "me", t + Duration::from_secs(62)),
            "another holder"
        );
        assert!(o.may_take(&lease("third", 10), "me", t + Duration::from_secs(92)));
    }

    #[test]
    fn a_lease_that_was_given_back_is_taken_at_once() {
        assert!(Observed::default().may_take(&lease("", 0), "me", Instant::now()));
        assert!(Observed::default().may_take(&lease("me", 0), "me", Instant::now()));
    }

    #[test]
    fn the_holder_stops_before_others_may_begin() {
        assert!(RENEW + CALL + RETRY <= GIVE_UP);
        assert!(GIVE_UP < DURATION);
    }
}
