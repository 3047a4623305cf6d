//! Copying WAL: histories first, then segments in order, so that the copy never has a hole that the source has not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use walhalla_postgres::{SegmentName, SegmentSize, TimelineId, WalFileName};
use walhalla_providers::{Error as StoreError, ErrorKind};

use super::order::{Order, Place, Turn};
use super::select::Selection;
use super::sending::{Sending, Sent, stored_digest};
use super::{Count, Error};
use crate::archive::inventory::{Summaries, WalFiles};
use crate::failure::Failure as _;
use crate::output;
use crate::pipeline::{self, Encryption, Pipeline, StoredHash, StoredObject};
use crate::repository::layout::Object;
use crate::repository::ranges::{Range, Ranges};
use crate::repository::{ArchivedFile, Repository};
use crate::threads::{lock, on_threads};
use crate::wal::stored_summary;

/// What is archived of the selected timelines, in the source and in the copy.
pub(super) struct Archives {
    source: BTreeMap<TimelineId, WalFiles>,
    copy: BTreeMap<TimelineId, WalFiles>,
    summaries: BTreeMap<TimelineId, Summaries>,
}

/// A file that is copied.
#[derive(Clone, Copy)]
struct Item<'a> {
    file: WalFileName,
    archived: &'a ArchivedFile,
}

/// How WAL is copied.
pub(super) struct WalCopy<'a> {
    pub(super) sending: Sending<'a>,
    /// Packs it anew.
    pub(super) pipeline: Option<&'a Pipeline>,
    pub(super) threads: usize,
    /// In which files come to exist where a backup of the copy could see a hole.
    pub(super) order: Option<Order>,
}

impl Archives {
    /// Lists the timelines of a selection.
    pub(super) fn list(
        source: &Repository,
        copy: &Repository,
        selection: &Selection,
    ) -> Result<Self, Error> {
        let list = |repository: &Repository| -> Result<BTreeMap<_, _>, Error> {
            let listed = { selection.timelines.iter() }.map(|timeline| {
                let mut listing = repository.list_wal(*timeline, None, &[])?;
                match std::mem::take(&mut listing.doubles).into_iter().next() {
                    Some(double) => Err(double.into()),
                    None => Ok((*timeline, WalFiles::from(listing))),
                }
            });
            listed.collect()
        };
        let summaries = { selection.timelines.iter() }
            .map(|timeline| Ok((*timeline, source.list_summaries(*timeline, None, &[])?)));
        Ok(Self {
            summaries: summaries.collect::<Result<_, StoreError>>()?,
            source: list(source)?,
            copy: list(copy)?,
        })
    }

