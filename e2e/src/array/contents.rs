//! Targets, their disks and accounts, and what goes wrong with them.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Array, Chap, Lun, Target};

/// What tgtd says of a disk with a command on its way.
const STILL_ACTIVE: &str = "still active";
/// By then every command has ended.
const COMMANDS_END: Duration = Duration::from_secs(10);

impl Array {
    /// Adds a target without disks, open to every initiator.
    pub fn create_target(&mut self, iqn: &str) -> Result<()> {
        ensure!(
            self.state.targets.iter().all(|t| t.iqn != iqn),
            "there is a target {iqn} already"
        );
        let id = self.state.targets.iter().map(|t| t.id).max().unwrap_or(0) + 1;
        let target = Target {
            id,
            iqn: iqn.into(),
            chap: None,
            own_chap: None,
            luns: Vec::new(),
        };
        self.tell_target(&target)?;
        self.state.targets.push(target);
        self.save()
    }

    /// Adds an empty disk of `size` bytes (a sparse file) at this number, 1 or more.
    pub fn create_lun(&mut self, iqn: &str, number: u16, size: u64) -> Result<Lun> {
        let lun = Lun {
            target: iqn.into(),
            number,
            ..self.spare(size)?
        };
        self.add_lun(lun)
    }

    /// As [`Array::create_lun`], thin: see [`Lun::thin`].
    pub fn create_thin_lun(&mut self, iqn: &str, number: u16, size: u64) -> Result<Lun> {
        let lun = Lun {
            target: iqn.into(),
            number,
            thin: true,
            ..self.spare(size)?
        };
        self.add_lun(lun)
    }

    /// Adds a disk that was made with [`Array::spare`], or that was there before, at the place that it names.
    pub fn add_lun(&mut self, lun: Lun) -> Result<Lun> {
        ensure!(lun.number > 0, "LUN 0 is tgtd's controller");
        self.tell_lun(self.target(&lun.target)?.id, &lun)?;
        let iqn = lun.target.clone();
        self.target_mut(&iqn)?.luns.push(lun.clone());
        self.save()?;
        Ok(lun)
    }

    /// A disk without a place on the array yet, with names of its own.
    pub fn spare(&mut self, size: u64) -> Result<Lun> {
        let file = self.dir.join(format!("disk-{}.img", self.state.next_file));
        File::create(&file)?.set_len(size)?;
        let name = format!(
            "{:04x}{:012x}",
            self.state.place.number(),
            self.state.next_file
        );
        let serial = format!(
            "cryptvol-{}-{}",
            self.state.place.number(),
            self.state.next_file
        );
        self.state.next_file += 1;
        self.save()?;
        Ok(Lun {
            target: String::new(),
            number: 0,
            file,
            name,
            serial,
            thin: false,
        })
    }

    /// The disk that is there now.
    pub fn lun(&self, iqn: &str, number: u16) -> Result<&Lun> {
        self.target(iqn)?
            .luns
            .iter()
            .find(|l| l.number == number)
            .with_context(|| format!("{iqn} has no LUN {number}"))
    }

    /// From now on logins need this name and password (one-way CHAP, 12 to 16 characters by RFC 7143); a former one is void.
    /// Sessions that exist stay.
    pub fn set_chap(&mut self, iqn: &str, user: &str, password: &str) -> Result<()> {
        self.clear_chap(iqn)?;
        let chap = Chap {
            user: user.into(),
            password: password.into(),
        };
        self.tell_chap(self.target(iqn)?.id, &chap)?;
        self.target_mut(iqn)?.chap = Some(chap);
        self.save()
    }

    /// From now on the target proves itself with this name and password to whoever asks (mutual CHAP); needs a call of
    /// [`Array::set_chap`] before.
    pub fn set_own_chap(&mut self, iqn: &str, user: &str, password: &str) -> Result<()> {
        self.clear_own_chap(iqn)?;
        let chap = Chap {
            user: user.into(),
            password: password.into(),
        };
        self.tell_own_chap(self.target(iqn)?.id, &chap)?;
        self.target_mut(iqn)?.own_chap = Some(chap);
        self.save()
    }

    /// From now on a discovery needs this name and password; a former one is void.
    pub fn set_discovery_chap(&mut self, user: &str, password: &str) -> Result<()> {
        self.forget_account(self.state.discovery_chap.as_ref())?;
        let chap = Chap {
            user: user.into(),
            password: password.into(),
        };
        self.tell_discovery_chap(&chap, &[])?;
        self.state.discovery_chap = Some(chap);
        self.save()
    }

    /// From now on the array proves itself with this name and password in a discovery to whoever asks (mutual CHAP), or cannot; needs a
    /// call of [`Array::set_discovery_chap`] before.
    pub fn set_discovery_own_chap(&mut self, account: Option<(&str, &str)>) -> Result<()> {
        self.forget_account(self.state.discovery_own_chap.as_ref())?;
        self.state.discovery_own_chap = account.map(|(user, password)| Chap {
            user: user.into(),
            password: password.into(),
        });
        if let Some(chap) = &self.state.discovery_own_chap {
            self.tell_discovery_chap(chap, &["--outgoing"])?;
        }
        self.save()
    }

