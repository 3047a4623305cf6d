//! What a delta stands on: its parent, and what changed since.
//!
//! ```text
//! catalog ─▶ parent ─▶ WAL since its start ─▶ changed blocks
//!                      else the server's own summaries, else each page's LSN
//! ```

use std::borrow::Cow;
use std::time::{Duration, Instant};

use walhalla_postgres::summary::Changes;
use walhalla_postgres::wal::cluster::Cluster;
use walhalla_postgres::{History, Lsn};
use walhalla_providers::ErrorKind;

use super::Error;
use super::extent::Changed;
use super::own_history;
use super::parent::{self, Parent, Unusable};
use super::request::{Backup, DeltaOptions};
use crate::archive::changed::{Gap, Interval};
use crate::archive::proof::Proof;
use crate::archive::walk::Reading;
use crate::contents::assembly::Base;
use crate::contents::delta_file::is_taken_for_delta;
use crate::output;
use crate::repository::entry::{ChangeSource, ChangedBlocks};
use crate::repository::{self, BackupEntry, ObjectError};
use crate::server::control_file;
use crate::server::data_directory::Listing;
use crate::wal::server_summaries::{self, Known};
use crate::wal::stored_summary::Proven;

/// How long the server's summarizer is waited for, as PostgreSQL does (basebackup_incremental.c, `WaitForWalSummarization`).
const SUMMARIZER_TIMEOUT: Duration = Duration::from_mins(1);
const SUMMARIZER_POLL: Duration = Duration::from_millis(100);

/// What a delta stands on.
pub(super) struct Delta {
    /// Its parent.
    pub(super) parent: Parent,
    /// What tells what changed since.
    pub(super) changed_blocks: ChangedBlocks,
}

impl Delta {
    /// `reason` is why a source before `source` did not tell the changed blocks; the user hears of it.
    pub(super) fn new(parent: Parent, source: ChangeSource, reason: Option<String>) -> Self {
        if let Some(reason) = &reason {
            tracing::warn!("{reason}; changed blocks are told by {source}");
        }
        tracing::info!(
            "a delta to backup {}: changed blocks by {source}",
            parent.entry.id
        );
        let changed_blocks = ChangedBlocks {
            source,
            reason,
            since: parent.entry.start_lsn,
        };
        Self {
            parent,
            changed_blocks,
        }
    }

    /// What the backup's entry says of it.
    pub(super) fn base(&self) -> Base {
        let parent = &self.parent.entry;
        Base {
            parent: parent.id.clone(),
            parent_manifest: parent.manifest.digest.to_hex(),
            changed_blocks: self.changed_blocks.clone(),
        }
    }
}

