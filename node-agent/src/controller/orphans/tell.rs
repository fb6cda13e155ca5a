//! What the API server is asked and told of orphans: all NodeVolumes, Events on the Node, and an annotation that stays when those are gone.

use cryptvol_crds::{
    NodeVolume,
    conditions::{self, Reason},
    names,
    orphans::{Orphan, Orphans},
};
use k8s_openapi::{
    api::{core::v1::Node, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{super::api::within, judge::Record};
use crate::host::StepError;

/// Where Events on objects without a namespace lie.
const NAMESPACE: &str = "default";
/// NodeVolumes in one answer of the API server: the agent has little memory.
const PAGE: u32 = 100;

/// This node, for the API server.
pub struct Teller {
    client: Client,
    node: String,
}

impl Teller {
    /// For the node of that name.
    pub fn new(client: Client, node: String) -> Self {
        Self { client, node }
    }

    /// What the Node says, from an earlier life of this agent too. What cannot be read counts as nothing, and is written anew.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn told(&self) -> Result<Orphans, StepError> {
        let node = self.get().await?;
        let said = node.annotations().get(names::ORPHANS_ANNOTATION);
        Ok(said
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default())
    }

    /// All NodeVolumes of the cluster, as etcd has them now.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn records(&self) -> Result<Vec<Record>, StepError> {
        // One that was written by a later version can be read as far as it goes.
        let kind = ApiResource::erase::<NodeVolume>(&());
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &kind);
        let mut params = ListParams::default().limit(PAGE);
        let mut records = Vec::new();
        loop {
            let page = within("list the NodeVolumes", api.list(&params)).await?;
            records.extend(page.items.iter().map(record));
            match page.metadata.continue_.filter(|c| !c.is_empty()) {
                Some(next) => params = params.continue_token(&next),
                None => return Ok(records),
            }
        }
    }

    /// Publishes an Event, if it was not published before: its name says what it tells.
    ///
    /// # Errors
    /// When the API server does not take it.
    pub async fn publish(
        &self,
        reason: Reason,
        orphan: &Orphan,
        text: &str,
    ) -> Result<(), StepError> {
        let event = event(&self.get().await?, reason, orphan, text);
        let api: Api<Event> = Api::namespaced(self.client.clone(), NAMESPACE);
        within("publish an Event", async {
            match api.create(&PostParams::default(), &event).await {
                Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
                other => other.map(drop),
            }
        })
        .await
    }

    /// Writes the annotation.
    ///
    /// # Errors
    /// When the API server does not take it.
    pub async fn write(&self, orphans: &Orphans) -> Result<(), StepError> {
        let text = match orphans.orphans.is_empty() {
            true => Value::Null,
            false => json!(serde_json::to_string(orphans).unwrap_or_default()),
        };
        let api: Api<Node> = Api::all(self.client.clone());
        let patch = json!({"metadata": {"annotations": {names::ORPHANS_ANNOTATION: text}}});
        let params = PatchParams {
            field_manager: Some(names::AGENT_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Strategic(patch);
        within(
            "write the Node's annotation",
            api.patch_status(&self.node, &params, &patch),
        )
        .await
        .map(drop)
    }

    async fn get(&self) -> Result<Node, StepError> {
        let api: Api<Node> = Api::all(self.client.clone());
        within("read the Node", api.get(&self.node)).await
    }
}

/// As much as there is of it.
pub(super) fn record(object: &DynamicObject) -> Record {
    let text = |pointer: &str| {
        let value = object.data.pointer(pointer);
        value.and_then(Value::as_str).map(str::to_owned)
    };
    Record {
        display: names::display(object),
        node: text("/spec/nodeName").unwrap_or_default(),
        uid: text("/spec/volumeRef/uid").unwrap_or_default(),
        link: text("/spec/link").unwrap_or_default(),
        iqn: text("/spec/source/iscsi/iqn"),
        file: text("/spec/source/file/path"),
    }
}

/// An Event whose name follows from what it tells.
pub(super) fn event(node: &Node, reason: Reason, orphan: &Orphan, text: &str) -> Event {
    let name = node.name_any();
    let told = format!("{reason} {} {text}", orphan.kind.as_str());
    let digest = hex::encode(&Sha256::digest(told.as_bytes())[..8]);
    let cut = |length: usize| name.get(..length).unwrap_or(&name);
    let type_ = match reason {
        Reason::OrphanFound => "Warning",
        _ => "Normal",
    };
    let note = match reason {
        Reason::OrphanFound => conditions::message(reason, text),
        _ => conditions::message(
            reason,
            &format!("{}: gone, or a volume's again", orphan.what),
        ),
    };
    Event {
        metadata: ObjectMeta {
            name: Some(format!(
                "{}.cryptvol-{digest}",
                cut(200).trim_end_matches(['.', '-'])
            )),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some(type_.to_owned()),
        reason: Some(reason.as_str().to_owned()),
        note: Some(note),
        action: Some("Look".to_owned()),
        regarding: Some(node.object_ref(&())),
        reporting_controller: Some(names::AGENT_MANAGER.to_owned()),
        reporting_instance: Some(cut(128).to_owned()),
        event_time: Some(MicroTime(Timestamp::now())),
        ..Event::default()
    }
}
