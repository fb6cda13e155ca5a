//! What is done to a volume in use: another key, out of use for a while, a larger disk, a key slot of somebody else.

use super::*;
use crate::host::Mapping;

const HEADER: u64 = 16 << 20;

impl Schedule<'_> {
    fn mapping(&self, n: usize) -> Option<Mapping> {
        let ours = names::mapping_name(&uid(n));
        let world = self.lab.world.borrow();
        let mut all = world.kernel.mappings.iter().map(|m| &m.mapping);
        all.find(|m| m.name == ours).cloned()
    }

    /// A person's wishes about a volume in use.
    pub(super) fn changes_in_use(&mut self, n: usize) {
        let lab = self.lab;
        if lab.volume(n).spec.desired == Desired::Erased {
            return;
        }
        if lab.volume(n).spec.suspended && self.dice.below(3) > 0 {
            return lab.change(n, |s| s.suspended = false);
        }
        match self.dice.below(6) {
            0 | 1 => self.rotate(n),
            // Before it was ever open, too, though not often.
            2 | 3 if self.mapping(n).is_some() || self.dice.below(8) == 0 => {
                lab.change(n, |s| s.suspended = true);
                self.tally.add("suspend");
            }
            4 => self.grow(n),
            2 | 3 => {}
            _ => self.slot_of_others(n),
        }
    }

    /// Another key: of volumes that were opened, as the operator sees to it, one rotation at a time.
    fn rotate(&mut self, n: usize) {
        let lab = self.lab;
        lab.operate(n);
        let spec = lab.volume(n).spec;
        if spec.rotation.is_some() || spec.header.is_none() {
            return;
        }
        lab.rotate(n, &format!("{n:032x}{:032x}", self.dice.next()));
        self.tally.add("rotate");
    }

    /// The array makes the disk larger, and a person has that looked at.
    fn grow(&mut self, n: usize) {
        let size = self.lab.disk(n, |d| {
            d.size += 64 << 20;
            d.size
        });
        let look = format!("look-{size}");
        self.lab.change(n, |s| s.rescan = Some(look));
        self.grown.push(n);
        self.tally.add("grow");
    }

    /// Somebody gives the header a key slot of their own.
    fn slot_of_others(&mut self, n: usize) {
        let truth = self.lab.truth.borrow()[&name(n)];
        let opened = self.lab.status(n).first_opened.is_some();
        let slot = "a key of somebody else".to_owned();
        let added = self.lab.disk(n, |d| match &mut d.content {
            Content::Luks(h) if opened && !h.slots.is_empty() && !h.slots.contains(&slot) => {
                h.slots.push(slot.clone());
                true
            }
            _ => false,
        });
        if added {
            let others = &mut self.lab.ledger.borrow_mut().others;
            others.slots.insert(truth, slot);
            self.tally.add("key slot of others");
        }
    }

    /// Counts what took effect.
    pub(super) fn look(&mut self) {
        for n in 1..=VOLUMES {
            let mapping = self.mapping(n);
            let key = |m: &Mapping| m.table.as_ref().is_some_and(|t| t.key_in_keyring);
            let was = self.suspended.contains(&n);
            match &mapping {
                Some(m) if m.suspended && !key(m) && !was => {
                    self.suspended.push(n);
                    self.tally.add("suspended");
                }
                Some(m) if !m.suspended && was => {
                    assert!(key(m), "4: it goes on without its key");
                    self.suspended.retain(|s| *s != n);
                    self.tally.add("resumed");
                }
                None => self.suspended.retain(|s| *s != n),
                _ => {}
            }
            let size = self.lab.disk(n, |d| d.size);
            let long = mapping.is_some_and(|m| m.size_bytes == size - HEADER);
            if long && self.grown.contains(&n) {
                self.grown.retain(|g| *g != n);
                self.tally.add("grown");
            }
        }
        self.look_at_names();
    }

    /// Without its key in the kernel, and said to be so.
    pub(super) fn rests_suspended(&self, n: usize) {
        if self.lab.volume(n).spec.desired != Desired::Attached {
            return;
        }
        let key = |m: Mapping| m.table.is_some_and(|t| t.key_in_keyring);
        assert!(
            self.lab.status(n).suspended && !self.mapping(n).is_some_and(key),
            "4: seed {}: volume {n} is to be suspended",
            self.seed
        );
    }

    /// A rotation of an attached volume comes to its end, and the new key alone is left of the two.
    pub(super) fn ends_rotation(&mut self, n: usize) {
        let (lab, seed) = (self.lab, self.seed);
        if lab.volume(n).spec.desired != Desired::Attached {
            return;
        }
        // A rotation that fails leaves the volume attached: a header that is gone shows at the next attachment.
        if lab.volume(n).spec.rotation.is_some() {
            for desired in [Desired::Detached, Desired::Attached] {
                lab.want(n, desired);
                self.come_to_rest(n);
            }
        }
        let rotation = lab.volume(n).spec.rotation;
        assert!(
            rotation.is_none(),
            "7: seed {seed}, volume {n}: {rotation:?}"
        );
        let gone = lab
            .overwritten
            .borrow()
            .contains(&lab.truth.borrow()[&name(n)]);
        let stored = lab.stored(&name(n));
        if gone || stored == KEY {
            return;
        }
        let theirs = lab.ledger.borrow().others.slots.clone();
        let truth = lab.truth.borrow()[&name(n)];
        lab.disk(n, |d| {
            let Content::Luks(h) = &d.content else {
                panic!("{:?}", d.content);
            };
            let ours: Vec<_> = h
                .slots
                .iter()
                .filter(|s| Some(*s) != theirs.get(&truth))
                .collect();
            assert_eq!(ours, [&stored], "8: seed {seed}, volume {n}");
        });
        self.tally.add("rotated");
    }

    /// As far as a person had it looked at.
    pub(super) fn is_as_long_as_its_disk(&self, n: usize) {
        let spec = self.lab.volume(n).spec;
        if spec.desired == Desired::Attached && spec.rescan.is_some() {
            let size = self.lab.disk(n, |d| d.size) - HEADER;
            let is = self.mapping(n).map(|m| m.size_bytes);
            assert_eq!(is, Some(size), "7: seed {}, volume {n}", self.seed);
        }
    }
}
