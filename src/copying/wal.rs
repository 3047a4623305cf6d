//! Copying WAL: histories first, then segments in order, so that the copy gets no hole that the source has not.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use walhalla_postgres::{SegmentName, WalFileName};
use walhalla_providers::ErrorKind;

use super::archives::Item;
use super::order::{Order, Place, Turn};
use super::sending::{Sending, Sent};
use super::{Count, Error};
use crate::failure::{Class, Failure as _};
use crate::output;
use crate::pipeline::{self, StoredHash};
use crate::repository::layout::Object;
use crate::repository::{ArchivedFile, Forms};
use crate::threads::{lock, on_threads};
use crate::wal::stored_summary;

/// How WAL is copied.
pub(super) struct WalCopy<'a> {
    pub(super) sending: Sending<'a>,
    pub(super) threads: usize,
    /// In which files come to exist where a backup of the copy could see a hole.
    pub(super) order: Option<Order>,
}

impl WalCopy<'_> {
    /// Copies those of `items` that are not there. A damaged one is told and left out.
    pub(super) fn run(&self, items: &[Item]) -> Result<Count, Error> {
        let missing: Vec<&Item> = items.iter().filter(|item| item.there.is_none()).collect();
        let counted = Mutex::new(Count {
            there: (items.len() - missing.len()) as u64,
            ..Count::default()
        });
        let next = AtomicUsize::new(0);
        let worker = || -> Result<(), Error> {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = missing.get(number) else {
                    return Ok(());
                };
                let place = Place::of(self.order.as_ref(), number);
                match self.send(item, &place) {
                    Ok(Sent::Stopped) => return Ok(()),
                    Ok(Sent::Before) => lock(&counted).there += 1,
                    Ok(Sent::Now { stored_bytes, .. }) => lock(&counted).add(stored_bytes),
                    Err(error) if error.is_of_the_source() => {
                        tracing::error!("{}", output::chain(&error));
                        lock(&counted).left_out += 1;
                    }
                    Err(error) => return Err(error),
                }
                place.end();
            }
        };
        on_threads(self.threads, self.sending.progress, &worker)?;
        let counted = *lock(&counted);
        Ok(counted)
    }

    fn send(&self, item: &Item, place: &Place) -> Result<Sent, Error> {
        let object = item.archived.object();
        let Some(pipeline) = self.sending.pipeline else {
            let sent = self
                .sending
                .as_it_is(&object, StoredHash::default(), place)?;
            match sent {
                Sent::Now { digest, .. } => self.sending.read_back(&object, digest)?,
                Sent::Before => self.sending.must_be_like(&object, &object)?,
                Sent::Stopped => {}
            }
            return Ok(sent);
        };
        let pipeline = match item.file {
            WalFileName::Segment(_) | WalFileName::Partial(..) => pipeline.clone(),
            WalFileName::History(_) | WalFileName::BackupHistory(..) => pipeline.framed(),
        };
        let target = self
            .sending
            .copy
            .layout()
            .wal(item.file, pipeline.packing());
        let mut writer = pipeline.create_whole(&target.key, target.name(), None)?;
        self.sending
            .repack(&object, StoredHash::default(), &mut writer)?;
        let goes_on = self.sending.progress.add(item.archived.stored_bytes);
        if !goes_on || place.wait() == Turn::Never {
            writer.discard();
            return Ok(Sent::Stopped);
        }
        match writer.finish() {
            Err(pipeline::Error::Store(error)) if error.kind == ErrorKind::AlreadyExists => {
                self.sending.must_be_like(&object, &target)?;
                Ok(Sent::Before)
            }
            finished => {
                let stored = finished?;
                let sent = Sent::of(&stored);
                if let Sent::Now { digest, .. } = sent {
                    self.sending.read_back(&target, digest)?;
                }
                Ok(sent)
            }
        }
    }

    /// Copies the summaries of `items` that the copy does not have. They can be made again, so that what is wrong with one of
    /// them is only told.
    pub(super) fn summaries(&self, items: &[Item]) -> Result<(), Error> {
        let segments = items.iter().filter_map(|item| match item.file {
            WalFileName::Segment(name) => Some(name),
            _ => None,
        });
        let segments: BTreeSet<SegmentName> = segments.collect();
        let timelines: BTreeSet<_> = segments.iter().map(|name| name.timeline).collect();
        let mut missing: Vec<(SegmentName, Forms)> = Vec::new();
        for timeline in timelines {
            let known = self.sending.copy.list_summaries(timeline, None, &[])?;
            let found = self.sending.source.list_summaries(timeline, None, &[])?;
            missing.extend(
                found
                    .into_iter()
                    .filter(|(name, _)| segments.contains(name) && !known.contains_key(name)),
            );
        }
        let next = AtomicUsize::new(0);
        let worker = || -> Result<(), Error> {
            while let Some((name, forms)) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                match forms.first().map(|form| self.summary(*name, form)) {
                    Some(Err(error)) if is_of_one(&error) => {
                        tracing::debug!("{}; the summary is not copied", output::chain(&error));
                    }
                    Some(summary) => summary?,
                    None => {}
                }
            }
            Ok(())
        };
        on_threads(self.threads, self.sending.progress, &worker)
    }

    fn summary(&self, name: SegmentName, form: &ArchivedFile) -> Result<(), Error> {
        let Sending { source, copy, .. } = self.sending;
        let object: Object = form.object();
        let Some(pipeline) = self.sending.pipeline else {
            let hash = StoredHash::default();
            return self
                .sending
                .as_it_is(&object, hash, &Place::free())
                .map(drop);
        };
        let summary = stored_summary::read(source, name, &object)?;
        // It names the trailer of its segment as that is stored.
        let Some(segment) = copy.find_wal(WalFileName::Segment(name))? else {
            return Ok(());
        };
        let summary = stored_summary::of_trailer(summary, copy.trailer(&segment)?);
        stored_summary::write_new(copy, pipeline, &summary, None)?;
        Ok(())
    }
}

/// Whether the error is about one summary, and the next may be copied.
fn is_of_one(error: &Error) -> bool {
    matches!(
        error.class(),
        Class::Damaged | Class::Locked | Class::OtherKey | Class::Inaccessible
    )
}
