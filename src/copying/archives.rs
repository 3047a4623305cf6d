//! What is archived in the source and in the copy, by names.

use std::collections::{BTreeMap, HashMap};

use walhalla_postgres::{History, SegmentName, SegmentNo, SegmentSize, TimelineId, WalFileName};

use super::Error;
use super::select::Selection;
use crate::archive::inventory::{Run, spans};
use crate::output;
use crate::repository::ranges::{Range, Ranges};
use crate::repository::{self, ArchivedFile, ObjectError, Repository};

/// The WAL files of a store, all timelines together.
#[derive(Default)]
pub(super) struct Files {
    pub(super) segments: BTreeMap<SegmentName, ArchivedFile>,
    others: HashMap<WalFileName, ArchivedFile>,
}

/// What is archived on both sides.
pub(super) struct Archives {
    pub(super) source: Files,
    pub(super) copy: Files,
}

/// A file that is selected.
#[derive(Clone, Copy)]
pub(super) struct Item<'a> {
    pub(super) file: WalFileName,
    pub(super) archived: &'a ArchivedFile,
    /// As the copy has it.
    pub(super) there: Option<&'a ArchivedFile>,
}

/// Whether the copy has a segment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Before,
    /// It is going to.
    Soon,
}

impl Files {
    fn list(repository: &Repository) -> Result<Self, Error> {
        let mut files = Self::default();
        for timeline in repository.timelines()? {
            let listing = repository.list_wal(timeline, None, &[])?;
            for double in listing.doubles {
                match double {
                    repository::Error::Object(ObjectError::TwoContents { .. }) => {
                        return Err(double.into());
                    }
                    // The other form is listed.
                    damaged => tracing::warn!("{}; it is passed over", output::chain(&damaged)),
                }
            }
            files.segments.extend(listing.segments);
            files.others.extend(listing.others);
        }
        Ok(files)
    }

    pub(super) fn get(&self, file: WalFileName) -> Option<&ArchivedFile> {
        match file {
            WalFileName::Segment(name) => self.segments.get(&name),
            WalFileName::Partial(..) | WalFileName::History(_) | WalFileName::BackupHistory(..) => {
                self.others.get(&file)
            }
        }
    }

    /// Every file with its name.
    pub(super) fn named(&self) -> impl Iterator<Item = (WalFileName, &ArchivedFile)> {
        let segments = self.segments.iter();
        let segments = segments.map(|(name, archived)| (WalFileName::Segment(*name), archived));
        let others = self.others.iter();
        segments.chain(others.map(|(file, archived)| (*file, archived)))
    }

    /// Every file.
    pub(super) fn all(&self) -> impl Iterator<Item = &ArchivedFile> {
        self.segments.values().chain(self.others.values())
    }
}

impl Archives {
    /// Lists both.
    pub(super) fn list(source: &Repository, copy: &Repository) -> Result<Self, Error> {
        Ok(Self {
            source: Files::list(source)?,
            copy: Files::list(copy)?,
        })
    }

    /// The files of a selection: histories, then segments in order with what goes with them.
    pub(super) fn selected(&self, selection: &Selection) -> Vec<Item<'_>> {
        let is_selected = |file: WalFileName| match segment_of(file) {
            Some(name) => selection.wal.has(name),
            None => selection.timelines.contains(&file.timeline()),
        };
        let mut items: Vec<_> = { self.source.named() }
            .filter(|(file, _)| is_selected(*file))
            .map(|(file, archived)| Item {
                file,
                archived,
                there: self.copy.get(file),
            })
            .collect();
        // A history has no segment.
        items.sort_by_key(|item| segment_of(item.file));
        items
    }

    /// Segments that will be missing between others of the copy, along `history`, because they are not selected or because a
    /// deletion took them. A hole that the copy had before is not explained.
    pub(super) fn left_out(
        &self,
        selection: &Selection,
        deleted: &Ranges,
        history: &History,
        size: SegmentSize,
    ) -> Ranges {
        let mut held: BTreeMap<SegmentNo, Held> = BTreeMap::new();
        for (timeline, run) in spans(history, size, SegmentNo(0)) {
            let names = names(timeline, run, size);
            let selected = self.source.segments.range(names.clone());
            let selected = selected.filter(|(name, _)| selection.wal.has(**name));
            held.extend(selected.filter_map(|(name, _)| Some((name.number(size)?, Held::Soon))));
            let there = self.copy.segments.range(names);
            held.extend(there.filter_map(|(name, _)| Some((name.number(size)?, Held::Before))));
        }
        let mut left_out = Ranges::default();
        let pairs = held.iter().zip(held.iter().skip(1));
        for ((one, held_one), (other, held_other)) in pairs {
            let is_hole = one.next() < *other;
            if is_hole && (*held_one, *held_other) != (Held::Before, Held::Before) {
                let hole = Run {
                    first: one.next(),
                    end: *other,
                };
                left_out.extend(&self.explained(hole, deleted, history, size));
            }
        }
        left_out
    }

    /// What of a hole the source has, or deleted.
    fn explained(
        &self,
        hole: Run,
        deleted: &Ranges,
        history: &History,
        size: SegmentSize,
    ) -> Ranges {
        let mut explained = Ranges::default();
        for (timeline, span) in spans(history, size, hole.first) {
            let run = Run {
                first: span.first,
                end: span.end.min(hole.end),
            };
            if run.is_empty() {
                continue;
            }
            let names = names(timeline, run, size);
            explained.extend(&deleted.within(*names.start(), *names.end()));
            let mut begun: Option<(SegmentName, SegmentName)> = None;
            for name in self.source.segments.range(names).map(|(name, _)| *name) {
                begun = match begun {
                    Some((first, last)) if follows(last, name, size) => Some((first, name)),
                    ended => {
                        if let Some((first, last)) = ended {
                            explained.add(timeline, Range::through(first, last));
                        }
                        Some((name, name))
                    }
                };
            }
            if let Some((first, last)) = begun {
                explained.add(timeline, Range::through(first, last));
            }
        }
        explained
    }
}

/// The names of a run on a timeline.
fn names(
    timeline: TimelineId,
    run: Run,
    size: SegmentSize,
) -> std::ops::RangeInclusive<SegmentName> {
    run.first.on(timeline, size)..=run.last().on(timeline, size)
}

fn follows(one: SegmentName, other: SegmentName, size: SegmentSize) -> bool {
    let numbers = one.number(size).zip(other.number(size));
    numbers.is_some_and(|(one, other)| one.next() == other)
}

/// The segment that a file is, or goes with.
pub(super) fn segment_of(file: WalFileName) -> Option<SegmentName> {
    match file {
        WalFileName::Segment(name)
        | WalFileName::Partial(name, _)
        | WalFileName::BackupHistory(name, _) => Some(name),
        WalFileName::History(_) => None,
    }
}
