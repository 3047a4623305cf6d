//! What deletions take: said before anything goes.
//!
//! ```text
//! <system identifier>/deletions/<run>.json
//! ```
//!
//! Whoever finds WAL missing learns here that it was meant to go, and the next deletion where this one ended if it was killed.
//! The run is that of the deletion's lease: it goes on as long as the lease holds.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use walhalla_providers::{Error as StoreError, ErrorKind, ObjectInfo, Operation, PutMode};

use super::entry::BackupId;
use super::layout::{Key, RunId};
use super::leases::{Lease, NeededWal, Needs};
use super::ranges::Ranges;
use super::{Error, Repository};

/// The format of a record.
const FORMAT: u32 = 1;
/// Longest record that is read: it names backups and ranges.
const RECORD_LIMIT_BYTES: u64 = 16 << 20;
/// Records that are read at the same time.
const READ_AT_A_TIME: usize = 16;
/// What a record is called in messages.
const RECORD: &str = "record of a deletion";

/// What a deletion takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    format: u32,
    /// Who deletes: the host and the process.
    pub user: String,
    /// What was asked for.
    pub request: String,
    /// Whether the whole cluster goes.
    pub everything: bool,
    /// By the clock of who deletes.
    pub time: Timestamp,
    /// The backups that go.
    pub backups: Vec<BackupId>,
    /// Folders of backups that were never finished, which go.
    pub unfinished: Vec<BackupId>,
    /// The WAL that goes, and went by earlier deletions.
    pub wal: Ranges,
    walhalla_version: String,
}

/// A record in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Of which deletion.
    pub run: RunId,
    /// When the store received it, by its clock.
    pub received: Timestamp,
    /// What it says.
    pub record: Record,
}

/// That nothing of what somebody needs is being deleted.
#[derive(Debug)]
pub struct Guarded {
    /// The lease that keeps it so, where the store takes one.
    pub lease: Option<Lease>,
    /// Whether a deletion that has ended may have taken some of it since it was looked for.
    pub may_be_gone: bool,
}

impl Record {
    /// The record of a deletion that has taken nothing yet.
    pub fn new(user: String, request: String) -> Self {
        Self {
            format: FORMAT,
            user,
            request,
            everything: false,
            time: Timestamp::now(),
            backups: Vec::new(),
            unfinished: Vec::new(),
            wal: Ranges::default(),
            walhalla_version: crate::VERSION.to_owned(),
        }
    }

    fn takes(&self, needs: &Needs) -> bool {
        self.everything
            || needs.backups.iter().any(|id| self.backups.contains(id))
            || self.takes_wal(&needs.wal)
    }

    fn takes_wal(&self, wal: &[NeededWal]) -> bool {
        wal.iter().any(|wal| self.wal.meets(wal.first, wal.last))
    }
}

impl Repository {
    /// Says what a deletion takes.
    ///
    /// # Errors
    /// The store's.
    pub fn record_deletion(&self, run: RunId, record: &Record) -> Result<(), StoreError> {
        let json = serde_json::to_string(record).expect("ids, names and numbers are JSON");
        let key = self.layout.key(&Key::Deletion(run));
        let json = format!("{json}\n").into();
        self.session.put(&key, json, PutMode::Create)
    }

    /// What deletions said that they take.
    ///
    /// # Errors
    /// The store's; [`Error::Unknown`] for a record that cannot be read.
    pub fn deletions(&self) -> Result<Vec<Recorded>, Error> {
        self.each_deletion()?.into_iter().collect()
    }

    /// The same, one by one.
    fn each_deletion(&self) -> Result<Vec<Result<Recorded, Error>>, Error> {
        let found = self.session.list(&self.layout.deletions(), None)?;
        let keys = found.iter().map(|info| info.key.clone());
        let texts = self
            .session
            .get_all(keys, RECORD_LIMIT_BYTES, READ_AT_A_TIME);
        let mut deletions = Vec::new();
        for (info, text) in found.iter().zip(texts) {
            match text {
                // A later deletion has taken over what it says.
                Err(error) if error.is_not_found() => {}
                // It is too long.
                Err(error) if error.kind == ErrorKind::Invalid => {
                    deletions.push(Err(self.unknown(&info.key, RECORD, error)));
                }
                text => deletions.push(self.recorded(info, &text?)),
            }
        }
        Ok(deletions)
    }

