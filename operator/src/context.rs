//! What every pass needs: clients, caches, memory of what was asked, Events.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use cryptvol_crds::{EncryptedVolume, v1alpha1::EncryptedVolumeStatus};
use kube::{
    Client, Resource, ResourceExt,
    runtime::events::{Event, EventType, Recorder},
};

use crate::{
    copies::Copies,
    metrics::Metrics,
    retry::{KEY_CHECK, Retries},
    stores::Stores,
    tenants::Tenants,
    volume::{
        observe,
        quota::Ledger,
        transitions::{self, Note},
        world::{KeyState, World},
    },
};

/// Shared by all passes of a leading replica.
pub struct Context {
    /// Client of the API server.
    pub client: Client,
    /// Caches.
    pub stores: Stores,
    /// Key managers.
    pub tenants: std::sync::Arc<Tenants>,
    /// What key managers said.
    pub memos: Memos,
    /// When second copies of headers are looked at again, and what was found.
    pub copies: Copies,
    /// Which volume has which disk.
    pub claims: Claims,
    /// Which volumes have a place in their project.
    pub ledger: Ledger,
    /// Attempts per object.
    pub retries: Retries,
    /// Metrics.
    pub metrics: Metrics,
    /// Events.
    pub recorder: Recorder,
    /// Told when a KeyService should be asked anew.
    pub key_service_changed: std::sync::Arc<tokio::sync::Notify>,
}

impl Context {
    /// Publishes an Event. Not being able to is logged, no more.
    pub async fn tell(&self, volume: &EncryptedVolume, warning: bool, reason: &str, note: &str) {
        self.publish(
            volume,
            &Note {
                warning,
                reason: reason.to_owned(),
                action: "Reconcile",
                text: note.to_owned(),
            },
        )
        .await;
    }

    /// Publishes what changed between two statuses.
    pub async fn tell_transitions(
        &self,
        volume: &EncryptedVolume,
        old: &EncryptedVolumeStatus,
        new: &EncryptedVolumeStatus,
    ) {
        for note in transitions::between(old, new) {
            self.publish(volume, &note).await;
        }
    }

    async fn publish(&self, volume: &EncryptedVolume, note: &Note) {
        let event = Event {
            type_: if note.warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: note.reason.clone(),
            note: Some(note.text.clone()),
            action: note.action.to_owned(),
            secondary: None,
        };
        self.metrics.writes.inc();
        if let Err(e) = self.recorder.publish(&event, &volume.object_ref(&())).await {
            tracing::warn!(reason = %note.reason, error = %e, "Event not published");
        }
    }

    /// Forgets a volume that is gone.
    pub fn forget(&self, volume: &EncryptedVolume) {
        let uid = volume.uid().unwrap_or_default();
        self.retries.reset(&uid);
        self.memos.forget(&uid);
        self.copies.forget(&uid);
        self.claims.forget(&uid);
        self.ledger.forget(&uid);
    }
}

/// What key managers said of volumes' keys, so that they are not asked at every pass.
#[derive(Default)]
pub struct Memos(Mutex<HashMap<String, Memo>>);

struct Memo {
    state: KeyState,
    /// The key on record when it was asked.
    recorded: Option<String>,
    until: Instant,
    service_generation: Option<i64>,
    secret: (String, String, Option<String>),
}

impl Memos {
    /// What was said of a volume's key, if it still holds.
    pub fn get(&self, world: &World) -> KeyState {
        let uid = world.volume.uid().unwrap_or_default();
        let memos = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match memos.get(&uid) {
            Some(memo)
                if memo.until > Instant::now()
                    && memo.is_of(recorded(world).as_deref())
                    && memo.service_generation == generation(world)
                    && memo.secret.1 == world.volume.spec.secret_name().unwrap_or_default() =>
            {
                memo.state.clone()
            }
            _ => KeyState::NotAsked,
        }
    }

    /// Remembers what was said: a key for an hour, a failure until the next attempt is due, and everything only as long
    /// as KeyService and Secret stay as they are.
    pub fn put(&self, ctx: &Context, world: &World, state: &KeyState) {
        let uid = world.volume.uid().unwrap_or_default();
        let hold = match state {
            KeyState::Known { key: Some(_), .. } => crate::retry::jittered(KEY_CHECK),
            KeyState::Failed { .. } => ctx.retries.peek(&uid).mul_f64(0.9),
            KeyState::Known { key: None, .. } | KeyState::NotAsked => Duration::ZERO,
        };
        let deleting = world.volume.metadata.deletion_timestamp.is_some();
        let mut memos = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if hold.is_zero() || deleting {
            memos.remove(&uid);
            return;
        }
        let namespace = world.volume.namespace().unwrap_or_default();
        let secret = world
            .volume
            .spec
            .secret_name()
            .unwrap_or_default()
            .to_owned();
        let version = ctx.tenants.seen(&namespace, &secret);
        memos.insert(
            uid,
            Memo {
                state: state.clone(),
                recorded: recorded(world),
                until: Instant::now() + hold,
                service_generation: generation(world),
                secret: (namespace, secret, version),
            },
        );
    }

