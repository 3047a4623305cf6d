//! The archived WAL: finding a file in whatever form it was stored, and listing timelines.

use std::collections::BTreeMap;
use std::mem::discriminant;
use std::sync::Arc;

use jiff::Timestamp;
use smallvec::SmallVec;
use walhalla_postgres::{History, SegmentName, SystemIdentifier, TimelineId, WalFileName};
use walhalla_providers::transfer::Listing;
use walhalla_providers::{Error as StoreError, ErrorKind, ObjectInfo, ObjectKey, Operation};

use super::layout::{Key, Layout, Object};
use super::tails::{Tail, TailFile, TailFiles};
use super::{Error, ObjectError, Repository};
use crate::failure::Failure as _;
use crate::pipeline::Packing;

/// Longest timeline history or backup history file that is read.
pub const HISTORY_LIMIT_BYTES: u64 = 4 << 20;

/// Into how many parts a long listing is divided; they are listed at the same time.
const LISTED_AT_ONCE: usize = 8;
/// How many names a part has at least, where names of some segments are known: those in which backups ended. A shorter one is
/// not worth its requests.
const FEWEST_NAMES: usize = 4;

/// Objects among which the next segment is found, from one before it on: sixteen segments, in several forms perhaps.
const NEIGHBOURS: u16 = 100;

/// A WAL file, a tail or a summary in the archive. There may be a million of them in memory, so that each tells its key only when it is
/// asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedFile {
    system_identifier: SystemIdentifier,
    kind: ArchivedKind,
    packing: Packing,
    /// Length of the stored bytes.
    pub stored_bytes: u64,
    /// When the store received it, by the store's clock.
    pub modified: Timestamp,
}

/// The forms in which a summary is stored: nearly always one.
pub type Forms = SmallVec<[ArchivedFile; 1]>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum ArchivedKind {
    Wal(WalFileName),
    Summary(SegmentName),
    /// The begin of a segment that is not finished.
    Tail(Arc<Tail>),
}

/// What is archived of one timeline, from some segment on.
#[derive(Debug, Default)]
pub struct WalListing {
    /// Whole segments, in order.
    pub segments: BTreeMap<SegmentName, ArchivedFile>,
    /// Other WAL files.
    pub others: Vec<(WalFileName, ArchivedFile)>,
    /// What is stored of segments that are not archived.
    pub tails: TailFiles,
    /// How many objects are stored of segments that are archived.
    pub superseded: usize,
    /// Segments in two forms of which one is damaged (the other is listed) or whose contents differ.
    pub doubles: Vec<Error>,
}

/// What the archive holds in place of a segment that is not archived.
#[derive(Debug)]
pub struct Absence {
    /// What it holds after the segment, where that was asked.
    pub later: Option<LaterWal>,
    /// What is stored of the segment's begin.
    pub tail: Vec<TailFile>,
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
    /// What a listing or a head tells of an object; `None` of one that is neither a WAL file nor a summary.
    pub(crate) fn of(layout: &Layout, info: &ObjectInfo) -> Option<Self> {
        let (kind, packing) = match layout.parse(&info.key) {
            Key::Wal(file, packing) => (ArchivedKind::Wal(file), packing),
            Key::Summary(segment, packing) => (ArchivedKind::Summary(segment), packing),
            Key::Tail(..)
            | Key::Backup(..)
            | Key::Claim(_)
            | Key::Mark(..)
            | Key::Gap(_)
            | Key::Lease(..)
            | Key::Deletion(_)
            | Key::Owed(..)
            | Key::Report(..)
            | Key::Foreign(_) => return None,
        };
        Some(Self::new(layout, kind, packing, info))
    }

    fn new(layout: &Layout, kind: ArchivedKind, packing: Packing, info: &ObjectInfo) -> Self {
        Self {
            system_identifier: layout.system_identifier(),
            kind,
            packing,
            stored_bytes: info.size_bytes,
            modified: info.modified,
        }
    }

