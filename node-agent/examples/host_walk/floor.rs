//! The least that can be done in a process: a login request, a scan, a crypt table with a random key, a link, and back; no check, no
//! header, no flush.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cryptvol_crds::{names, v1alpha1::HeaderFacts};
use cryptvol_node_agent::host::{
    Chap, Lun, Query,
    real::{
        dm,
        iscsi::{self, iscsid::Iscsid, request},
        links::Links,
        luks::VolumeKey,
        sysfs::{self, Sysfs},
    },
};

use super::{LINK, LUKS_UUID, VOLUME_UID, done, quiet, timed};

/// What iscsid may take.
const LIMIT: Duration = Duration::from_secs(15);

/// Up and down.
pub fn round(lun: &Lun, query: &Query, chap: Option<&Chap>) -> Result<()> {
    let sysfs = Sysfs::default();
    let iscsid = timed("floor_find", Iscsid::find)?;
    let layout = iscsid.layout.context("unknown open-iscsi")?;
    let key = VolumeKey::random(64)?;
    let facts = HeaderFacts {
        luks_uuid: LUKS_UUID.into(),
        cipher: "aes-xts-plain64".into(),
        key_size: 512,
        sector_size: 512,
        data_offset: 16 << 20,
        digest: String::new(),
        ..HeaderFacts::default()
    };
    let ask = |request: &request::Request| -> Result<()> {
        let code = iscsid.ask(layout, request, LIMIT)?;
        ensure!(code == request::Code::SUCCESS, "iscsid: {code:?}");
        Ok(())
    };

    quiet()?;
    let start = Instant::now();
    let portal = &lun.target.portals[0];
    timed("floor_login", || {
        ask(&request::login(
            layout,
            &lun.target.iqn,
            portal,
            request::Patience::Only,
            chap,
        )?)
    })?;
    let iqn = &lun.target.iqn;
    let sessions = sysfs.sessions(iqn)?;
    let session = sessions.first().context("no session")?;
    timed("floor_scan", || {
        iscsi::scan(&sysfs, iqn, session.sid, lun.lun)
    })?;
    let device = sysfs.disk(session, lun.lun)?.context("no disk")?;
    let plan = dm::Plan {
        name: &query.mapping_name,
        uuid: &names::mapping_uuid(LUKS_UUID, VOLUME_UID),
        dev: &device.id.dev,
        size_bytes: device.id.size_bytes,
        facts: &facts,
        activation: Default::default(),
    };
    let mapping = timed("floor_open", || dm::create(&plan, Some(&key)))?;
    timed("floor_link", || Links::default().set(LINK, &mapping.path))?;
    done("floor_attach", start);

    quiet()?;
    let start = Instant::now();
    timed("floor_unlink", || Links::default().remove(LINK))?;
    timed("floor_close", || dm::close(&mapping.name, &mapping.uuid))?;
    let scsi = sysfs.scsi_device_dir(session, lun.lun);
    timed("floor_delete", || {
        sysfs::set_attribute(&scsi.join("delete"), "1")
    })?;
    timed("floor_logout", || {
        ask(&request::logout(layout, session.sid))
    })?;
    done("floor_detach", start);
    Ok(())
}
