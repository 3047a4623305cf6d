//! How many objects go and stay, and how long they are.

use serde::Serialize;

/// How many objects there are of each kind, and how long they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Objects of backups.
    pub backups: Both,
    /// Objects of backups that are none.
    pub leftovers: Both,
    /// WAL and what goes with it.
    pub wal: Both,
    /// Summaries.
    pub summaries: Both,
    /// Marks, claims, gaps, leases and reports.
    pub small: Both,
    /// Uploads that were begun and given up, of which the length is not known.
    pub uploads: u64,
}

/// What goes and what stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Both {
    /// What goes.
    pub goes: Amount,
    /// What stays.
    pub stays: Amount,
}

/// A number of objects, and their length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// How many.
    pub objects: u64,
    /// How many bytes they have in all.
    pub bytes: u64,
}

impl Amount {
    pub(super) fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }
}

impl Both {
    pub(super) fn add(&mut self, goes: bool, bytes: u64) {
        let amount = if goes {
            &mut self.goes
        } else {
            &mut self.stays
        };
        amount.add(bytes);
    }
}

impl Totals {
    /// What goes in all.
    pub fn goes(&self) -> Amount {
        let all = [
            self.backups,
            self.leftovers,
            self.wal,
            self.summaries,
            self.small,
        ];
        let sum = |of: fn(Amount) -> u64| all.iter().map(|both| of(both.goes)).sum();
        Amount {
            objects: sum(|amount| amount.objects) + self.uploads,
            bytes: sum(|amount| amount.bytes),
        }
    }
}