    /// Where and how it is stored.
    pub fn object(&self) -> Object {
        let layout = Layout::new(self.system_identifier);
        match &self.kind {
            ArchivedKind::Wal(file) => layout.wal(*file, self.packing),
            ArchivedKind::Summary(segment) => layout.summary(*segment, self.packing),
            ArchivedKind::Tail(tail) => match tail.object() {
                Some(object) => object.clone(),
                None => layout.wal(WalFileName::Segment(tail.segment), Packing::NONE),
            },
        }
    }

    /// A segment as far as it was received.
    pub fn of_tail(system_identifier: SystemIdentifier, tail: Tail) -> Self {
        let packing = tail.object().map_or(Packing::NONE, |object| object.packing);
        Self {
            system_identifier,
            packing,
            stored_bytes: tail.stored_bytes(),
            modified: tail.modified(),
            kind: ArchivedKind::Tail(Arc::new(tail)),
        }
    }

    /// How far the segment was received, where it is not archived whole.
    pub fn tail(&self) -> Option<&Arc<Tail>> {
        match &self.kind {
            ArchivedKind::Tail(tail) => Some(tail),
            ArchivedKind::Wal(_) | ArchivedKind::Summary(_) => None,
        }
    }
}

/// What an object in the folder of a timeline's WAL is.
enum InWalFolder {
    File(WalFileName, ArchivedFile),
    /// Boxed, as it is long and rare.
    Tail(Box<TailFile>),
}

impl InWalFolder {
    fn of(layout: &Layout, info: &ObjectInfo) -> Option<Self> {
        match layout.parse(&info.key) {
            Key::Wal(file, packing) => {
                let archived = ArchivedFile::new(layout, ArchivedKind::Wal(file), packing, info);
                Some(Self::File(file, archived))
            }
            Key::Tail(what, packing) => {
                Some(Self::Tail(Box::new(TailFile::new(what, packing, info))))
            }
            Key::Summary(..)
            | Key::Backup(..)
            | Key::Claim(_)
            | Key::Mark(..)
            | Key::Gap(_)
            | Key::Lease(..)
            | Key::Deletion(_)
            | Key::Owed(..)
            | Key::Report(..)
            | Key::Foreign(_) => None,
        }
    }
}

/// What an object that was listed is; `None` of what is not looked for.
type Reading<T> = fn(&Layout, &ObjectInfo) -> Option<T>;

/// What `of` makes of a listing up to the key `end`.
async fn read_list<T>(
    mut pages: Listing,
    end: Option<String>,
    layout: Layout,
    of: Reading<T>,
) -> Result<Vec<T>, StoreError> {
    let mut found = Vec::new();
    while let Some(page) = pages.next_page().await? {
        for info in &page.objects {
            if end.as_deref().is_some_and(|end| info.key.as_str() > end) {
                return Ok(found);
            }
            found.extend(of(&layout, info));
        }
    }
    Ok(found)
}

/// What a listing shows around a segment.
struct Around {
    name: SegmentName,
    before: SegmentName,
    forms: Vec<ArchivedFile>,
    tail: Vec<TailFile>,
    /// Whether anything is there from the segment before on.
    is_known: bool,
}

impl Around {
    fn of(name: SegmentName, before: SegmentName) -> Self {
        Self {
            name,
            before,
            forms: Vec::new(),
            tail: Vec::new(),
            is_known: false,
        }
    }

    /// Takes in the next object; what it is, if it is later than the segment.
    fn see(&mut self, found: InWalFolder) -> Option<LaterWal> {
        let name = self.name;
        let (file, archived) = match found {
            InWalFolder::File(file, archived) => (file, archived),
            InWalFolder::Tail(file) => {
                self.tail
                    .extend((file.what.segment == name).then_some(*file));
                return None;
            }
        };
        match file {
            WalFileName::Segment(found) if found == name => {
                self.forms.push(archived);
                None
            }
            WalFileName::Segment(later) if later.timeline == name.timeline => {
                self.is_known |= later >= self.before;
                (later > name).then_some(LaterWal::Segment(later))
            }
            WalFileName::Partial(of, _) | WalFileName::BackupHistory(of, _)
                if of.timeline == name.timeline =>
            {
                self.is_known |= of >= self.before;
                None
            }
            file => (file.timeline() > name.timeline).then_some(LaterWal::Timelines),
        }
    }

