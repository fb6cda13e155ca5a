//! What the operator keeps of the cluster in memory: its own kinds whole, of nodes what a decision needs, of Secrets
//! nothing.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    hash::Hash,
    sync::{Arc, PoisonError, RwLock},
};

use cryptvol_crds::{EncryptedVolume, EncryptionClass, KeyService, NodeVolume};
use kube::{
    Resource,
    core::DeserializeGuard,
    runtime::reflector::{ObjectRef, Store},
};

use crate::volume::world::NodeState;

/// A cache of one kind in which objects that cannot be read are left out, instead of stopping the watch.
pub struct Guarded<K>(pub Store<DeserializeGuard<K>>)
where
    K: Resource + 'static,
    K::DynamicType: Hash + Eq;

impl<K> Guarded<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + 'static,
{
    /// A cluster-wide object by name.
    pub fn get(&self, name: &str) -> Option<Arc<K>> {
        let found = self.0.get(&ObjectRef::new(name))?;
        found.0.as_ref().ok().cloned().map(Arc::new)
    }

    /// All objects.
    pub fn all(&self) -> Vec<Arc<K>> {
        let all = self.0.state();
        all.iter()
            .filter_map(|o| o.0.as_ref().ok().cloned().map(Arc::new))
            .collect()
    }

    /// Copies of the objects that fit.
    pub fn find_all(&self, fits: impl Fn(&K) -> bool) -> Vec<K> {
        let all = self.0.state();
        all.iter()
            .filter_map(|o| o.0.as_ref().ok())
            .filter(|o| fits(o))
            .cloned()
            .collect()
    }

    /// A copy of the first object that fits.
    pub fn find(&self, fits: impl Fn(&K) -> bool) -> Option<K> {
        let all = self.0.state();
        all.iter()
            .filter_map(|o| o.0.as_ref().ok())
            .find(|o| fits(o))
            .cloned()
    }

    /// References to the objects that fit, as triggers.
    pub fn refs(&self, fits: impl Fn(&K) -> bool) -> Vec<ObjectRef<DeserializeGuard<K>>> {
        let all = self.0.state();
        all.iter()
            .filter(|o| o.0.as_ref().is_ok_and(&fits))
            .map(|o| ObjectRef::from_obj(o.as_ref()))
            .collect()
    }
}

/// All caches.
pub struct Stores {
    /// EncryptedVolumes.
    pub volumes: Guarded<EncryptedVolume>,
    /// NodeVolumes.
    pub node_volumes: Guarded<NodeVolume>,
    /// EncryptionClasses.
    pub classes: Guarded<EncryptionClass>,
    /// KeyServices.
    pub key_services: Guarded<KeyService>,
    /// Nodes.
    pub nodes: Nodes,
}

impl Stores {
    /// What is known of a node.
    pub fn node(&self, name: &str) -> Option<NodeState> {
        self.nodes
            .0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
    }
}

/// Nodes, as far as they matter.
#[derive(Clone, Default)]
pub struct Nodes(Arc<RwLock<BTreeMap<String, NodeState>>>);

impl Nodes {
    /// Takes a node's state in, and says whether anything changed. kubelet writes a Node every few minutes; only what a
    /// decision sees is a change.
    pub fn put(&self, name: &str, state: Option<NodeState>) -> bool {
        let mut nodes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let old = match state.clone() {
            Some(new) => nodes.insert(name.to_owned(), new),
            None => nodes.remove(name),
        };
        old != state
    }

    /// Forgets the nodes that a new list does not have, and names them.
    pub fn keep_only(&self, listed: &std::collections::BTreeSet<String>) -> Vec<String> {
        let mut nodes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<_> = nodes
            .keys()
            .filter(|n| !listed.contains(*n))
            .cloned()
            .collect();
        for name in &gone {
            nodes.remove(name);
        }
        gone
    }
}
