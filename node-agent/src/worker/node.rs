//! `execute::Node` over the workers: each call in a process of its own kind, with its deadline.

use std::rc::Rc;

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{HeaderBackup, KeySlotRef},
};

use super::{
    pool::Pool,
    protocol::{Answer, Call},
};
use crate::{
    host::{
        AddSlotOrder, BackingFile, BackupOrder, Chap, DeviceId, Discovered, DropSlotsOrder, Erased,
        FormatOrder, Header, HeaderFound, Initialised, MapOrder, Mapping, NameOrder, Observed,
        OpenOrder, Query, RecordOrder, RestoreOrder, StepError, Target,
    },
    volume::execute::Node,
};

/// The node as one volume uses it.
pub struct Workers {
    pool: Rc<Pool>,
    volume: String,
    target: Option<String>,
}

impl Workers {
    /// The node for one volume, named for messages and so that a hanging step keeps others of the volume away, with the target that
    /// it shares with others.
    pub fn new(pool: Rc<Pool>, volume: String, target: Option<String>) -> Self {
        Self {
            pool,
            volume,
            target,
        }
    }

    async fn ask<T>(
        &self,
        call: Call,
        take: impl FnOnce(Answer) -> Option<T>,
    ) -> Result<T, StepError> {
        let (volume, target) = (&self.volume, self.target.as_deref());
        let deadline = call.deadline();
        let answer = self
            .pool
            .call_within(volume, target, &call, deadline)
            .await?;
        take(answer)
            .ok_or_else(|| StepError::new(Reason::StepFailed, "a worker answered another question"))
    }

    async fn act(&self, call: Call) -> Result<(), StepError> {
        self.ask(call, |a| matches!(a, Answer::Unit).then_some(()))
            .await
    }
}

macro_rules! of {
    ($kind:ident) => {
        |answer| match answer {
            Answer::$kind(inner) => Some(inner),
            _ => None,
        }
    };
}

impl Node for Workers {
    async fn observe(&self, query: &Query) -> Result<Observed, StepError> {
        self.ask(Call::Observe(query.clone()), of!(Observed))
            .await
            .map(|observed| *observed)
    }

    async fn login(
        &self,
        target: &Target,
        each: bool,
        chap: Option<Chap>,
    ) -> Result<(), StepError> {
        self.act(Call::Login(target.clone(), each, chap)).await
    }

    async fn discover(&self, target: &Target, chap: Option<Chap>) -> Result<Discovered, StepError> {
        self.ask(Call::Discover(target.clone(), chap), of!(Discovered))
            .await
    }

    async fn gather(&self, order: &MapOrder) -> Result<(), StepError> {
        self.act(Call::Gather(order.clone())).await
    }

    async fn scan(&self, iqn: &str, sid: u32, lun: u32) -> Result<(), StepError> {
        self.act(Call::Scan(iqn.to_owned(), sid, lun)).await
    }

    async fn read_header(&self, device: &DeviceId) -> Result<HeaderFound, StepError> {
        self.ask(Call::ReadHeader(device.clone()), of!(Found)).await
    }

    async fn format(&self, device: &DeviceId, order: FormatOrder) -> Result<Header, StepError> {
        self.ask(Call::Format(device.clone(), order), of!(Formatted))
            .await
    }

    async fn open(&self, device: &DeviceId, order: OpenOrder) -> Result<Mapping, StepError> {
        self.ask(Call::Open(device.clone(), order), of!(Opened))
            .await
    }

    async fn initialise(&self, mapping: &Mapping, from: u64) -> Result<Initialised, StepError> {
        self.ask(Call::Initialise(mapping.clone(), from), of!(Initialised))
            .await
    }

    async fn link(&self, link: &str, mapping: &Mapping) -> Result<(), StepError> {
        self.act(Call::Link(link.to_owned(), mapping.clone())).await
    }

    async fn unlink(&self, link: &str) -> Result<(), StepError> {
        self.act(Call::Unlink(link.to_owned())).await
    }

    async fn name(&self, order: NameOrder) -> Result<(), StepError> {
        self.act(Call::Name(order)).await
    }

    async fn close(&self, name: &str, uuid: &str) -> Result<(), StepError> {
        self.act(Call::Close(name.to_owned(), uuid.to_owned()))
            .await
    }

    async fn make_file(&self, file: &BackingFile) -> Result<(), StepError> {
        self.act(Call::MakeFile(file.clone())).await
    }

    async fn attach_file(&self, file: &BackingFile) -> Result<(), StepError> {
        self.act(Call::AttachFile(file.clone())).await
    }

    async fn lengthen_file(&self, device: &DeviceId, file: &BackingFile) -> Result<(), StepError> {
        self.act(Call::LengthenFile(device.clone(), file.clone()))
            .await
    }

    async fn remove_file(&self, file: &BackingFile) -> Result<(), StepError> {
        self.act(Call::RemoveFile(file.clone())).await
    }

    async fn delete_device(&self, device: &DeviceId) -> Result<(), StepError> {
        self.act(Call::DeleteDevice(device.clone())).await
    }

    async fn logout(&self, iqn: &str, sid: u32) -> Result<(), StepError> {
        self.act(Call::Logout(iqn.to_owned(), sid)).await
    }

    async fn grow(&self, device: &DeviceId, order: OpenOrder) -> Result<Mapping, StepError> {
        self.ask(Call::Grow(device.clone(), order), of!(Opened))
            .await
    }

    async fn sample(&self, device: &DeviceId, mapping: &Mapping) -> Result<(), StepError> {
        self.act(Call::Sample(device.clone(), mapping.clone()))
            .await
    }

    async fn suspend(&self, name: &str, uuid: &str) -> Result<(), StepError> {
        self.act(Call::Suspend(name.to_owned(), uuid.to_owned()))
            .await
    }

    async fn resume(&self, device: &DeviceId, order: OpenOrder) -> Result<Mapping, StepError> {
        self.ask(Call::Resume(device.clone(), order), of!(Opened))
            .await
    }

    async fn add_key_slot(
        &self,
        device: &DeviceId,
        order: AddSlotOrder,
    ) -> Result<Vec<KeySlotRef>, StepError> {
        self.ask(Call::AddKeySlot(device.clone(), order), of!(Slots))
            .await
    }

    async fn drop_key_slots(
        &self,
        device: &DeviceId,
        order: DropSlotsOrder,
    ) -> Result<(), StepError> {
        self.act(Call::DropKeySlots(device.clone(), order)).await
    }

    async fn backup_header(
        &self,
        device: &DeviceId,
        order: BackupOrder,
    ) -> Result<HeaderBackup, StepError> {
        self.ask(Call::BackupHeader(device.clone(), order), of!(BackedUp))
            .await
            .map(|backup| *backup)
    }

    async fn header_record(&self, order: RecordOrder) -> Result<HeaderBackup, StepError> {
        self.ask(Call::HeaderRecord(order), of!(BackedUp))
            .await
            .map(|record| *record)
    }

    async fn restore_header(
        &self,
        device: &DeviceId,
        order: RestoreOrder,
    ) -> Result<(), StepError> {
        self.act(Call::RestoreHeader(device.clone(), order)).await
    }

    async fn erase(&self, device: &DeviceId, luks_uuid: &str) -> Result<Erased, StepError> {
        self.ask(
            Call::Erase(device.clone(), luks_uuid.to_owned()),
            of!(Erased),
        )
        .await
    }

    async fn clear_header(&self, device: &DeviceId, luks_uuid: &str) -> Result<(), StepError> {
        self.act(Call::ClearHeader(device.clone(), luks_uuid.to_owned()))
            .await
    }
}