    fn end(self, later: Option<LaterWal>) -> (Vec<ArchivedFile>, Absence) {
        let none = if self.is_known {
            LaterWal::Nothing
        } else {
            LaterWal::NothingKnown
        };
        let absence = Absence {
            later: Some(later.unwrap_or(none)),
            tail: self.tail,
        };
        (self.forms, absence)
    }
}

/// What comes before a segment in every form of it, and after all that is named after an earlier one.
fn just_before(name: SegmentName) -> String {
    let name = name.to_string();
    let (begin, digit) = name.split_at(name.len() - 1);
    match u8::from_str_radix(digit, 16) {
        Ok(digit @ 1..) => format!("{begin}{:X}~", digit - 1),
        _ => begin.to_owned(),
    }
}

impl Repository {
    /// A segment, and what the archive holds after it where it does not hold the segment. One request tells both, where the
    /// store's listings can begin anywhere.
    ///
    /// # Errors
    /// As [`Repository::find_one_wal`].
    pub fn segment_or_later(
        &self,
        name: SegmentName,
        before: SegmentName,
    ) -> Result<Result<ArchivedFile, Absence>, Error> {
        if !self.session.begins_listings_anywhere() {
            let forms = self.wal_forms(WalFileName::Segment(name))?;
            if let Some(archived) = self.one_of(name, forms)? {
                return Ok(Ok(archived));
            }
            // What has come meanwhile counts.
        }
        let (forms, absence) = self.forms_and_later(name, before)?;
        Ok(self.one_of(name, forms)?.ok_or(absence))
    }

    /// A segment, and what is stored of its begin where the archive does not hold it.
    ///
    /// # Errors
    /// As [`Repository::find_one_wal`].
    pub fn segment_or_tail(
        &self,
        name: SegmentName,
    ) -> Result<Result<ArchivedFile, Absence>, Error> {
        let (mut forms, mut tail) = (Vec::new(), Vec::new());
        if self.session.lists_by_prefix() {
            let prefix = self.layout.wal(WalFileName::Segment(name), Packing::NONE);
            for info in self.session.list(prefix.key.as_str(), None)? {
                match InWalFolder::of(&self.layout, &info) {
                    Some(InWalFolder::File(WalFileName::Segment(_), form)) => forms.push(form),
                    Some(InWalFolder::Tail(file)) => tail.push(*file),
                    Some(InWalFolder::File(..)) | None => {}
                }
            }
        } else {
            forms = self.wal_forms(WalFileName::Segment(name))?;
            if forms.is_empty() {
                tail = self.tail_files(name)?;
            }
        }
        let later = None;
        Ok(self.one_of(name, forms)?.ok_or(Absence { later, tail }))
    }

    /// What is archived after `name`, where `before` is the segment before it.
    ///
    /// # Errors
    /// The store's.
    pub fn later_wal(
        &self,
        name: SegmentName,
        before: SegmentName,
    ) -> Result<LaterWal, StoreError> {
        let (_, absence) = self.forms_and_later(name, before)?;
        Ok(absence.later.unwrap_or(LaterWal::Nothing))
    }

