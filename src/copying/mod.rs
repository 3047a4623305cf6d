//! Copying backups and the WAL that goes with them to another store.
//!
//! ```text
//! source ─▶ select ─▶ what is left out ─▶ WAL, in order ─▶ backups: parents first, each entry last ─▶ marks, gaps ─▶ copy
//!                                          └──── each object is read back and compared ────┘
//! ```
//!
//! At every moment the copy is an archive of its own: it has no hole that the source has not, and no backup without what it
//! needs. So a copy that was broken off is of use, and the next one goes on.

mod archives;
mod backups;
pub mod mirror;
mod order;
pub mod repair;
mod same;
pub mod select;
mod sending;
mod wal;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use walhalla_postgres::{SegmentName, SegmentNo, TimelineId};
use walhalla_providers::Error as StoreError;

use crate::archive::Histories;
use crate::archive::inventory::WalFiles;
use crate::failure::{Advice, Class, Failure};
use crate::pipeline::{self, Encryption, Packing, Pipeline};
use crate::progress::{Progress, Show};
use crate::repository::deletions::Record;
use crate::repository::layout::{Key, Object, RunId};
use crate::repository::leases::{Lease, Needs};
use crate::repository::ranges::Ranges;
use crate::repository::{self, BackupEntry, BackupId, Catalog, Repository};
use crate::{contents, output, wal as archived_wal};
use archives::{Archives, Item};
use backups::BackupCopy;
use order::Order;
use select::{Selection, Which, select};
use sending::Sending;
use wal::WalCopy;

/// What the records of copies say was asked for.
const REQUEST: &str = "copy";

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
    #[error("{0} is encrypted, and the copy would hold it in the open")]
    WouldBeOpen(String),
    /// Something open would come beside what is encrypted.
    #[error("the copy in {0} is encrypted, and what is new would be in the open")]
    WouldMix(String),
    /// Another process makes the same backup in the copy.
    #[error("another process copies backup {0} to the same store")]
    MadeByAnother(BackupId),
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
    /// The first store has a backup, and the second does not.
    #[error("backup {id} is in {first}, and not yet in the mirror {second}")]
    NotMirrored {
        /// The backup.
        id: BackupId,
        /// The URL of the store that has it.
        first: String,
        /// The URL of the other one.
        second: String,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// Something is damaged in the source; the rest is copied.
    #[error("{} not copied, damaged in the source or standing on what is; all the others are copied", objects(*.0))]
    LeftOut(u64),
    /// Another thread failed first.
    #[error("the copy was broken off")]
    BrokenOff,
}

fn objects(count: u64) -> String {
    match count {
        1 => "a backup or WAL file is".to_owned(),
        count => format!("{count} backups and WAL files are"),
    }
}

impl Error {
    /// Whether a store did not do what it was asked; else something is wrong with one object, or one backup.
    fn is_of_a_store(&self) -> bool {
        match self {
            Self::Wal(error) => error.is_of_the_store(),
            Self::Repository(_) | Self::Pipeline(_) => !self.is_of_the_object(),
            _ => false,
        }
    }

