//! The archived WAL: finding a file in whatever form it was stored, and listing timelines.

use std::collections::BTreeMap;
use std::mem::discriminant;

use jiff::Timestamp;
use walhalla_postgres::{History, SegmentName, TimelineId, WalFileName};
use walhalla_providers::{Error as StoreError, ObjectInfo, ObjectKey};

use super::layout::{Key, Object};
use super::{Error, ObjectError, Repository};
use crate::failure::Failure as _;
use crate::pipeline::Packing;

/// Longest timeline history or backup history file that is read.
pub const HISTORY_LIMIT_BYTES: u64 = 4 << 20;

/// A WAL file in the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedFile {
    /// Where and how it is stored.
    pub object: Object,
    /// Length of the stored bytes.
    pub stored_bytes: u64,
    /// When the store received it, by the store's clock.
    pub modified: Timestamp,
}

/// What is archived of one timeline, from some segment on.
#[derive(Debug, Default)]
pub struct WalListing {
    /// Whole segments, in order.
    pub segments: BTreeMap<SegmentName, ArchivedFile>,
    /// Everything else.
    pub others: Vec<(WalFileName, ArchivedFile)>,
    /// Segments in two forms of which one is damaged (the other is listed) or whose contents differ.
    pub doubles: Vec<Error>,
}

/// What the archive holds after a segment of a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaterWal {
    /// A later segment of the timeline.
    Segment(SegmentName),
    /// Nothing of the timeline, but something of higher ones.
    Timelines,
    /// Nothing but what is before.
    Nothing,
    /// Nothing, not even the segment before: perhaps nothing of the cluster at all.
    NothingKnown,
}

impl ArchivedFile {
    fn new(info: ObjectInfo, packing: Packing) -> Self {
        Self {
            object: Object {
                key: info.key,
                packing,
            },
            stored_bytes: info.size_bytes,
            modified: info.modified,
        }
    }
}

impl Repository {
    /// What is archived after `name`, by one listing that begins at `before`, the segment before it, and ends
    /// with the first answer.
    ///
    /// # Errors
    /// The store's.
    pub fn later_wal(
        &self,
        name: SegmentName,
        before: SegmentName,
    ) -> Result<LaterWal, StoreError> {
        let start_after = format!("{}{before}", self.layout.wal_folder(name.timeline));
        let mut is_known = false;
        let folders = self.layout.wal_folders();
        let found = self.store.find(&folders, &start_after, |info| {
            is_known = true;
            let Key::Wal(file, _) = self.layout.parse(&info.key) else {
                return None;
            };
            match file {
                WalFileName::Segment(later) if later.timeline == name.timeline => {
                    (later > name).then_some(LaterWal::Segment(later))
                }
                file => (file.timeline() > name.timeline).then_some(LaterWal::Timelines),
            }
        });
        let found = self.runtime.block_on(found)?;
        Ok(match found {
            Some(later) => later,
            None if is_known => LaterWal::Nothing,
            None => LaterWal::NothingKnown,
        })
    }

    /// The content of a history or backup history file.
    ///
    /// # Errors
    /// The repository's; [`ObjectError::Damaged`] for one of more than [`HISTORY_LIMIT_BYTES`].
    pub fn read_text(&self, object: &Object) -> Result<Vec<u8>, Error> {
        let mut text = Vec::new();
        let mut limited = std::io::Read::take(self.open(object)?, HISTORY_LIMIT_BYTES + 1);
        std::io::Read::read_to_end(&mut limited, &mut text)
            .map_err(|source| self.damaged(&object.key, source))?;
        if text.len() as u64 > HISTORY_LIMIT_BYTES {
            let most = format!("more than {HISTORY_LIMIT_BYTES} bytes");
            return Err(self.unfit(&object.key, "it is longer than such a file can be", most));
        }
        Ok(text)
    }

    /// Finds a WAL file in any form.
    ///
    /// `None` is proof of absence.
    ///
    /// # Errors
    /// The store's.
    pub fn find_wal(&self, file: WalFileName) -> Result<Option<ArchivedFile>, StoreError> {
        Ok(self.wal_forms(file)?.into_iter().next())
    }

    /// As [`Repository::find_wal`]; where a segment is there in two forms they are compared, and a damaged one is passed over.
    ///
    /// # Errors
    /// The store's; [`ObjectError::TwoContents`].
    pub fn find_one_wal(&self, file: WalFileName) -> Result<Option<ArchivedFile>, Error> {
        let WalFileName::Segment(name) = file else {
            return Ok(self.find_wal(file)?);
        };
        let mut listing = WalListing::default();
        for form in self.wal_forms(file)? {
            self.add(&mut listing, None, file, form)?;
        }
        for double in listing.doubles {
            match double {
                Error::Object(ObjectError::TwoContents { .. }) => return Err(double),
                damaged => tracing::warn!("{damaged}; its other form is used"),
            }
        }
        Ok(listing.segments.remove(&name))
    }

    /// Every form in which a WAL file is stored; none is proof of absence.
    ///
    /// # Errors
    /// The store's.
    pub fn wal_forms(&self, file: WalFileName) -> Result<Vec<ArchivedFile>, StoreError> {
        let objects = Packing::all().map(|packing| self.layout.wal(file, packing));
        let keys: Vec<ObjectKey> = objects.map(|object| object.key).collect();
        let prefix = self.layout.wal(file, Packing::NONE).key;
        let present = self.store.present(prefix.as_str(), &keys);
        let found = self.runtime.block_on(present)?;
        let archived = found.into_iter().filter_map(|info| {
            let Key::Wal(_, packing) = self.layout.parse(&info.key) else {
                return None;
            };
            Some(ArchivedFile::new(info, packing))
        });
        Ok(archived.collect())
    }

