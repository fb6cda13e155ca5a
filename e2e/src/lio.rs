//! An array that tells paths apart (ALUA): the kernel's own target (LIO) on a node of its own, with two controllers that share the disks. tgtd,
//! which is the array of all other tests, does not know ALUA.

use std::path::Path;

use anyhow::{Context, Result};

use crate::node::{Node, NodeSpec};

/// Its two controllers, by the last byte of their addresses; nodes have lower ones.
const ADDRESSES: [u8; 2] = [251, 252];
/// Where LIO's configuration is.
const CONFIG: &str = "/sys/kernel/config/target";

/// What a controller says of the disk (`alua_access_state`; SPC-4, table 34).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// `active/optimized`.
    Optimized = 0,
    /// `active/non-optimized`.
    NonOptimized = 1,
    /// `standby`.
    Standby = 2,
    /// `unavailable`.
    Unavailable = 3,
}

/// A running array; dropped, it is gone.
#[derive(Debug)]
pub struct Lio {
    node: Node,
    iqn: String,
}

impl Lio {
    /// Boots it with one target that has one disk of `size` bytes at LUN 1. Both controllers call it active/optimized.
    ///
    /// # Errors
    /// When the node or its kernel does not do as told.
    pub async fn start(dir: &Path, iqn: &str, size: u64) -> Result<Self> {
        let mut spec = NodeSpec::bare("array");
        spec.udev = false;
        let node = Node::boot(dir, spec).await?;
        let array = Self {
            node,
            iqn: iqn.to_owned(),
        };
        let [first, second] = ADDRESSES;
        array
            .sh(&format!(
                "set -e; modprobe -a target_core_mod target_core_file iscsi_target_mod
                 mount -t configfs configfs /sys/kernel/config
                 ip addr add 10.77.0.{first}/24 dev vec0; ip addr add 10.77.0.{second}/24 dev vec0
                 truncate -s {size} /disk.img
                 disk={CONFIG}/core/fileio_0/disk; mkdir -p $disk
                 echo fd_dev_name=/disk.img,fd_dev_size={size} >$disk/control
                 echo cryptvol-alua >$disk/wwn/vpd_unit_serial; echo 1 >$disk/enable
                 mkdir -p {CONFIG}/iscsi; mkdir {target}
                 for n in 1 2; do
                   group=$disk/alua/controller_$n; mkdir $group
                   echo $n >$group/tg_pt_gp_id; echo 1 >$group/alua_access_type
                   port={target}/tpgt_$n; mkdir $port $port/lun/lun_1
                   mkdir $port/np/10.77.0.$((250 + n)):3260
                   ln -s $disk $port/lun/lun_1/disk; echo controller_$n >$port/lun/lun_1/alua_tg_pt_gp
                   echo 0 >$port/attrib/authentication; echo 0 >$port/attrib/demo_mode_write_protect
                   echo 1 >$port/attrib/generate_node_acls; echo 1 >$port/attrib/cache_dynamic_acls
                   echo 1 >$port/enable
                 done",
                target = array.target(),
            ))
            .await?;
        Ok(array)
    }

    /// One portal of each controller.
    pub fn portals(&self) -> [String; 2] {
        ADDRESSES.map(|last| format!("10.77.0.{last}:3260"))
    }

    /// What each controller says from now on, the better one first, so that there is no moment in which none takes I/O; initiators are told
    /// with their next command.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub async fn say(&self, states: [State; 2]) -> Result<()> {
        let mut states: Vec<_> = (1..).zip(states).collect();
        states.sort_by_key(|(_, state)| *state as u8);
        for (n, state) in states {
            self.group(n, "alua_access_state", state as u8).await?;
        }
        Ok(())
    }

    /// What each controller says now, as the number in [`State`].
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn says(&self) -> Result<[u8; 2]> {
        let text = self
            .sh(&format!(
                "cat {CONFIG}/core/fileio_0/disk/alua/controller_[12]/alua_access_state"
            ))
            .await?;
        let mut numbers = text.lines().map(|line| line.trim().parse());
        let mut next = || numbers.next().context("a state")?.context("a number");
        Ok([next()?, next()?])
    }

    /// Initiators may have a controller take over (explicit ALUA), beside what the array does by itself.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub async fn let_initiators_choose(&self) -> Result<()> {
        for n in 1..=2 {
            self.group(n, "alua_access_type", 3).await?;
        }
        Ok(())
    }

    /// A controller is switched off, or on again: its sessions end, and nobody gets in.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub async fn switch(&self, controller: usize, on: bool) -> Result<()> {
        let (n, on) = (controller + 1, u8::from(on));
        self.sh(&format!("echo {on} >{}/tpgt_{n}/enable", self.target()))
            .await
            .map(drop)
    }

    /// Whether these bytes, which are plain ASCII, are anywhere on the disk.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn contains(&self, text: &str) -> Result<bool> {
        let grep = self
            .node
            .sh(&format!("grep -qaF '{text}' /disk.img"))
            .await?;
        Ok(grep.code == 0)
    }

    async fn group(&self, controller: u8, attribute: &str, value: u8) -> Result<()> {
        self.sh(&format!(
            "echo {value} >{CONFIG}/core/fileio_0/disk/alua/controller_{controller}/{attribute}"
        ))
        .await
        .map(drop)
    }

    fn target(&self) -> String {
        format!("{CONFIG}/iscsi/{}", self.iqn)
    }

    async fn sh(&self, script: &str) -> Result<String> {
        self.node.sh(script).await?.ok()
    }
}