    /// Whether an object of the source is damaged, so that others may be copied.
    fn is_of_the_source(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::NotAsEntered { .. } => true,
            // The index of a backup.
            Self::Contents(error) => error.is_of_the_object(),
            _ => false,
        }
    }
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
            Self::NotMirrored { source, .. } => source.class(),
            Self::Damaged { .. } | Self::NotAsEntered { .. } => Class::Damaged,
            Self::SameStore(_) | Self::WouldBeOpen(_) | Self::WouldMix(_) => Class::Usage,
            Self::Local(_)
            | Self::Nothing(_)
            | Self::NotAsSent { .. }
            | Self::MadeByAnother(_)
            | Self::LeftOut(_)
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
                "name with --recipients to whom the copy is to be encrypted; without --recipients, --compression and settings for them \
                 in the file of --to-config everything is copied as it is"
            }
            Self::WouldMix(_) => "name with --recipients to whom it is to be encrypted, as before",
            Self::MadeByAnother(_) => {
                "wait until it has ended, and run the same command again; the lease of one that was killed ends after 15 minutes"
            }
            Self::Damaged { .. } | Self::NotAsEntered { .. } | Self::LeftOut(_) => {
                "`walhalla verify --all` and `walhalla wal-verify --deep` show all that is damaged"
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
            Self::NotMirrored { .. } => {
                "the backup is sound, and it is recorded that the mirror is owed it: `walhalla wal-verify --repair`, the next backup-push \
                 or the daemon sends it"
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
    /// What the copy is to become.
    pub extent: CopyExtent,
    /// Objects that are copied at a time.
    pub threads: usize,
    /// How progress is shown.
    pub show: Show,
}

/// What a copy is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyExtent {
    /// An archive of what was asked for. What is left out is said there, and nothing open comes beside what is encrypted.
    Selected,
    /// All that the source has, with the holes of what did not come yet.
    Everything,
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
    /// Not copied, because they are damaged, or stand on what is.
    pub left_out: u64,
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.copied += 1;
        self.bytes += bytes;
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
    /// Why it ended before its end. What was copied until then is whole. What is damaged is told, counted and left out.
    pub fn run(&self, which: &Which) -> Result<Copied, Error> {
        let (source, copy) = (self.source, self.copy);
        let catalog = source.catalog()?;
        let histories = Histories::read(source, catalog.backups())?;
        let newest = match which {
            Which::Since(_) => newest_of(source)?,
            Which::All | Which::Backups(..) => BTreeMap::new(),
        };
        let selection = select(&catalog, &histories, &newest, which)
            .map_err(|error| broken_chain(&catalog, error))?;
        if selection.backups.is_empty() {
            return Err(Error::Nothing(source.store_url().to_owned()));
        }
        // The first word in a directory that is not there yet makes it.
        let wal = selection.needed_wal();
        let needs = Needs::of("copy", Vec::new(), wal.clone());
        let writing = copy.guard_as(RunId::random(), &needs)?;
        let known = copy.catalog()?;
        if let Some(damage) = { selection.backups.iter() }.find_map(|it| known.damage_of(&it.id)) {
            return Err(repository::Error::Entry(Arc::clone(damage)).into());
        }
        let missing = { selection.backups.iter() }.filter(|it| known.get(&it.id).is_none());
        let missing: Vec<&BackupEntry> = missing.collect();
        let ids = missing.iter().map(|backup| backup.id.clone());
        let reading = source.guard(&Needs::of("copy", ids.collect(), wal))?;
        let archives = Archives::list(source, copy)?;
        let items = archives.selected(&selection);
        tell_what_is_lost(&archives, &missing);
        if self.extent == CopyExtent::Selected {
            self.must_stay_closed(&archives, &items, &missing, &known)?;
            self.say_what_is_left_out(&archives, &selection, &histories, &known)?;
        }
        self.copy_gaps(&selection)?;
        let of_wal = items.iter().filter(|item| item.there.is_none());
        let of_wal = of_wal.map(|item| item.archived.stored_bytes);
        let total = missing
            .iter()
            .map(|backup| backup.stored_bytes)
            .chain(of_wal);
        let progress = Progress::new(self.show, "copying", total.sum());
        let sending = Sending {
            source,
            copy,
            progress: &progress,
            pipeline: self.pipeline,
        };
        sending.must_be_same(&items, self.threads)?;
        let copied_wal = self.copy_wal(sending, &items, &known)?;
        let (marked, marked_there) = (source.marks()?, copy.marks()?);
        let unmarked = marked.newer_than(&marked_there).cloned().collect();
        let leases: Vec<Lease> = [reading.lease, writing.lease]
            .into_iter()
            .flatten()
            .collect();
        let backups = BackupCopy {
            sending,
            threads: self.threads,
            unmarked: &unmarked,
            leases: &leases,
        };
        let mut there: BTreeMap<BackupId, BackupEntry> = { known.backups().iter() }
            .map(|backup| (backup.id.clone(), backup.clone()))
            .collect();
        let copied_backups = backups.run(&selection.backups, &mut there)?;
        progress.finish();
        Ok(Copied {
            backups: copied_backups,
            wal: copied_wal,
        })
    }

    /// Copies WAL and its summaries.
    fn copy_wal(&self, sending: Sending, items: &[Item], known: &Catalog) -> Result<Count, Error> {
        let wal = WalCopy {
            sending,
            threads: self.threads,
            order: (!known.is_empty()).then(Order::default),
        };
        let copied = wal.run(items)?;
        // What stops them stops nothing else.
        let progress = sending.progress.anew();
        let summaries = WalCopy {
            sending: Sending {
                progress: &progress,
                ..sending
            },
            order: None,
            ..wal
        };
        if let Err(error) = summaries.summaries(items) {
            let told = output::chain(&error);
            tracing::warn!(
                "{told}; `walhalla wal-summarize` makes up for what is missing in the copy"
            );
        }
        Ok(copied)
    }

    /// That nothing encrypted would be written in the open, and nothing open beside what is encrypted.
    fn must_stay_closed(
        &self,
        archives: &Archives,
        items: &[Item],
        missing: &[&BackupEntry],
        known: &Catalog,
    ) -> Result<(), Error> {
        let is_closed = |object: &Object| object.packing.encryption != Encryption::None;
        let packing = |name: &String| Packing::split(name).1.encryption;
        let is_closed_backup = |backup: &BackupEntry| {
            let mut names = backup.objects().map(|part| &part.name);
            !backup.encrypted_to.is_empty() || names.any(|name| packing(name) != Encryption::None)
        };
        let new = items.iter().filter(|item| item.there.is_none());
        let new: Vec<Object> = new.map(|item| item.archived.object()).collect();
        let packed = self.pipeline.map(|pipeline| pipeline.packing().encryption);
        if packed == Some(Encryption::None) {
            let backup = missing.iter().find(|backup| is_closed_backup(backup));
            let wal = new.iter().find(|object| is_closed(object));
            let wal = wal.map(|object| self.source.url(&object.key));
            let closed = backup.map(|backup| format!("backup {}", backup.id)).or(wal);
            if let Some(closed) = closed {
                return Err(Error::WouldBeOpen(closed));
            }
        }
        // A source that was encrypted from some day on is copied as it is, what is older too.
        let is_open_now =
            || { items.last() }.is_some_and(|item| !is_closed(&item.archived.object()));
        let opens = match packed {
            None => is_open_now(),
            Some(encryption) => encryption == Encryption::None,
        };
        let has_closed = || {
            let backups = known.backups().iter().any(is_closed_backup);
            backups || archives.copy.all().any(|file| is_closed(&file.object()))
        };
        if opens && !(new.is_empty() && missing.is_empty()) && has_closed() {
            return Err(Error::WouldMix(self.copy.store_url().to_owned()));
        }
        Ok(())
    }

    /// Says in the copy which WAL it has not, and was not meant to have: nobody shall take it for lost.
    fn say_what_is_left_out(
        &self,
        archives: &Archives,
        selection: &Selection,
        histories: &Histories,
        known: &Catalog,
    ) -> Result<(), Error> {
        let deleted = self.source.deleted_wal()?;
        let mut left_out = Ranges::default();
        let backups: Vec<_> = { selection.backups.iter().chain(known.backups()) }.collect();
        for history in histories.known.values() {
            let leads = |backup: &&&BackupEntry| backup.leads_to(history);
            if let Some(backup) = backups.iter().find(leads) {
                let size = backup.wal_segment_size;
                left_out.extend(&archives.left_out(selection, &deleted, history, size));
            }
        }
        // What earlier copies said is said once, but for what is there by now.
        let mut earlier = self.copy.deletions()?;
        earlier.retain(|recorded| recorded.record.request == REQUEST);
        let mut said = Ranges::default();
        for recorded in &earlier {
            said.extend(&recorded.record.wal);
        }
        let mut wal = said.clone();
        wal.extend(&left_out);
        if let Some(backup) = backups.first() {
            let there: Vec<SegmentName> = archives.copy.segments.keys().copied().collect();
            wal = wal.without(&there, backup.wal_segment_size);
        }
        if wal == said && earlier.len() <= 1 {
            return Ok(());
        }
        let user = Needs::of("copy", Vec::new(), Vec::new()).user;
        let mut record = Record::new(user, REQUEST.to_owned());
        record.wal = wal;
        self.copy.record_deletion(RunId::random(), &record)?;
        let layout = self.copy.layout();
        let spent = earlier.iter().map(|it| layout.key(&Key::Deletion(it.run)));
        if let Err(error) = self.copy.remove(&spent.collect::<Vec<_>>()) {
            tracing::debug!("what earlier copies said stays: {error}");
        }
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
}

/// Tells of backups without the WAL that makes them consistent. They are copied: others may stand on them, and the WAL may be
/// found again.
fn tell_what_is_lost(archives: &Archives, backups: &[&BackupEntry]) {
    for backup in backups {
        let size = backup.wal_segment_size;
        let numbers = size.segment_of(backup.start_lsn).0..=size.segment_before(backup.stop_lsn).0;
        let mut names = numbers.map(|number| SegmentNo(number).on(backup.timeline, size));
        if let Some(lost) = names.find(|name| !archives.source.segments.contains_key(name)) {
            tracing::warn!(
                "backup {} cannot be restored by itself: its WAL segment {lost} is missing in the source, and so in the copy",
                backup.id
            );
        }
    }
}

/// When the source received the newest file of each timeline.
fn newest_of(source: &Repository) -> Result<BTreeMap<TimelineId, Timestamp>, Error> {
    let mut newest = BTreeMap::new();
    for timeline in source.timelines()? {
        let files = WalFiles::from(source.list_wal(timeline, None, &[])?);
        let time = files.all().map(|file| file.modified).max();
        newest.extend(time.map(|time| (timeline, time)));
    }
    Ok(newest)
}

fn broken_chain(catalog: &Catalog, error: repository::ChainError) -> Error {
    let source = catalog.damage_of(&error.ancestor).cloned();
    repository::Error::BrokenChain { error, source }.into()
}
