//! Keeping a second store alike: paying it what it is owed, backups too.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::select::{Extent, Which};
use super::{Copy, CopyExtent, Error};
use crate::output;
use crate::progress::Show;
use crate::repository::owed::{MirrorMode, Owed};
use crate::repository::{BackupId, Repository};
use crate::wal::mirror::Mirror;

/// The first store, and the second one that follows it.
pub struct Following<'a> {
    /// The first one.
    pub first: &'a Repository,
    /// The second one.
    pub mirror: &'a Mirror,
    /// Objects that are sent at a time.
    pub threads: usize,
    /// How progress is shown.
    pub show: Show,
}

impl Following<'_> {
    /// Gives the second store a backup that the first has, with what it stands on and all WAL since then. Before that it gets all
    /// that it is owed.
    ///
    /// # Errors
    /// Where it must have the backup, why it does not; it is owed in either mode.
    pub fn backup(&self, id: &BackupId) -> Result<(), Error> {
        // The daemon shall not send it too.
        let _lock = self.mirror.lock();
        // It was owed before it was committed; who paid meanwhile may have found none.
        self.mirror.owe(self.first, &Owed::Backup(id.clone()))?;
        match self.pay_all() {
            Ok(_) => Ok(()),
            Err(error) => self.is_owed(id, error),
        }
    }

    /// Gives the second store what was said of a backup.
    ///
    /// # Errors
    /// As [`Following::backup`].
    pub fn marks(&self, id: &BackupId) -> Result<(), Error> {
        let copied = self.first.copy_marks(id, &self.mirror.second);
        let Err(error) = copied else {
            return Ok(());
        };
        self.mirror.owe(self.first, &Owed::Backup(id.clone()))?;
        self.is_owed(id, error.into())
    }

    fn is_owed(&self, id: &BackupId, error: Error) -> Result<(), Error> {
        let error = Error::NotMirrored {
            id: id.clone(),
            first: self.first.store_url().to_owned(),
            second: self.mirror.second.store_url().to_owned(),
            source: Box::new(error),
        };
        match self.mirror.mode {
            MirrorMode::Both => Err(error),
            MirrorMode::Owed => {
                tracing::warn!("{}; it is owed", output::chain(&error));
                Ok(())
            }
        }
    }

    /// Pays what is owed before a backup is taken: a second store that must have it and does not answer is told of now.
    ///
    /// # Errors
    /// As [`Following::pay_all`], where the second store must have the backup.
    pub fn prepare(&self) -> Result<(), Error> {
        match (self.pay_all(), self.mirror.mode) {
            (Ok(_), _) => Ok(()),
            (Err(error), MirrorMode::Both) if error.is_of_a_store() => Err(error),
            (Err(error), MirrorMode::Both | MirrorMode::Owed) => {
                tracing::warn!(
                    "the mirror does not get what it is owed: {}",
                    output::chain(&error)
                );
                Ok(())
            }
        }
    }

    /// Pays all that is owed, whoever noted it: WAL first. What is wrong with one debt does not keep the others back. Returns how
    /// many were paid.
    ///
    /// # Errors
    /// Why the rest is not paid.
    pub fn pay_all(&self) -> Result<u64, Error> {
        self.mirror.read_debts(self.first)?;
        self.mirror.must_answer()?;
        for gap in self.first.recorded_gaps()? {
            self.first.copy_gap(gap.dropped, &self.mirror.second)?;
        }
        let debts = self.mirror.noted();
        let is_backup = |owed: &Owed| match owed {
            Owed::Backup(id) => Some(id.clone()),
            Owed::Wal(_) => None,
        };
        let backups: BTreeSet<BackupId> = debts.iter().filter_map(is_backup).collect();
        let (mut paid, failure) = self.mirror.pay_each(self.first, debts, || false);
        let mut failure: Option<Error> = failure.map(Error::from);
        if failure.as_ref().is_some_and(Error::is_of_a_store) {
            return failure.map_or(Ok(paid), Err);
        }
        for id in backups {
            let Some(backup) = self.first.backup_if_there(&id)? else {
                // One that nobody makes was deleted, or never finished.
                if !self.first.leases(Timestamp::now())?.makes(&id) {
                    self.mirror.forget(self.first, &Owed::Backup(id));
                }
                continue;
            };
            // From what it stands on, so that the second store has no hole between the two.
            let chain = self.first.chain(&backup)?;
            let ids = chain.into_iter().map(|backup| backup.id).collect();
            let which = Which::Backups(ids, Extent::Onward);
            let copied = self.copy(self.first, &self.mirror.second).run(&which)?;
            let left_out = copied.backups.left_out + copied.wal.left_out;
            if left_out > 0 {
                failure.get_or_insert(Error::LeftOut(left_out));
                continue;
            }
            self.mirror.forget(self.first, &Owed::Backup(id));
            paid += 1;
        }
        failure.map_or(Ok(paid), Err)
    }

    /// A copy of one of both stores to the other.
    pub(super) fn copy<'a>(&'a self, source: &'a Repository, copy: &'a Repository) -> Copy<'a> {
        Copy {
            source,
            copy,
            pipeline: None,
            extent: CopyExtent::Everything,
            threads: self.threads,
            show: self.show,
        }
    }
}