    /// The files of a selection, each after those that it needs.
    fn selected(&self, selection: &Selection) -> Vec<Item<'_>> {
        let item = |file, archived| Item { file, archived };
        let all = self.source.values().flat_map(|files| {
            let segments = files.segments.iter();
            let segments =
                segments.map(move |(name, file)| item(WalFileName::Segment(*name), file));
            let others = files
                .others
                .iter()
                .map(move |(name, file)| item(*name, file));
            segments.chain(others)
        });
        let mut items: Vec<_> = all
            .filter(|item| segment_of(item.file).is_none_or(|name| selection.wal.has(name)))
            .collect();
        // A history has no segment.
        items.sort_by_key(|item| segment_of(item.file));
        items
    }

    fn has(&self, item: &Item) -> Option<&ArchivedFile> {
        let files = self.copy.get(&item.file.timeline())?;
        match item.file {
            WalFileName::Segment(name) => files.segments.get(&name),
            WalFileName::Partial(..) | WalFileName::History(_) | WalFileName::BackupHistory(..) => {
                let mut others = files.others.iter();
                others
                    .find(|(file, _)| *file == item.file)
                    .map(|(_, found)| found)
            }
        }
    }

    /// One of them that is encrypted.
    pub(super) fn encrypted(&self, selection: &Selection) -> Option<Object> {
        let objects = { self.selected(selection).into_iter() }.map(|item| item.archived.object());
        { objects }.find(|object| object.packing.encryption != Encryption::None)
    }

    /// How much is to be sent.
    pub(super) fn missing_bytes(&self, selection: &Selection) -> u64 {
        let selected = self.selected(selection);
        let missing = selected.iter().filter(|item| self.has(item).is_none());
        missing.map(|item| item.archived.stored_bytes).sum()
    }

    /// Segments that the copy will not have between others although the source has them, or had them until it deleted them.
    pub(super) fn left_out(
        &self,
        selection: &Selection,
        deleted: &Ranges,
        size: SegmentSize,
    ) -> Ranges {
        let mut left_out = Ranges::default();
        for (timeline, source) in &self.source {
            let there = self.copy.get(timeline).into_iter();
            let there = there.flat_map(|files| files.segments.keys().copied());
            let selected = source.segments.keys().copied();
            let selected = selected.filter(|name| selection.wal.has(*name));
            let held: BTreeSet<SegmentName> = there.chain(selected).collect();
            let (Some(first), Some(last)) = (held.first(), held.last()) else {
                continue;
            };
            let mut run: Option<(SegmentName, SegmentName)> = None;
            let follows = |one: SegmentName, other: SegmentName| {
                one.number(size)
                    .map(|number| number.next().on(*timeline, size))
                    == Some(other)
            };
            for name in source.segments.range(*first..=*last).map(|(name, _)| *name) {
                if held.contains(&name) {
                    continue;
                }
                run = Some(match run {
                    Some((begin, end)) if follows(end, name) => (begin, name),
                    ended => {
                        if let Some((begin, end)) = ended {
                            left_out.add(*timeline, Range::through(begin, end));
                        }
                        (name, name)
                    }
                });
            }
            if let Some((begin, end)) = run {
                left_out.add(*timeline, Range::through(begin, end));
            }
            let deleted = deleted.iter().filter(|(of, _)| of == timeline);
            deleted.for_each(|(timeline, range)| left_out.add(timeline, *range));
        }
        left_out
    }
}

/// The segment that a file is, or goes with.
fn segment_of(file: WalFileName) -> Option<SegmentName> {
    match file {
        WalFileName::Segment(name)
        | WalFileName::Partial(name, _)
        | WalFileName::BackupHistory(name, _) => Some(name),
        WalFileName::History(_) => None,
    }
}

