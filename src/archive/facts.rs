//! What a plan asks of every segment that it names, kept so that a segment is asked once.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use walhalla_postgres::Lsn;
use walhalla_postgres::summary::Note;
use walhalla_postgres::wal::event::Event;

use super::proof::Proof;
use super::walk::Resolved;
use crate::wal::Error;

/// What a plan asks of a segment.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Ends of backups, checkpoints, other settings, and tablespaces that were created or dropped.
    pub notes: Vec<Note>,
    /// Ends of transactions by which standbys' backups are known.
    pub ends: Vec<(Lsn, Timestamp)>,
    /// Where its WAL ends although the segment goes on.
    pub cut: Option<Lsn>,
}

/// What is known of segments that follow one another, and where no more of them can be used.
#[derive(Debug, Default)]
pub struct Examined {
    /// Of each segment, in order.
    pub facts: Vec<Arc<Facts>>,
    /// Why the one after these cannot be used: it is damaged, or does not go on with what is before it.
    pub damage: Option<Error>,
}

impl Facts {
    /// What a segment tells; of transactions, those that ended at one of `ends`.
    pub(super) fn of(resolved: &Resolved, ends: &BTreeSet<Lsn>) -> Self {
        let is_kept = |note: &&Note| {
            matches!(
                note.event,
                Event::BackupEnd { .. }
                    | Event::Checkpoint(_)
                    | Event::ParameterChange { .. }
                    | Event::TablespaceCreated { .. }
                    | Event::TablespaceDropped { .. }
            )
        };
        let summary = &resolved.summary;
        let transactions = summary.transactions.iter();
        let transactions = transactions.filter(|end| ends.contains(&end.lsn));
        Self {
            notes: summary.notes.iter().filter(is_kept).cloned().collect(),
            ends: transactions.map(|end| (end.lsn, end.time)).collect(),
            cut: summary.cut,
        }
    }

    /// Shows a proof what it may look for.
    pub fn show(&self, proof: &mut Proof) {
        self.notes.iter().for_each(|note| proof.see(note));
        for (lsn, time) in &self.ends {
            proof.see_transaction(*lsn, *time);
        }
    }
}
