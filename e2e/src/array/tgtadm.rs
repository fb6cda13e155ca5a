//! What tgtd is told, and asked.

use anyhow::Result;

use super::{Array, Chap, Lun, Target};
use crate::process::run;
use crate::sandbox::plain_path;

impl Array {
    /// The initiators that are logged in to a target now.
    pub fn initiators(&self, iqn: &str) -> Result<Vec<String>> {
        let text = self.admin(&["--mode", "target", "--op", "show"])?;
        let mut ours = false;
        let mut found = Vec::new();
        for line in text.lines() {
            if line.starts_with("Target ") {
                ours = line.ends_with(&format!(": {iqn}"));
            } else if let Some(rest) = line.trim().strip_prefix("Initiator: ")
                && ours
            {
                found.push(
                    rest.split_whitespace()
                        .next()
                        .unwrap_or_default()
                        .to_owned(),
                );
            }
        }
        Ok(found)
    }

    pub(super) fn tell_target(&self, target: &Target) -> Result<()> {
        let id = target.id.to_string();
        self.admin(&[
            "--mode",
            "target",
            "--op",
            "new",
            "--tid",
            &id,
            "--targetname",
            &target.iqn,
        ])?;
        self.admin(&[
            "--mode",
            "target",
            "--op",
            "bind",
            "--tid",
            &id,
            "--initiator-address",
            "ALL",
        ])
        .map(|_| ())
    }

    pub(super) fn tell_chap(&self, id: u32, chap: &Chap) -> Result<()> {
        self.tell_account(id, chap, &[])
    }

    pub(super) fn tell_own_chap(&self, id: u32, chap: &Chap) -> Result<()> {
        self.tell_account(id, chap, &["--outgoing"])
    }

    /// An account that is bound to no target is asked for in discoveries, or (outgoing) proved there.
    pub(super) fn tell_discovery_chap(&self, chap: &Chap, direction: &[&str]) -> Result<()> {
        self.new_account(chap)?;
        let bind = ["--mode", "account", "--op", "bind", "--user", &chap.user];
        self.admin(&[&bind[..], direction].concat()).map(|_| ())
    }

    fn new_account(&self, chap: &Chap) -> Result<()> {
        self.admin(&[
            "--mode",
            "account",
            "--op",
            "new",
            "--user",
            &chap.user,
            "--password",
            &chap.password,
        ])
        .map(|_| ())
    }

    pub(super) fn tell_account(&self, id: u32, chap: &Chap, direction: &[&str]) -> Result<()> {
        let id = id.to_string();
        self.new_account(chap)?;
        let bind = [
            "--mode", "account", "--op", "bind", "--tid", &id, "--user", &chap.user,
        ];
        self.admin(&[&bind[..], direction].concat()).map(|_| ())
    }

    pub(super) fn tell_lun(&self, id: u32, lun: &Lun) -> Result<()> {
        let (id, number, file) = (
            id.to_string(),
            lun.number.to_string(),
            plain_path(&lun.file)?,
        );
        let place = ["--mode", "logicalunit", "--tid", &id, "--lun", &number];
        self.admin(&[&place[..], &["--op", "new", "--backing-store", file]].concat())?;
        let mut parameters = vec![("scsi_id", &lun.name[..]), ("scsi_sn", &lun.serial)];
        if lun.thin {
            parameters.push(("thin_provisioning", "1"));
        }
        for (name, value) in parameters {
            self.admin(
                &[
                    &place[..],
                    &["--op", "update", "--params", &format!("{name}={value}")],
                ]
                .concat(),
            )?;
        }
        Ok(())
    }

    pub(super) fn admin(&self, args: &[&str]) -> Result<String> {
        let control = self.state.place.control();
        run(
            "tgtadm",
            &[&["-C", &control, "--lld", "iscsi"], args].concat(),
        )
    }
}