    /// A Secret is at this version now: what was said with another one holds no more.
    pub fn secret_is_at(&self, namespace: &str, name: &str, version: Option<&str>) {
        let mut memos = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memos.retain(|_, m| {
            m.secret.0 != namespace || m.secret.1 != name || m.secret.2.as_deref() == version
        });
    }

    /// Forgets what was said of a volume's key.
    pub fn forget(&self, uid: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid);
    }
}

impl Memo {
    /// Whether it speaks of the key that is on record by now. A rotation records another one, and one that was lost is not to be taken from a
    /// memory that may be older than the last rotation.
    fn is_of(&self, recorded: Option<&str>) -> bool {
        let said = match &self.state {
            KeyState::Known { key: Some(key), .. } => Some(key.id.as_str()),
            _ => None,
        };
        self.recorded.as_deref() == recorded || (recorded.is_some() && said == recorded)
    }
}

fn recorded(world: &World) -> Option<String> {
    let key = world.volume.status.as_ref()?.key.as_ref()?;
    Some(key.id.clone())
}

fn generation(world: &World) -> Option<i64> {
    world.key_service.as_ref().ok()?.metadata.generation
}

/// Which volume has which disk, as far as this process gave it: the cache does not show our own last write yet.
#[derive(Default)]
pub struct Claims(Mutex<HashMap<String, String>>);

impl Claims {
    /// Takes a volume's disk for it; false when another volume that still exists was faster.
    pub fn claim(&self, ctx: &Context, volume: &EncryptedVolume) -> bool {
        let Some(disk) = observe::disk(volume) else {
            return true;
        };
        let uid = volume.uid().unwrap_or_default();
        let mut claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let holder = claims.get(&disk).cloned();
        let taken = holder.is_some_and(|h| {
            h != uid
                && ctx
                    .stores
                    .volumes
                    .find(|v| v.uid().as_ref() == Some(&h))
                    .is_some()
        });
        if !taken {
            // A local disk is another one on another node.
            claims.retain(|_, holder| *holder != uid);
            claims.insert(disk, uid);
        }
        !taken
    }

    /// Whether this process gave the volume its disk.
    pub fn has(&self, volume: &EncryptedVolume) -> bool {
        let Some(disk) = observe::disk(volume) else {
            return false;
        };
        let claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        claims.get(&disk) == volume.uid().as_ref()
    }

    fn forget(&self, uid: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, holder| holder != uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        keymanager::{KeyInfo, limits::Limits},
        volume::world::Problem,
    };
    use cryptvol_crds::conditions::Reason;

    #[test]
    fn what_was_said_of_another_key_than_the_one_on_record_holds_no_more() {
        let memo = |said: Option<&str>, recorded: Option<&str>| Memo {
            state: match said {
                Some(id) => KeyState::Known {
                    project_id: "p".into(),
                    limits: Limits::default(),
                    key: Some(KeyInfo {
                        id: id.into(),
                        name: None,
                        created: String::new(),
                        secret_type: "symmetric".into(),
                        content_type: None,
                    }),
                },
                None => KeyState::Failed {
                    logged_in: true,
                    problem: Problem::new(Reason::KeyServiceUnavailable, ""),
                },
            },
            recorded: recorded.map(str::to_owned),
            until: Instant::now(),
            service_generation: None,
            secret: Default::default(),
        };
        // Made, and then recorded.
        assert!(memo(Some("1"), None).is_of(None));
        assert!(memo(Some("1"), None).is_of(Some("1")));
        assert!(memo(Some("1"), Some("1")).is_of(Some("1")));
        // Rotated since, or lost.
        assert!(!memo(Some("1"), Some("1")).is_of(Some("2")));
        assert!(!memo(Some("1"), Some("1")).is_of(None));
        // An outage.
        assert!(memo(None, Some("1")).is_of(Some("1")));
        assert!(!memo(None, Some("1")).is_of(None));
    }
}