impl WalCopy<'_> {
    /// Copies the files of a selection that the copy does not have.
    pub(super) fn run(&self, archives: &Archives, selection: &Selection) -> Result<Count, Error> {
        let items = archives.selected(selection);
        self.is_same_so_far(archives, &items)?;
        let there = items.iter().filter(|item| archives.has(item).is_some());
        let mut count = Count {
            there: there.count() as u64,
            ..Count::default()
        };
        let missing = items.iter().filter(|item| archives.has(item).is_none());
        let missing: Vec<Item> = missing.copied().collect();
        let next = AtomicUsize::new(0);
        let summed = Mutex::new(Count::default());
        let worker = || -> Result<(), Error> {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = missing.get(number) else {
                    return Ok(());
                };
                let order = self.order.as_ref();
                let sent = self.send(item, archives, Place(order.map(|order| (order, number))));
                let sent = sent.inspect_err(|_| order.into_iter().for_each(Order::break_off));
                match sent? {
                    Sent::Stopped => return Ok(()),
                    Sent::Before => lock(&summed).there += 1,
                    Sent::Now { stored_bytes, .. } => lock(&summed).add(stored_bytes),
                }
            }
        };
        on_threads(self.threads, self.sending.progress, &worker)?;
        count.extend(*lock(&summed));
        Ok(count)
    }

    /// Of each timeline, the last file that both have must be the same in both: a name is no proof.
    fn is_same_so_far(&self, archives: &Archives, items: &[Item]) -> Result<(), Error> {
        let mut last: BTreeMap<TimelineId, (&Item, &ArchivedFile)> = BTreeMap::new();
        for item in items {
            if let Some(known) = archives.has(item) {
                last.insert(item.file.timeline(), (item, known));
            }
        }
        let Sending { source, copy, .. } = self.sending;
        for (item, known) in last.into_values() {
            let (ours, theirs) = (item.archived.object(), known.object());
            let is_same = match (source.content_digest(&ours), copy.content_digest(&theirs)) {
                (Ok(one), Ok(other)) => one == other,
                (Err(locked), _) | (_, Err(locked)) if locked.is_locked() => {
                    if ours.packing != theirs.packing {
                        tracing::warn!(
                            "{} and {} cannot be compared without the identity",
                            source.url(&ours.key),
                            copy.url(&theirs.key)
                        );
                        continue;
                    }
                    let hash = StoredHash::default;
                    stored_digest(source, &ours.key, hash())?
                        == stored_digest(copy, &theirs.key, hash())?
                }
                (Err(error), _) | (_, Err(error)) => return Err(error.into()),
            };
            if !is_same {
                return Err(Error::OtherContent {
                    source_object: source.url(&ours.key),
                    copy_object: copy.url(&theirs.key),
                });
            }
        }
        Ok(())
    }

    fn send(&self, item: &Item, archives: &Archives, place: Place) -> Result<Sent, Error> {
        let object = item.archived.object();
        let Some(pipeline) = self.pipeline else {
            let sent = self
                .sending
                .as_it_is(&object, StoredHash::default(), place)?;
            if let Sent::Now { digest, .. } = sent {
                self.sending.read_back(&object, digest)?;
                self.copy_summary(item.file, archives, None)?;
            }
            return Ok(sent);
        };
        let (sent, stored) = self.repack(item, &object, pipeline, place)?;
        if let Some(stored) = &stored {
            self.copy_summary(item.file, archives, Some((pipeline, stored)))?;
        }
        Ok(sent)
    }

    /// Sends a file's content, packed anew.
    fn repack(
        &self,
        item: &Item,
        object: &Object,
        pipeline: &Pipeline,
        place: Place,
    ) -> Result<(Sent, Option<StoredObject>), Error> {
        let Sending { copy, progress, .. } = self.sending;
        let pipeline = match item.file {
            WalFileName::Segment(_) | WalFileName::Partial(..) => pipeline.clone(),
            WalFileName::History(_) | WalFileName::BackupHistory(..) => pipeline.framed(),
        };
        let target = copy.layout().wal(item.file, pipeline.packing());
        let mut writer = pipeline.create_whole(&target.key, target.name(), None)?;
        self.sending
            .repack(object, StoredHash::default(), &mut writer)?;
        let goes_on = progress.add(item.archived.stored_bytes);
        if !goes_on || place.wait() == Turn::Never {
            writer.discard();
            return Ok((Sent::Stopped, None));
        }
        let finished = writer.finish();
        place.ended();
        match finished {
            Err(pipeline::Error::Store(error)) if error.kind == ErrorKind::AlreadyExists => {
                Ok((Sent::Before, None))
            }
            finished => {
                let stored = finished?;
                let sent = Sent::of(&stored);
                if let Sent::Now { digest, .. } = sent {
                    self.sending.read_back(&target, digest)?;
                }
                Ok((sent, Some(stored)))
            }
        }
    }

    /// Copies a segment's summary. It can be made again, so that one which cannot be used is passed over.
    fn copy_summary(
        &self,
        file: WalFileName,
        archives: &Archives,
        repacked: Option<(&Pipeline, &StoredObject)>,
    ) -> Result<(), Error> {
        let WalFileName::Segment(name) = file else {
            return Ok(());
        };
        let of_timeline = archives.summaries.get(&name.timeline);
        let Some(form) = of_timeline
            .and_then(|all| all.get(&name))
            .and_then(|forms| forms.first())
        else {
            return Ok(());
        };
        let Sending { source, copy, .. } = self.sending;
        let object = form.object();
        let Some((pipeline, stored)) = repacked else {
            let sent = self
                .sending
                .as_it_is(&object, StoredHash::default(), Place(None));
            return sent.map(drop);
        };
        match stored_summary::read(source, name, &object) {
            Ok(summary) => {
                let summary = stored_summary::of_stored(summary, stored);
                stored_summary::write_new(copy, pipeline, &summary, None)?;
                Ok(())
            }
            Err(error) if error.is_of_the_object() || error.is_locked() => {
                tracing::debug!("{}; the summary is not copied", output::chain(&error));
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}