    /// Whether no segment of a timeline is archived although backups were taken on it, which needed some: a part of the store
    /// is away.
    ///
    /// # Errors
    /// The store's.
    pub fn has_lost_all_wal(&self, timeline: TimelineId) -> Result<bool, Error> {
        if !self.list_wal(timeline, None)?.segments.is_empty() {
            return Ok(false);
        }
        let backups = self.catalog()?.backups;
        Ok(backups.iter().any(|backup| backup.timeline == timeline))
    }

    /// The timelines that have a folder in the archive, ascending.
    pub fn timelines(&self) -> Result<Vec<TimelineId>, StoreError> {
        let folders = self
            .runtime
            .block_on(self.store.folders(&self.layout.wal_folders()))?;
        Ok(folders
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect())
    }

    /// What is archived of `timeline`, segments from `first` on.
    ///
    /// # Errors
    /// The store's; what is wrong with segments in two forms is part of the listing.
    pub fn list_wal(
        &self,
        timeline: TimelineId,
        first: Option<SegmentName>,
    ) -> Result<WalListing, Error> {
        let folder = self.layout.wal_folder(timeline);
        // A name's first 23 digits come before the name itself in every form of it.
        let start_after = first.map(|name| format!("{folder}{name:.23}"));
        let found = self
            .runtime
            .block_on(self.store.list(&folder, start_after.as_deref()))?;
        let mut listing = WalListing::default();
        for info in found {
            if let Key::Wal(file, packing) = self.layout.parse(&info.key) {
                let archived = ArchivedFile::new(info, packing);
                self.add(&mut listing, first, file, archived)?;
            }
        }
        Ok(listing)
    }

    /// The summaries of `timeline`'s segments from `first` on, each in every form in which it is stored.
    ///
    /// # Errors
    /// The store's.
    pub fn list_summaries(
        &self,
        timeline: TimelineId,
        first: Option<SegmentName>,
    ) -> Result<BTreeMap<SegmentName, Vec<ArchivedFile>>, StoreError> {
        let folder = self.layout.summary_folder(timeline);
        let start_after = first.map(|name| format!("{folder}{name:.23}"));
        let found = self
            .runtime
            .block_on(self.store.list(&folder, start_after.as_deref()))?;
        let mut summaries: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for info in found {
            if let Key::Summary(segment, packing) = self.layout.parse(&info.key) {
                let archived = ArchivedFile::new(info, packing);
                summaries.entry(segment).or_default().push(archived);
            }
        }
        Ok(summaries)
    }

    fn add(
        &self,
        listing: &mut WalListing,
        first: Option<SegmentName>,
        file: WalFileName,
        archived: ArchivedFile,
    ) -> Result<(), Error> {
        let WalFileName::Segment(name) = file else {
            listing.others.push((file, archived));
            return Ok(());
        };
        if first.is_some_and(|first| name < first) {
            return Ok(());
        }
        let Some(other) = listing.segments.get(&name) else {
            listing.segments.insert(name, archived);
            return Ok(());
        };
        match (
            self.content_digest(&other.object),
            self.content_digest(&archived.object),
        ) {
            (Ok(first), Ok(second)) if first == second => {}
            (Ok(first), Ok(second)) if discriminant(&first) != discriminant(&second) => {
                let [first, second] = [other, &archived].map(|form| self.url(&form.object.key));
                tracing::warn!("{first} and {second} cannot be compared without the identity");
            }
            (Ok(_), Ok(_)) => {
                let two = ObjectError::TwoContents {
                    first: self.url(&other.object.key),
                    second: self.url(&archived.object.key),
                };
                listing.doubles.push(two.into());
            }
            (Err(damaged), sound) if damaged.is_of_the_object() => {
                listing.doubles.push(damaged);
                if sound.is_ok() {
                    listing.segments.insert(name, archived);
                }
            }
            (Ok(_), Err(damaged)) if damaged.is_of_the_object() => listing.doubles.push(damaged),
            (Err(error), _) | (_, Err(error)) => return Err(error),
        }
        Ok(())
    }

    /// A timeline's history as archived; `None` where the archive has no history file of it.
    pub fn history(&self, timeline: TimelineId) -> Result<Option<History>, Error> {
        let Some((key, text)) = self.history_text(timeline)? else {
            return Ok(None);
        };
        let history = History::parse(timeline, &text)
            .map_err(|source| self.unfit(&key, "it is no timeline history", source))?;
        Ok(Some(history))
    }

    /// The history file's text and where it is.
    pub fn history_text(
        &self,
        timeline: TimelineId,
    ) -> Result<Option<(ObjectKey, Vec<u8>)>, Error> {
        let file = WalFileName::History(timeline);
        let Some(archived) = self.find_wal(file)? else {
            return Ok(None);
        };
        let text = self.read_text(&archived.object)?;
        Ok(Some((archived.object.key, text)))
    }

    /// Makes sure that the store holds anything of this cluster: what an empty store lacks is not proven absent.
    ///
    /// # Errors
    /// [`Error::NothingOfCluster`].
    pub fn must_be_known(&self) -> Result<(), Error> {
        let system_identifier = self.layout.system_identifier();
        let folders = self
            .runtime
            .block_on(self.store.folders(&format!("{system_identifier}/")))?;
        if folders.is_empty() {
            return Err(Error::NothingOfCluster {
                store: self.store.url().to_owned(),
                system_identifier,
            });
        }
        Ok(())
    }
}
