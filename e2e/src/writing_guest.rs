//! A guest that writes all the time, so that a test sees whether I/O goes on and whether what it was told is stored is there afterwards.

use anyhow::{Context, Result, ensure};

use crate::node::{Node, Spawned};
use crate::process::wait_for;
use crate::site::AGENT_LOG;
use crate::volumes::{PATIENCE, Volume};

/// What it writes behind each number; an array that has it has plaintext.
pub const WORDS: &str = "plaintext-of-the-guest";
/// Writes a number and the words, waits until they are stored, notes the number, and so on. Ends at the first error.
const SCRIPT: &str = "i=0; while printf '%-4096s' \"$i $1\" | dd of=$0 bs=4096 iflag=fullblock oflag=direct conv=notrunc,fsync status=none; \
                      do echo $i >/run/written.new; mv -f /run/written.new /run/written; i=$((i+1)); done; echo failed >/run/guest-failed";

/// The guest of a volume on a node; a node has one at a time.
pub struct WritingGuest<'a> {
    node: &'a Node,
    link: String,
}

impl<'a> WritingGuest<'a> {
    /// Of this volume. Nothing is started.
    pub fn of(node: &'a Node, volume: &Volume) -> Self {
        Self {
            node,
            link: volume.link(),
        }
    }

    /// Starts it under a name, and waits until its first write is stored. What an earlier one noted is forgotten.
    pub async fn start(&self, name: &str) -> Result<Spawned> {
        self.sh("rm -f /run/written /run/guest-failed").await?;
        let command = ["bash", "-c", SCRIPT, &self.link, WORDS];
        let guest = self.node.spawn(name, &command, &[]).await?;
        wait_for(
            "the guest's first write",
            PATIENCE,
            || async { Ok(self.written().await.ok()) },
            || self.node.log(AGENT_LOG),
        )
        .await?;
        Ok(guest)
    }

    /// The last number of which it was told that it is stored.
    pub async fn written(&self) -> Result<u64> {
        let text = self.sh("cat /run/written").await?;
        text.trim().parse().with_context(|| format!("{text:?}"))
    }

    /// Whether it ended with an error.
    pub async fn has_failed(&self) -> Result<bool> {
        let files = self.sh("ls /run").await?;
        Ok(files.lines().any(|f| f == "guest-failed"))
    }

    /// Waits until it has written anew, several times.
    pub async fn goes_on(&self) -> Result<()> {
        let before = self.written().await?;
        wait_for(
            "the guest to write",
            PATIENCE,
            || async { Ok((self.written().await? > before + 3).then_some(())) },
            || self.node.log(AGENT_LOG),
        )
        .await?;
        ensure!(!self.has_failed().await?, "the guest failed");
        Ok(())
    }

    /// The number that is on the disk.
    pub async fn read(&self) -> Result<u64> {
        let read = format!(
            "dd if={} bs=4096 count=1 iflag=direct status=none",
            self.link
        );
        let text = self.sh(&read).await?;
        let number = text.split(' ').next().unwrap_or_default();
        number.parse().with_context(|| format!("{text:?}"))
    }

    async fn sh(&self, script: &str) -> Result<String> {
        self.node.sh(script).await?.ok()
    }
}