    /// Every form of a segment, its tail and what is archived after it, by one listing that begins with the segment before it and
    /// ends with the first later object. Of the tail of another segment, which may be long where nobody may delete it, it sees no
    /// more than a page.
    fn forms_and_later(
        &self,
        name: SegmentName,
        before: SegmentName,
    ) -> Result<(Vec<ArchivedFile>, Absence), StoreError> {
        let folder = self.layout.wal_folder(name.timeline);
        let begin = format!("{folder}{}", just_before(before));
        let mut pages = self
            .session
            .pages(&self.layout.wal_folders(), Some(&begin))
            .of_first(NEIGHBOURS);
        let mut around = Around::of(name, before);
        while let Some(page) = self.session.wait(pages.next_page())? {
            let mut objects = page.objects.iter();
            let later = objects.find_map(|info| {
                let found = InWalFolder::of(&self.layout, info)?;
                around.see(found)
            });
            if later.is_some() {
                return Ok(around.end(later));
            }
            let last = page.objects.last();
            if let Some(last) = last.and_then(|info| TailFile::of(&self.layout, info))
                && last.what.segment != name
                && self.session.begins_listings_anywhere()
            {
                pages.skip_to(self.layout.end_of_tail(last.what.segment));
            }
        }
        Ok(around.end(None))
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
        self.one_of(name, self.wal_forms(file)?)
    }

    /// The form of a segment that is used, of all that there are.
    fn one_of(
        &self,
        name: SegmentName,
        forms: Vec<ArchivedFile>,
    ) -> Result<Option<ArchivedFile>, Error> {
        let mut listing = WalListing::default();
        for form in forms {
            self.add(&mut listing, None, WalFileName::Segment(name), form)?;
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
        let found = self.session.present(prefix.as_str(), &keys)?;
        let archived = found.iter();
        Ok(archived
            .filter_map(|info| ArchivedFile::of(&self.layout, info))
            .collect())
    }

    /// Whether a segment has a summary, in whatever form. An empty one, stored just before the machine failed, is none.
    ///
    /// # Errors
    /// The store's.
    pub fn has_summary(&self, segment: SegmentName) -> Result<bool, StoreError> {
        let forms = self.summary_forms(segment)?;
        Ok(forms.iter().any(|form| form.stored_bytes > 0))
    }

    /// The summaries of a segment, in whatever form.
    ///
    /// # Errors
    /// The store's.
    pub fn summary_forms(&self, segment: SegmentName) -> Result<Forms, StoreError> {
        let objects = Packing::all().map(|packing| self.layout.summary(segment, packing));
        let keys: Vec<ObjectKey> = objects.map(|object| object.key).collect();
        let prefix = self.layout.summary(segment, Packing::NONE).key;
        let found = self.session.present(prefix.as_str(), &keys)?;
        let forms = found.iter();
        Ok(forms
            .filter_map(|info| ArchivedFile::of(&self.layout, info))
            .collect())
    }

    /// Whether no segment of a timeline is archived although backups were taken on it, which needed some: a part of the store
    /// is away.
    ///
    /// # Errors
    /// The store's.
    pub fn has_lost_all_wal(&self, timeline: TimelineId) -> Result<bool, Error> {
        if !self.list_wal(timeline, None, &[])?.segments.is_empty() {
            return Ok(false);
        }
        let catalog = self.catalog()?;
        Ok(catalog
            .backups()
            .iter()
            .any(|backup| backup.timeline == timeline))
    }

    /// The timelines that have a folder in the archive, ascending.
    pub fn timelines(&self) -> Result<Vec<TimelineId>, StoreError> {
        let folders = self.session.folders(&self.layout.wal_folders())?;
        Ok(folders
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect())
    }

    /// What is archived of `timeline`, segments from `first` on. `borders` are names, ascending, that divide a long listing.
    ///
    /// # Errors
    /// The store's; what is wrong with segments in two forms is part of the listing.
    pub fn list_wal(
        &self,
        timeline: TimelineId,
        first: Option<SegmentName>,
        borders: &[SegmentName],
    ) -> Result<WalListing, Error> {
        let folder = self.layout.wal_folder(timeline);
        let mut listing = WalListing::default();
        let mut sole: Vec<(SegmentName, ArchivedFile)> = Vec::new();
        let mut later = Vec::new();
        let (tails, mut superseded) = (&mut listing.tails, 0);
        self.list_folder(&folder, first, borders, InWalFolder::of, |found| {
            let (file, archived) = match found {
                InWalFolder::File(file, archived) => (file, archived),
                InWalFolder::Tail(file) => {
                    let segment = file.what.segment;
                    if sole.last().is_some_and(|(name, _)| *name == segment) {
                        superseded += 1;
                    } else {
                        tails.entry(segment).or_default().push(*file);
                    }
                    return;
                }
            };
            match file {
                WalFileName::Segment(name) if first.is_some_and(|first| name < first) => {}
                // The second form of a segment comes after the first: the two are compared below.
                WalFileName::Segment(name) if sole.last().is_none_or(|it| it.0 < name) => {
                    sole.push((name, archived));
                }
                file => later.push((file, archived)),
            }
        })?;
        // Made in order, the tree has full nodes.
        listing.segments = sole.into_iter().collect();
        for (file, archived) in later {
            self.add(&mut listing, first, file, archived)?;
        }
        let segments = &listing.segments;
        listing.tails.retain(|segment, files| {
            let is_archived = segments.contains_key(segment);
            superseded += if is_archived { files.len() } else { 0 };
            !is_archived
        });
        listing.superseded = superseded;
        Ok(listing)
    }

    /// The summaries of `timeline`'s segments from `first` on, as [`Repository::list_wal`], each in every form in which it is stored.
    ///
    /// # Errors
    /// The store's.
    pub fn list_summaries(
        &self,
        timeline: TimelineId,
        first: Option<SegmentName>,
        borders: &[SegmentName],
    ) -> Result<BTreeMap<SegmentName, Forms>, StoreError> {
        let folder = self.layout.summary_folder(timeline);
        let mut summaries: Vec<(SegmentName, Forms)> = Vec::new();
        self.list_folder(&folder, first, borders, ArchivedFile::of, |archived| {
            let ArchivedKind::Summary(segment) = archived.kind else {
                return;
            };
            match summaries.last_mut().filter(|last| last.0 == segment) {
                Some((_, forms)) => forms.push(archived),
                None => summaries.push((segment, Forms::from([archived]))),
            }
        })?;
        Ok(summaries.into_iter().collect())
    }

    /// Shows what `of` makes of the objects whose keys begin with `folder`, in order. Between `borders`, names that ascend, a long
    /// listing is divided.
    ///
    /// # Errors
    /// The store's.
    pub fn read_keys<T: Send + 'static>(
        &self,
        folder: &str,
        borders: &[SegmentName],
        of: fn(&Layout, &ObjectInfo) -> Option<T>,
        show: impl FnMut(T),
    ) -> Result<(), StoreError> {
        self.list_folder(folder, None, borders, of, show)
    }

