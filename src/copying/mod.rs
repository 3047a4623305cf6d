//! Copying backups and the WAL that goes with them to another store.
//!
//! ```text
//! source ─▶ select ─▶ what is left out ─▶ WAL, in order ─▶ backups: parents first, each entry last ─▶ marks, gaps ─▶ copy
//!                                          └──── each object is read back and compared ────┘
//! ```
//!
//! At every moment the copy is an archive of its own: it has no hole that the source has not, and no backup without what it
//! needs. So a copy that was broken off is of use, and the next one goes on.

mod backups;
mod order;
pub mod select;
mod sending;
mod wal;

use std::collections::BTreeMap;
use std::io;

use jiff::Timestamp;
use serde::Serialize;
use walhalla_providers::Error as StoreError;

use crate::archive::Histories;
use crate::failure::{Advice, Class, Failure};
use crate::pipeline::{self, Encryption, Pipeline};
use crate::progress::{Progress, Show};
use crate::repository::deletions::Record;
use crate::repository::layout::RunId;
use crate::repository::leases::Needs;
use crate::repository::marks::Permanence;
use crate::repository::{self, BackupEntry, BackupId, Catalog, Repository};
use crate::{contents, wal as archived_wal};
use backups::BackupCopy;
use order::Order;
use select::{Selection, Which, select};
use sending::Sending;
use wal::{Archives, WalCopy};

/// Why something was not copied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Of either store.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// Packing an object anew.
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    /// A list of a backup cannot be read.
    #[error(transparent)]
    Contents(#[from] contents::Error),
    /// A summary.
    #[error(transparent)]
    Wal(#[from] archived_wal::Error),
    /// An object could not be written.
    #[error("an object could not be packed")]
    Local(#[source] io::Error),
    /// Nothing fits what was asked for.
    #[error("there is no backup to copy in {0}")]
    Nothing(String),
    /// Both are one.
    #[error("{0} cannot be copied to itself")]
    SameStore(String),
    /// A copy would lay open what is encrypted.
    #[error("{0} is encrypted, and would not be in the copy")]
    WouldBeOpen(String),
    /// The source's object does not pass its own checks.
    #[error("{object} was not copied, because it is damaged")]
    Damaged {
        /// Its URL in the source.
        object: String,
        /// What was found in the copy, which had the same bytes.
        #[source]
        source: repository::Error,
    },
    /// The source's object is not what the entry of its backup says.
    #[error(
        "{object} was not copied, because it is damaged: its digest is not that of backup.json"
    )]
    NotAsEntered {
        /// Its URL in the source.
        object: String,
    },
    /// The store gave back other bytes than it was sent.
    #[error("{object} came back from the store other than it was sent; it was deleted again")]
    NotAsSent {
        /// Its URL in the copy.
        object: String,
    },
    /// Two servers archived different WAL under one name.
    #[error("{copy_object} has other content than {source_object}")]
    OtherContent {
        /// Its URL in the source.
        source_object: String,
        /// Its URL in the copy.
        copy_object: String,
    },
    /// The copy has another backup under this id.
    #[error("{copy} has another backup {id}")]
    OtherBackup {
        /// The id.
        id: BackupId,
        /// The store.
        copy: String,
    },
    /// A delta as it is does not stand on a parent that was packed anew.
    #[error(
        "backup {backup} cannot be copied as it is, because its parent {parent} was packed anew in the copy"
    )]
    ParentRepacked {
        /// The delta.
        backup: BackupId,
        /// Its parent.
        parent: BackupId,
    },
    /// A deletion may have taken what was copied.
    #[error("the lease of the copy could not be renewed for a quarter of an hour")]
    LeaseLost,
    /// Another thread failed first.
    #[error("the copy was broken off")]
    BrokenOff,
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Repository(error.into())
    }
}

impl Failure for Error {
    fn class(&self) -> Class {
        match self {
            Self::Repository(error) => error.class(),
            Self::Pipeline(error) => error.class(),
            Self::Contents(error) => error.class(),
            Self::Wal(error) => error.class(),
            Self::Damaged { .. } | Self::NotAsEntered { .. } => Class::Damaged,
            Self::SameStore(_) | Self::WouldBeOpen(_) => Class::Usage,
            Self::Local(_)
            | Self::Nothing(_)
            | Self::NotAsSent { .. }
            | Self::OtherContent { .. }
            | Self::OtherBackup { .. }
            | Self::ParentRepacked { .. }
            | Self::LeaseLost
            | Self::BrokenOff => Class::Other,
        }
    }