/// What changed, what tells it, and why nothing better does.
type ChangesFound = (Changed<'static>, ChangeSource, Option<String>);

impl Backup<'_> {
    /// What a delta stands on and what changed since; `None` for a full backup, which the user hears of who asked for a
    /// delta.
    pub(super) fn delta(
        &self,
        start: Lsn,
        listing: &Listing,
    ) -> Result<Option<(Delta, Changed<'static>)>, Error> {
        let Some(options) = &self.options.delta else {
            return Ok(None);
        };
        // The timeline may be a new one since the control file was read first.
        let control = control_file::read(self.pgdata)?;
        let history = parent::history(self.repository, self.pgdata, &control)?;
        let own = parent::BackedUpServer {
            control: &control,
            history: &history,
            start,
            max_chain: options.max_chain,
            data_checksums: Some(control.data_checksums),
        };
        let mut paths = listing.files.iter().map(|file| file.path);
        let stray = paths.find(|path| is_taken_for_delta(path));
        let stray = stray.map(Unusable::Named);
        let Some(parent) = self.parent(options, &own, stray)? else {
            return Ok(None);
        };
        let Some((changed, source, reason)) = self.changes(options, &parent, &history, start)?
        else {
            let (id, reason) = (parent.entry.id, Unusable::NotShown);
            if options.parent.is_some() {
                return Err(Error::Parent { id, reason });
            }
            tracing::warn!(
                "backup {id} cannot be the parent of a delta: {reason}; a full backup is taken"
            );
            return Ok(None);
        };
        Ok(Some((Delta::new(parent, source, reason), changed)))
    }

    /// The parent that was asked for, or the newest that can be one; `None` where there is none, of which the user hears.
    /// `stray` is a reason why no delta can be taken.
    pub(super) fn parent(
        &self,
        options: &DeltaOptions,
        own: &parent::BackedUpServer,
        stray: Option<Unusable>,
    ) -> Result<Option<Parent>, Error> {
        match (&options.parent, stray) {
            (Some(id), None) => own.named(self.repository, id).map(Some),
            (Some(id), Some(reason)) => {
                let id = self.repository.backup(id)?.id;
                Err(Error::Parent { id, reason })
            }
            (None, Some(reason)) => {
                tracing::warn!("{reason}; a full backup is taken");
                Ok(None)
            }
            (None, None) => match own.newest(self.repository, self.known_backups()?)? {
                Some(Ok(parent)) => Ok(Some(parent)),
                Some(Err(reason)) => {
                    tracing::warn!("{}; a full backup is taken", output::chain(&reason));
                    Ok(None)
                }
                None => {
                    tracing::warn!(
                        "there is no backup of this server's past that a delta could stand on; a full backup is taken"
                    );
                    Ok(None)
                }
            },
        }
    }

    fn known_backups(&self) -> Result<Vec<BackupEntry>, Error> {
        match self.repository.usable_backups() {
            Err(repository::Error::Object(ObjectError::Store(error)))
                if error.kind == ErrorKind::StoreMissing =>
            {
                Ok(Vec::new())
            }
            backups => Ok(backups?),
        }
    }

    /// What changed since the parent's start, what tells it, and why nothing better does; `None` where nothing shows that
    /// the parent is in this server's past. A server that was put back to an older state (a snapshot of its disk, say) has
    /// the timeline and the positions of the one that it was before, and another past.
    fn changes(
        &self,
        options: &DeltaOptions,
        parent: &Parent,
        history: &History,
        start: Lsn,
    ) -> Result<Option<ChangesFound>, Error> {
        let (from, to) = (parent.entry.start_lsn, start);
        let may = |source| options.source.is_none_or(|only| only == source);
        let mut reasons = Vec::new();
        let wal_folder = self.pgdata.join(self.control.version.wal_folder());
        let is_in_history_file = own_history::names(&wal_folder, &parent.entry);
        if may(ChangeSource::Wal) || !is_in_history_file {
            match self.changes_in_wal(parent, history, to)? {
                Ok(found) if may(ChangeSource::Wal) => {
                    let changed = Changed::Blocks(Cow::Owned(found));
                    return Ok(Some((changed, ChangeSource::Wal, None)));
                }
                Ok(_) => {}
                // Nothing else tells whether the parent is this server's.
                Err(gap @ Gap::Foreign(_)) => {
                    return Err(Error::Changes {
                        parent: parent.entry.id.clone(),
                        source_name: ChangeSource::Wal,
                        reason: gap.to_string(),
                    });
                }
                Err(gap) if is_in_history_file => reasons.push(gap.to_string()),
                Err(gap) => {
                    tracing::warn!("{gap}");
                    return Ok(None);
                }
            }
        }
        if may(ChangeSource::Server) {
            match self.server_changes(history, from, to)? {
                Known::Changes(found) => {
                    let (changed, reason) = (Changed::Blocks(Cow::Owned(found)), reasons.pop());
                    return Ok(Some((changed, ChangeSource::Server, reason)));
                }
                Known::Nothing(gap) => reasons.push(gap.to_string()),
            }
        }
        let reason = (!reasons.is_empty()).then(|| reasons.join("; "));
        match (may(ChangeSource::Pages), reason) {
            (true, reason) => Ok(Some((Changed::Pages, ChangeSource::Pages, reason))),
            (false, reason) => Err(Error::Changes {
                parent: parent.entry.id.clone(),
                source_name: options.source.unwrap_or(ChangeSource::Wal),
                reason: reason.unwrap_or_default(),
            }),
        }
    }

    /// What changed from the parent's start until `to`, or why the WAL does not tell it.
    pub(super) fn changes_in_wal(
        &self,
        parent: &Parent,
        history: &History,
        to: Lsn,
    ) -> Result<Result<Changes, Gap>, Error> {
        let wal_folder = self.pgdata.join(self.control.version.wal_folder());
        let interval = Interval {
            repository: self.repository,
            wal_folder: &wal_folder,
            cluster: Cluster::from(self.control),
            history,
            parent: Proof::of(&parent.entry),
            from: parent.entry.start_lsn,
            to,
            reading: Reading {
                threads: self.options.threads,
                show: self.options.show,
            },
            proven: Proven::default(),
        };
        Ok(interval.changes()?)
    }

    /// Whether the server may be about to summarize what begins at `lsn`.
    fn summaries_may_reach(&self, lsn: Lsn) -> Result<bool, Error> {
        let version = self.control.version;
        Ok(server_summaries::may_reach(self.pgdata, version, lsn)?)
    }

    /// What the server's own summaries tell, which it completes some time after the checkpoint with which the backup began.
    fn server_changes(&self, history: &History, from: Lsn, to: Lsn) -> Result<Known, Error> {
        let begun = Instant::now();
        loop {
            let known =
                server_summaries::changes(self.pgdata, self.control.version, history, from, to)?;
            match known {
                Known::Nothing(server_summaries::Gap::Missing { at, .. })
                    if begun.elapsed() < SUMMARIZER_TIMEOUT
                        && (at > from || self.summaries_may_reach(at)?) =>
                {
                    std::thread::sleep(SUMMARIZER_POLL);
                }
                known => return Ok(known),
            }
        }
    }
}