    /// Those of `names`, ascending, that divide a listing of what they name into parts of about the same length.
    pub fn borders(&self, names: Vec<SegmentName>) -> Vec<SegmentName> {
        let part = names.len().div_ceil(LISTED_AT_ONCE);
        if part < FEWEST_NAMES {
            return Vec::new();
        }
        names.into_iter().skip(part).step_by(part).collect()
    }

    /// Shows what `of` makes of the objects in a timeline's folder, in order, from `first` on. Between `borders` it is listed at the same
    /// time, where that costs no more.
    fn list_folder<T: Send + 'static>(
        &self,
        folder: &str,
        first: Option<SegmentName>,
        borders: &[SegmentName],
        of: Reading<T>,
        mut show: impl FnMut(T),
    ) -> Result<(), StoreError> {
        let borders = if self.session.begins_listings_anywhere() {
            borders
        } else {
            &[]
        };
        // A name's first 23 digits come before the name itself in every form of it.
        let begin = |name: SegmentName| format!("{folder}{name:.23}");
        let broken_off = |reason| {
            let error = StoreError::new(Operation::List, folder, ErrorKind::Other);
            error.with_source(reason)
        };
        let mut begins = vec![first.map(begin)];
        begins.extend(borders.iter().map(|name| Some(begin(*name))));
        if let [sole] = begins.as_slice() {
            // While a page is read, the next one comes; more are not in memory.
            let next = |mut pages: Listing| {
                self.session
                    .spawn(async move { (pages.next_page().await, pages) })
            };
            let mut coming = next(self.session.pages(folder, sole.as_deref()));
            loop {
                let (page, pages) = { self.session.join(coming) }.map_err(broken_off)?;
                let Some(page) = page? else {
                    return Ok(());
                };
                coming = next(pages);
                let found = page.objects.iter();
                let read = found.filter_map(|info| of(&self.layout, info));
                read.for_each(&mut show);
            }
        }
        let ends = begins.iter().skip(1).cloned().chain([None]);
        let lists: Vec<_> = { begins.iter().zip(ends) }
            .map(|(begin, end)| {
                let pages = self.session.pages(folder, begin.as_deref());
                self.session
                    .spawn(read_list(pages, end, self.layout.clone(), of))
            })
            .collect();
        for list in lists {
            let found = self.session.join(list).map_err(broken_off)?;
            found?.into_iter().for_each(&mut show);
        }
        Ok(())
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
            self.content_digest(&other.object()),
            self.content_digest(&archived.object()),
        ) {
            (Ok(first), Ok(second)) if first == second => {}
            (Ok(first), Ok(second)) if discriminant(&first) != discriminant(&second) => {
                let [first, second] = [other, &archived].map(|form| self.url(&form.object().key));
                tracing::warn!("{first} and {second} cannot be compared without the identity");
            }
            (Ok(_), Ok(_)) => {
                let two = ObjectError::TwoContents {
                    first: self.url(&other.object().key),
                    second: self.url(&archived.object().key),
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
        let text = self.read_text(&archived.object())?;
        Ok(Some((archived.object().key, text)))
    }

    /// Makes sure that the store holds anything of this cluster: what an empty store lacks is not proven absent.
    ///
    /// # Errors
    /// [`Error::NothingOfCluster`].
    pub fn must_be_known(&self) -> Result<(), Error> {
        let system_identifier = self.layout.system_identifier();
        let folders = self.session.folders(&format!("{system_identifier}/"))?;
        if folders.is_empty() {
            let all = self.session.folders("")?;
            return Err(Error::NothingOfCluster {
                found: all.iter().filter_map(|name| name.parse().ok()).collect(),
                store: self.session.url().to_owned(),
                system_identifier,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use walhalla_postgres::{SegmentNo, SegmentSize};
    use walhalla_providers::PutMode;

    use super::*;
    use crate::pipeline::{Codec, Encryption};
    use crate::repository::layout::{TailObject, TailPart};
    use crate::repository::testing;
    use crate::session::Network;

    fn name(number: u64) -> SegmentName {
        SegmentNo(number).on(TimelineId::FIRST, SegmentSize::DEFAULT)
    }

    impl Repository {
        fn put_segment(&self, number: u64, codec: Codec) {
            let packing = Packing {
                codec,
                encryption: Encryption::None,
            };
            let object = self.layout.wal(WalFileName::Segment(name(number)), packing);
            let put = self.session.put(&object.key, "x".into(), PutMode::Create);
            put.unwrap();
        }

        fn put_tail(&self, number: u64, pieces: u32) {
            for piece in 0..pieces {
                let what = TailObject {
                    segment: name(number),
                    run: "0123456789abcdef".parse().unwrap(),
                    part: TailPart::Piece(piece, piece + 1),
                };
                let packing = Packing {
                    codec: Codec::Lz4,
                    encryption: Encryption::None,
                };
                let object = self.layout.tail(what, packing);
                let put = self.session.put(&object.key, "x".into(), PutMode::Create);
                put.unwrap();
            }
        }
    }

    #[test]
    fn what_is_just_before_a_segment_comes_after_all_of_an_earlier_one() {
        for number in [0x10, 0x1A, 0x1F, 0x3A0] {
            let begin = just_before(name(number));
            let (own, earlier) = (name(number).to_string(), name(number - 1));
            assert!(begin < own, "{begin}");
            for suffix in ["", ".lz4", ".tail/x", ".zst.age", ".partial.lz4"] {
                assert!(begin > format!("{earlier}{suffix}"), "{begin}");
            }
        }
    }

    /// Nobody may have been allowed to delete it.
    #[test]
    fn a_long_tail_of_the_segment_before_hides_nothing() {
        let network = Network::start(2).unwrap();
        let repository = testing::in_memory(&network);
        for number in 3..6 {
            repository.put_segment(number, Codec::Lz4);
            repository.put_tail(number, 250);
        }
        let around = |number: u64| {
            let found = repository.segment_or_later(name(number), name(number - 1));
            found.unwrap()
        };
        assert!(around(5).is_ok());
        let absent = around(6).unwrap_err();
        assert_eq!(absent.later, Some(LaterWal::Nothing));
        assert!(absent.tail.is_empty());
        repository.put_tail(6, 250);
        assert_eq!(around(6).unwrap_err().tail.len(), 250);
        repository.put_segment(8, Codec::Zstd);
        let absent = around(6).unwrap_err();
        assert_eq!(absent.later, Some(LaterWal::Segment(name(8))));
        assert_eq!(absent.tail.len(), 250);
    }

    #[test]
    fn of_tails_those_of_archived_segments_are_counted_and_the_others_listed() {
        let network = Network::start(2).unwrap();
        let repository = testing::in_memory(&network);
        for (number, codec) in [(3, Codec::Lz4), (4, Codec::Zstd), (5, Codec::None)] {
            repository.put_segment(number, codec);
            repository.put_tail(number, 2);
        }
        repository.put_tail(6, 3);
        for borders in [vec![], vec![name(4), name(6)]] {
            let listed = repository
                .list_wal(TimelineId::FIRST, None, &borders)
                .unwrap();
            assert!(listed.segments.keys().copied().eq((3..6).map(name)));
            assert_eq!(listed.superseded, 6);
            let tails = listed.tails.iter();
            let tails: Vec<_> = tails.map(|(name, files)| (*name, files.len())).collect();
            assert_eq!(tails, [(name(6), 3)]);
        }
    }

    #[test]
    fn a_listing_in_parts_is_the_whole_listing() {
        let network = Network::start(2).unwrap();
        let repository = testing::in_memory(&network);
        for number in 3..60 {
            let packing = Packing {
                codec: if number % 2 == 0 {
                    Codec::Lz4
                } else {
                    Codec::None
                },
                encryption: Encryption::None,
            };
            for object in [
                repository
                    .layout
                    .wal(WalFileName::Segment(name(number)), packing),
                repository.layout.summary(name(number), packing),
            ] {
                let put = repository
                    .session
                    .put(&object.key, "x".into(), PutMode::Create);
                put.unwrap();
            }
        }
        for first in [
            None,
            Some(name(2)),
            Some(name(16)),
            Some(name(59)),
            Some(name(70)),
        ] {
            let list = |borders: &[SegmentName]| {
                let wal = repository
                    .list_wal(TimelineId::FIRST, first, borders)
                    .unwrap();
                let summaries = repository.list_summaries(TimelineId::FIRST, first, borders);
                (wal.segments, summaries.unwrap())
            };
            let whole = list(&[]);
            let expected = (3..60).map(name).filter(|name| Some(*name) >= first);
            assert!(whole.0.keys().copied().eq(expected), "{first:?}");
            // On a segment, between two first 23 digits, after the last one, all of one name's neighbours.
            for borders in [
                vec![20],
                vec![16, 32, 48],
                vec![17, 18, 19, 47],
                vec![59, 60, 99],
            ] {
                let borders: Vec<SegmentName> = { borders.into_iter() }
                    .map(name)
                    .filter(|border| first.is_none_or(|first| first < *border))
                    .collect();
                assert_eq!(list(&borders), whole, "{first:?} {borders:?}");
            }
        }
    }
}