    fn hint(&self) -> Option<Advice> {
        let text = match self {
            Self::Repository(error) => return error.hint(),
            Self::Pipeline(error) => return error.hint(),
            Self::Contents(error) => return error.hint(),
            Self::Wal(error) => return error.hint(),
            Self::Nothing(_) => "`walhalla backup-list` shows the backups",
            Self::SameStore(_) => "name another store with --to",
            Self::WouldBeOpen(_) => {
                "name with --recipients to whom the copy is to be encrypted, or leave --compression out to copy everything as it is"
            }
            Self::Damaged { .. } | Self::NotAsEntered { .. } => {
                "`walhalla verify --all` and `walhalla wal-verify --deep` show all that is damaged; --backup and --since copy what \
                 does not need it"
            }
            Self::NotAsSent { .. } => {
                "see what lies between this host and the store, then run the same command again"
            }
            Self::OtherContent { .. } | Self::OtherBackup { .. } => {
                "another server has used that store: copy to another place; nothing was overwritten"
            }
            Self::ParentRepacked { .. } => {
                "copy with the --recipients and --compression that were used before, or to another place"
            }
            Self::LeaseLost => {
                "see whether the stores can be reached, and run the same command again: it goes on where this one ended"
            }
            Self::Local(_) | Self::BrokenOff => return None,
        };
        Some(text.into())
    }
}

/// How something is copied.
pub struct Copy<'a> {
    /// From where.
    pub source: &'a Repository,
    /// To where: the same cluster in another store.
    pub copy: &'a Repository,
    /// Packs everything anew, into the copy's store; without it objects are copied as they are.
    pub pipeline: Option<&'a Pipeline>,
    /// Objects that are copied at a time.
    pub threads: usize,
    /// How progress is shown.
    pub show: Show,
}

/// How many of something were copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Now.
    pub copied: u64,
    /// Before.
    pub there: u64,
    /// Length of those that were copied now, in the copy.
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.copied += 1;
        self.bytes += bytes;
    }

    fn extend(&mut self, other: Self) {
        self.copied += other.copied;
        self.there += other.there;
        self.bytes += other.bytes;
    }
}

/// What was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// Backups.
    pub backups: Count,
    /// Files of WAL.
    pub wal: Count,
}