    /// With an account its binding goes too.
    fn forget_account(&self, chap: Option<&Chap>) -> Result<()> {
        let Some(chap) = chap else { return Ok(()) };
        self.admin(&["--mode", "account", "--op", "delete", "--user", &chap.user])
            .map(|_| ())
    }

    /// From now on the target cannot prove itself.
    pub fn clear_own_chap(&mut self, iqn: &str) -> Result<()> {
        if let Some(chap) = self.target(iqn)?.own_chap.clone() {
            self.forget_account(Some(&chap))?;
            self.target_mut(iqn)?.own_chap = None;
            self.save()?;
        }
        Ok(())
    }

    /// From now on everybody may log in.
    pub fn clear_chap(&mut self, iqn: &str) -> Result<()> {
        let target = self.target(iqn)?.clone();
        if let Some(chap) = target.chap {
            let id = target.id.to_string();
            self.admin(&[
                "--mode", "account", "--op", "unbind", "--tid", &id, "--user", &chap.user,
            ])?;
            self.admin(&["--mode", "account", "--op", "delete", "--user", &chap.user])?;
            self.target_mut(iqn)?.chap = None;
            self.save()?;
        }
        Ok(())
    }

    /// Takes a disk away; its file stays.
    pub fn remove_lun(&mut self, iqn: &str, number: u16) -> Result<()> {
        let (target, lun) = (self.target(iqn)?.id.to_string(), number.to_string());
        let place = ["--tid", &target, "--lun", &lun];
        let deadline = Instant::now() + COMMANDS_END;
        loop {
            let delete = ["--mode", "logicalunit", "--op", "delete"];
            match self.admin(&[&delete[..], &place].concat()) {
                // A command is on its way in the disk: tgtd takes it away only between two.
                Err(e) if format!("{e:#}").contains(STILL_ACTIVE) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                done => {
                    done?;
                    break;
                }
            }
        }
        self.target_mut(iqn)?.luns.retain(|l| l.number != number);
        self.save()
    }

    /// Takes a target away with all its sessions and disks; the files stay.
    pub fn remove_target(&mut self, iqn: &str) -> Result<()> {
        let id = self.target(iqn)?.id.to_string();
        self.admin(&[
            "--mode", "target", "--op", "delete", "--force", "--tid", &id,
        ])?;
        self.state.targets.retain(|t| t.iqn != iqn);
        self.save()
    }

    /// Puts another disk at the same number, with its own names and size. An initiator that is logged in goes on and reads the
    /// other disk; its kernel still shows the names that it read first.
    pub fn swap_lun(&mut self, iqn: &str, number: u16, replacement: &Lun) -> Result<()> {
        self.remove_lun(iqn, number)?;
        self.add_lun(Lun {
            target: iqn.into(),
            number,
            ..replacement.clone()
        })
        .map(|_| ())
    }

    /// The disk goes on under the same names with another size; what lies beyond a smaller one is lost. An initiator sees it when it looks.
    /// tgtd can only take the disk away and give it back, so that a request in between would be refused, which no array does that grows a disk.
    pub fn resize_lun(&mut self, iqn: &str, number: u16, size: u64) -> Result<()> {
        let lun = self.lun(iqn, number)?.clone();
        File::options().write(true).open(&lun.file)?.set_len(size)?;
        self.held_back(|array| array.swap_lun(iqn, number, &lun))
    }

    /// The disk goes on under the same names and reads as zeros, like a thin volume that lost its blocks. Returns the disk that
    /// was there, for [`Array::swap_lun`] to put back.
    pub fn read_as_zeros(&mut self, iqn: &str, number: u16) -> Result<Lun> {
        let before = self.lun(iqn, number)?.clone();
        let file = self.spare(before.size()?)?.file;
        self.swap_lun(
            iqn,
            number,
            &Lun {
                file,
                ..before.clone()
            },
        )?;
        Ok(before)
    }

    /// The disk goes on under the same names and size, and every read fails with a medium error (`ENODATA` for the reader): its
    /// file is cut to nothing while tgtd has it open. Returns the disk that was there, for [`Array::swap_lun`] to put back.
    pub fn fail_reads(&mut self, iqn: &str, number: u16) -> Result<Lun> {
        let before = self.read_as_zeros(iqn, number)?;
        File::options()
            .write(true)
            .open(&self.lun(iqn, number)?.file)?
            .set_len(0)?;
        Ok(before)
    }

    pub(super) fn target(&self, iqn: &str) -> Result<&Target> {
        self.state
            .targets
            .iter()
            .find(|t| t.iqn == iqn)
            .with_context(|| format!("the array has no target {iqn}"))
    }

    pub(super) fn target_mut(&mut self, iqn: &str) -> Result<&mut Target> {
        self.state
            .targets
            .iter_mut()
            .find(|t| t.iqn == iqn)
            .with_context(|| format!("the array has no target {iqn}"))
    }
}