    fn recorded(&self, info: &ObjectInfo, text: &[u8]) -> Result<Recorded, Error> {
        let Key::Deletion(run) = self.layout.parse(&info.key) else {
            return Err(self.unknown(&info.key, RECORD, "its name is none of this version's"));
        };
        let record: Record =
            serde_json::from_slice(text).map_err(|error| self.unknown(&info.key, RECORD, error))?;
        if record.format > FORMAT {
            let reason = format!("it has the format {}", record.format);
            return Err(self.unknown(&info.key, RECORD, reason));
        }
        let received = info.modified;
        Ok(Recorded {
            run,
            received,
            record,
        })
    }

    /// WAL that was deleted, or will be.
    ///
    /// # Errors
    /// As [`Repository::deletions`].
    pub fn deleted_wal(&self) -> Result<Ranges, Error> {
        let mut wal = Ranges::default();
        for deletion in self.deletions()? {
            wal.extend(&deletion.record.wal);
        }
        Ok(wal)
    }

    /// Takes a lease on what somebody needs, and sees that no deletion takes it now. Where the store takes no lease, the user
    /// hears of it.
    ///
    /// # Errors
    /// [`Error::Deleted`] for a backup that is not there any more; [`Error::BeingDeleted`]; the store's.
    pub fn guard(&self, needs: &Needs) -> Result<Guarded, Error> {
        self.guard_as(RunId::random(), needs)
    }

    /// The same with a lease under a run that is known before.
    ///
    /// # Errors
    /// As [`Repository::guard`].
    pub fn guard_as(&self, run: RunId, needs: &Needs) -> Result<Guarded, Error> {
        if self.session.as_of().is_some() {
            // What was there stays, whatever is deleted now.
            return Ok(Guarded {
                lease: None,
                may_be_gone: false,
            });
        }
        let lease = self.lease(run, needs.clone())?;
        if lease.is_none() {
            tracing::warn!(
                "nothing can be written to the store here, so that a deletion which runs at the same time would not see what is used"
            );
        }
        let may_be_gone = self.no_deletion_takes(needs, lease.as_ref().map(Lease::run))?;
        let found = self.backups_if_there(&needs.backups)?;
        if let Some((id, _)) = { needs.backups.iter().zip(found) }.find(|(_, it)| it.is_none()) {
            let what = format!("backup {id}");
            return Err(Error::Deleted { what });
        }
        Ok(Guarded { lease, may_be_gone })
    }

    /// Sees that no deletion which goes on takes what is needed; returns whether one that has ended may have.
    fn no_deletion_takes(&self, needs: &Needs, own: Option<RunId>) -> Result<bool, Error> {
        let (records, unknown): (Vec<_>, Vec<_>) =
            self.each_deletion()?.into_iter().partition(Result::is_ok);
        for error in unknown.into_iter().filter_map(Result::err) {
            tracing::warn!("{}", crate::output::chain(&error));
        }
        let taking = records.into_iter().filter_map(Result::ok);
        let taking: Vec<Recorded> = taking.filter(|it| it.record.takes(needs)).collect();
        if taking.is_empty() {
            return Ok(false);
        }
        let now = match own {
            Some(own) => self.lease_time(own)?,
            None => Timestamp::now(),
        };
        for Recorded { run, record, .. } in &taking {
            if self.lease_holds(*run, now)? {
                return Err(Error::BeingDeleted {
                    user: record.user.clone(),
                    request: record.request.clone(),
                });
            }
        }
        Ok(taking.iter().any(|it| it.record.takes_wal(&needs.wal)))
    }

    /// When the store received the newest object of a lease, by its clock.
    ///
    /// # Errors
    /// The store's.
    pub fn lease_time(&self, run: RunId) -> Result<Timestamp, StoreError> {
        let folder = self.layout.lease_folder(run);
        let found = self.session.list(&folder, None)?;
        let newest = found.into_iter().map(|info| info.modified).max();
        newest.ok_or_else(|| {
            let error = StoreError::new(Operation::List, folder, ErrorKind::Other);
            error.with_source("the lease that was just written is not listed")
        })
    }
}