impl Copy<'_> {
    /// Copies what is asked for and not there yet.
    ///
    /// # Errors
    /// Why it ended before its end. What was copied until then is whole.
    pub fn run(&self, which: &Which) -> Result<Copied, Error> {
        let (source, copy) = (self.source, self.copy);
        let catalog = source.catalog()?;
        let histories = Histories::read(source, catalog.backups())?;
        let newest = match which {
            Which::Since(_) => newest_of(source, &histories)?,
            Which::All | Which::Backups(..) => BTreeMap::new(),
        };
        let selection = select(&catalog, &histories, &newest, which)
            .map_err(|error| broken_chain(&catalog, error))?;
        let Some(first) = selection.backups.first() else {
            return Err(Error::Nothing(source.store_url().to_owned()));
        };
        let size = first.wal_segment_size;
        let ids = selection.backups.iter().map(|backup| backup.id.clone());
        let needs = Needs::of("copy", ids.collect(), selection.needs.clone());
        let reading = source.guard(&needs)?;
        let needs = Needs::of("copy", Vec::new(), selection.needs.clone());
        // The first word in a directory that is not there yet makes it.
        let writing = copy.guard_as(RunId::random(), &needs)?;
        let archives = Archives::list(source, copy, &selection)?;
        self.must_stay_closed(&archives, &selection)?;
        let known = copy.catalog()?;
        let mut there: BTreeMap<BackupId, BackupEntry> = { known.backups().iter() }
            .map(|backup| (backup.id.clone(), backup.clone()))
            .collect();
        self.say_what_is_left_out(&archives.left_out(&selection, &source.deleted_wal()?, size))?;
        self.copy_gaps(&selection)?;
        let missing = { selection.backups.iter() }.filter(|backup| !there.contains_key(&backup.id));
        let missing: u64 = missing.map(|backup| backup.stored_bytes).sum();
        let total = archives.missing_bytes(&selection) + missing;
        let progress = Progress::new(self.show, "copying", total);
        let sending = Sending {
            source,
            copy,
            progress: &progress,
        };
        let wal = WalCopy {
            sending,
            pipeline: self.pipeline,
            threads: self.threads,
            order: (!there.is_empty()).then(Order::default),
        };
        let copied_wal = wal.run(&archives, &selection)?;
        let backups = BackupCopy {
            sending,
            pipeline: self.pipeline,
            threads: self.threads,
        };
        let before: Vec<BackupId> = there.keys().cloned().collect();
        let copied_backups = backups.run(&selection.backups, &mut there)?;
        progress.finish();
        let new = { selection.backups.iter() }.filter(|backup| !before.contains(&backup.id));
        new.into_iter()
            .try_for_each(|backup| self.copy_mark(&catalog, backup))?;
        let leases = [reading.lease, writing.lease];
        if leases.iter().flatten().any(|lease| !lease.has_held()) {
            return Err(Error::LeaseLost);
        }
        Ok(Copied {
            backups: copied_backups,
            wal: copied_wal,
        })
    }

    /// That nothing encrypted would be written in the open.
    fn must_stay_closed(&self, archives: &Archives, selection: &Selection) -> Result<(), Error> {
        let opens = { self.pipeline }
            .is_some_and(|pipeline| pipeline.packing().encryption == Encryption::None);
        if !opens {
            return Ok(());
        }
        let mut backups = selection.backups.iter();
        let encrypted = backups.find(|backup| !backup.encrypted_to.is_empty());
        let encrypted = encrypted.map(|backup| format!("backup {}", backup.id));
        let encrypted = encrypted.or_else(|| {
            let object = archives.encrypted(selection)?;
            Some(self.source.url(&object.key))
        });
        encrypted.map_or(Ok(()), |what| Err(Error::WouldBeOpen(what)))
    }

    /// Says in the copy which WAL it has not, and was not meant to have: nobody shall take it for lost.
    fn say_what_is_left_out(&self, left_out: &repository::ranges::Ranges) -> Result<(), Error> {
        let known = self.copy.deleted_wal()?;
        let mut all = known.clone();
        all.extend(left_out);
        if all == known {
            return Ok(());
        }
        let user = Needs::of("copy", Vec::new(), Vec::new()).user;
        let mut record = Record::new(user, "copy".to_owned());
        record.wal = left_out.clone();
        self.copy.record_deletion(RunId::random(), &record)?;
        Ok(())
    }

    /// Copies what the source tells of segments that were dropped.
    fn copy_gaps(&self, selection: &Selection) -> Result<(), Error> {
        for gap in self.source.recorded_gaps()? {
            let (first, last) = (gap.dropped.first, gap.dropped.last);
            if selection.wal.meets(first, Some(last)) {
                self.source.copy_gap(gap.dropped, self.copy)?;
            }
        }
        Ok(())
    }

    /// What was said of a backup after it was taken holds for its copy, too.
    fn copy_mark(&self, catalog: &Catalog, backup: &BackupEntry) -> Result<(), Error> {
        let permanence = Permanence::of(catalog.is_permanent(&backup.id));
        if permanence != Permanence::of(backup.permanent) {
            self.copy.mark_backup(&backup.id.to_string(), permanence)?;
        }
        Ok(())
    }
}

/// When the source received the newest segment of each timeline.
fn newest_of(
    source: &Repository,
    histories: &Histories,
) -> Result<BTreeMap<walhalla_postgres::TimelineId, Timestamp>, Error> {
    let mut newest = BTreeMap::new();
    for timeline in histories.known.keys() {
        let listing = source.list_wal(*timeline, None, &[])?;
        let times = listing.segments.values().map(|file| file.modified);
        newest.extend(times.max().map(|time| (*timeline, time)));
    }
    Ok(newest)
}

fn broken_chain(catalog: &Catalog, error: repository::ChainError) -> Error {
    let source = catalog.damage_of(&error.ancestor).cloned();
    repository::Error::BrokenChain { error, source }.into()
}
