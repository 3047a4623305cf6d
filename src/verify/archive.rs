//! Verifying the archive: no gap along any history that a backup needs, and, if deep, every segment's content.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use walhalla_postgres::wal::cluster::Cluster;
use walhalla_postgres::wal::page_header::LONG_HEADER_BYTES;
use walhalla_postgres::{History, SegmentName, SegmentNo, SegmentSize, TimelineId, WalFileName};
use walhalla_providers::ObjectKey;

use super::receipts::{Depth, Receipts};
use super::segments::{Followed, RunReader, to_a_record};
use super::{Error, Findings, Options, Verified, count, damaged_entries, note_absent};
use crate::archive::inventory::{self, Inventory, Listed, Run, WalFiles};
use crate::pipeline::{Locked, Packing};
use crate::progress::Progress;
use crate::repository::gaps::RecordedGap;
use crate::repository::layout::Key;
use crate::repository::ranges::Ranges;
use crate::repository::tails::{RunDamage, TailFile, by_run};
use crate::repository::{self, ArchivedFile, BackupEntry, Catalog, ObjectError, Repository};
use crate::threads::{lock, on_threads};
use crate::wal::tail;

/// Segments that a thread reads one after the other; the one before them is read again.
const RUN_SEGMENTS: usize = 32;

/// Segments whose first page is asked for what all of them have in common.
const FIRST_PAGES: usize = 3;

/// How far the archive is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Names alone.
    Names,
    /// Every file to its end.
    Content,
}

/// Verifies the archive for the backups of `catalog`.
pub fn verify(
    repository: &Repository,
    catalog: &Catalog,
    reading: Reading,
    options: Options,
) -> Verified {
    let findings = Findings::new();
    let outcome = work(repository, catalog, reading, &options, &findings);
    let receipts = options.receipts.map_or(Ok(()), super::Receipts::finish);
    findings.report(outcome.and(receipts.map_err(Error::from)))
}

fn work(
    repository: &Repository,
    catalog: &Catalog,
    reading: Reading,
    options: &Options,
    findings: &Findings,
) -> Result<(), Error> {
    damaged_entries(repository, catalog, findings);
    if catalog.backups().is_empty() {
        findings.note("there is no backup, so no gap can be told".to_owned());
    }
    let mut archive = Archive::list(repository, catalog.backups(), findings)?;
    archive.deleted.extend(&options.owed);
    if let Some(receipts) = &options.receipts {
        archive.traces_in(receipts);
    }
    count(&findings.backups, catalog.backups().len() as u64);
    archive.continuity(findings);
    match reading {
        Reading::Names => Ok(()),
        Reading::Content => archive.read(findings, options),
    }
}

struct Archive<'a> {
    repository: &'a Repository,
    backups: &'a [BackupEntry],
    histories: BTreeMap<TimelineId, History>,
    inventory: Inventory,
    /// Segments that are not archived, and of which the store has a tail.
    unfinished: BTreeSet<SegmentName>,
    /// Objects of tails of other segments.
    superseded: usize,
    /// Segments of which something tells that they were there, and what.
    traces: BTreeMap<SegmentName, Trace>,
    /// Those of them that are missing.
    lost: Mutex<BTreeSet<SegmentName>>,
    /// WAL that deletions took, or that is owed: it is not missing.
    deleted: Ranges,
}

/// What is left of a segment, or of what was said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trace {
    Summary,
    BackupHistory,
    Receipt,
    Dropped(RecordedGap),
}

impl std::fmt::Display for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Summary => "its summary is there",
            Self::BackupHistory => "the history file of a backup that begins in it is there",
            Self::Receipt => "a receipt says that it was there",
            Self::Dropped(gap) => return gap.fmt(f),
        })
    }
}

impl<'a> Archive<'a> {
    fn list(
        repository: &'a Repository,
        backups: &'a [BackupEntry],
        findings: &Findings,
    ) -> Result<Self, Error> {
        let mut archive = Self {
            repository,
            backups,
            histories: BTreeMap::new(),
            inventory: Inventory::default(),
            unfinished: BTreeSet::new(),
            superseded: 0,
            traces: BTreeMap::new(),
            lost: Mutex::default(),
            deleted: Ranges::default(),
        };
        let folder = repository.layout().deletions();
        let url = format!("{}/{folder}", repository.store_url());
        let deleted = repository.deleted_wal().map_err(Error::from);
        archive.deleted = findings.judge(&url, deleted)?.unwrap_or_default();
        for backup in backups {
            let history = backup.timeline_history();
            archive.histories.insert(backup.timeline, history);
        }
        for timeline in repository.timelines()? {
            let folder = repository.layout().wal_folder(timeline);
            let url = format!("{}/{folder}", repository.store_url());
            let listing = repository
                .list_wal(timeline, None, &[])
                .map_err(Error::from);
            let mut listing = findings.judge(&url, listing)?.unwrap_or_default();
            for double in std::mem::take(&mut listing.doubles) {
                let object = double.object().unwrap_or(&url).to_owned();
                findings.judge::<()>(&object, Err(double.into()))?;
            }
            archive.unfinished.extend(listing.tails.keys());
            archive.superseded += listing.superseded;
            let files = WalFiles::from(listing);
            archive.nothing_is_empty(&files, findings);
            archive.history_of(timeline, &files, findings)?;
            archive.traces_of(timeline, &files)?;
            archive.inventory.wal.insert(timeline, Listed::whole(files));
        }
        for gap in repository.recorded_gaps()? {
            // Its words come before those of other traces.
            let ends = [gap.dropped.first, gap.dropped.last];
            archive
                .traces
                .extend(ends.map(|name| (name, Trace::Dropped(gap))));
        }
        Ok(archive)
    }

    fn nothing_is_empty(&self, files: &WalFiles, findings: &Findings) {
        for file in files.all().filter(|file| file.stored_bytes == 0) {
            let url = self.repository.url(&file.object().key);
            findings.problem(url, "it is empty".to_owned());
        }
    }

    /// Takes in what tells of segments of a timeline.
    fn traces_of(&mut self, timeline: TimelineId, files: &WalFiles) -> Result<(), Error> {
        let summaries = self.repository.list_summaries(timeline, None, &[])?;
        let of_summaries = summaries.into_keys().map(|name| (name, Trace::Summary));
        let of_backups = files.begins_of_backups.iter();
        let of_backups = of_backups.map(|name| (*name, Trace::BackupHistory));
        self.traces.extend(of_backups.chain(of_summaries));
        Ok(())
    }

    /// Takes in segments that were read once.
    fn traces_in(&mut self, receipts: &Receipts) {
        let prefix = format!("{}/", self.repository.store_url());
        for url in receipts.urls() {
            if let Some(name) = self.segment_at(&prefix, &url) {
                self.traces.entry(name).or_insert(Trace::Receipt);
            }
        }
    }

    /// The segment whose object has this URL, in the store whose objects' URLs begin with `prefix`.
    fn segment_at(&self, prefix: &str, url: &str) -> Option<SegmentName> {
        let key = ObjectKey::new(url.strip_prefix(prefix)?).ok()?;
        match self.repository.layout().parse(&key) {
            Key::Wal(WalFileName::Segment(name), _) => Some(name),
            _ => None,
        }
    }

    /// Segments along a history that were there once.
    fn traces_along(
        &self,
        history: &History,
        size: SegmentSize,
    ) -> impl Iterator<Item = SegmentNo> {
        let on_way = move |name: &SegmentName| {
            let number = name.number(size)?;
            (history.segment_name(number, size) == *name).then_some(number)
        };
        self.traces.keys().filter_map(on_way)
    }

    /// Takes in the archived history of a timeline, where it can be read.
    fn history_of(
        &mut self,
        timeline: TimelineId,
        files: &WalFiles,
        findings: &Findings,
    ) -> Result<(), Error> {
        let number = timeline.number();
        let file = self
            .repository
            .layout()
            .wal(WalFileName::History(timeline), Packing::NONE);
        let url = self.repository.url(&file.key);
        match self.repository.history(timeline) {
            Ok(Some(history)) => {
                let known = self.histories.insert(timeline, history.clone());
                if known.is_some_and(|known| known != history) {
                    findings.problem(url, "it is not the history that a backup was taken on".to_owned());
                }
            }
            Ok(None) if timeline == TimelineId::FIRST => {
                self.histories.insert(timeline, History::root(timeline));
            }
            Ok(None) if files.segments.is_empty() => {}
            Ok(None) => {
                let what = format!("it is missing: where timeline {number} comes from cannot be told");
                findings.problem(url, what);
            }
            Err(repository::Error::Object(ObjectError::Locked {
                reason: Locked::NoIdentity,
                ..
            })) => findings.note(format!(
                "the history of timeline {number} is encrypted and no identity is set: where it begins is not known, \
                 and a gap there would not be found"
            )),
            Err(error) => {
                let object = error.object().unwrap_or(&url).to_owned();
                findings.judge::<()>(&object, Err(error.into()))?;
            }
        }
        Ok(())
    }

    /// Every history along which a backup can be replayed, and those backups.
    fn ways(&self) -> impl Iterator<Item = (&History, Vec<&BackupEntry>)> {
        self.histories.values().filter_map(|history| {
            let leads = |backup: &&BackupEntry| backup.leads_to(history);
            let backups: Vec<_> = self.backups.iter().filter(leads).collect();
            let is_lived_on = self
                .files(history.timeline)
                .is_some_and(|files| !files.segments.is_empty());
            let is_own = backups
                .iter()
                .any(|backup| backup.timeline == history.timeline);
            (!backups.is_empty() && (is_lived_on || is_own)).then_some((history, backups))
        })
    }

    /// What is archived of a timeline.
    fn files(&self, timeline: TimelineId) -> Option<&WalFiles> {
        Some(&self.inventory.wal.get(&timeline)?.found)
    }

    /// What is archived of each timeline.
    fn all_files(&self) -> impl Iterator<Item = (TimelineId, &WalFiles)> {
        let all = self.inventory.wal.iter();
        all.map(|(timeline, listed)| (*timeline, &*listed.found))
    }

    fn continuity(&self, findings: &Findings) {
        self.continuity_within_unknown(findings);
        for (history, backups) in self.ways() {
            let Some(size) = backups.first().map(|backup| backup.wal_segment_size) else {
                continue;
            };
            let starts = backups
                .iter()
                .map(|backup| size.segment_of(backup.start_lsn));
            let Some(first) = starts.min() else {
                continue;
            };
            let archived = self.inventory.runs_along(history, size, first);
            let stops = backups
                .iter()
                .map(|backup| size.segment_before(backup.stop_lsn));
            let traces = self.traces_along(history, size);
            let last_archived = archived.iter().last().map(Run::last);
            let Some(last) = stops.chain(last_archived).chain(traces).max() else {
                continue;
            };
            let needed = Run::through(first, last);
            let there = archived.within(needed).map(Run::len);
            count(&findings.segments, there.sum());
            let holes = archived.holes(needed);
            for gap in holes
                .into_iter()
                .flat_map(|hole| self.not_deleted(hole, history, size))
            {
                self.tell_gap(findings, history, size, gap, &backups);
            }
        }
    }

    /// Timelines of unknown origin: between their own first and last segments at least nothing may be missing.
    fn continuity_within_unknown(&self, findings: &Findings) {
        let Some(size) = self.backups.last().map(|backup| backup.wal_segment_size) else {
            return;
        };
        for (timeline, _) in self.all_files() {
            if self.histories.contains_key(&timeline) {
                continue;
            }
            let root = History::root(timeline);
            let archived = self.inventory.runs_along(&root, size, SegmentNo(0));
            let holes = archived.holes(archived.whole());
            for gap in holes
                .into_iter()
                .flat_map(|hole| self.not_deleted(hole, &root, size))
            {
                self.tell_gap(findings, &root, size, gap, &[]);
            }
        }
    }

    /// What of a hole no deletion made.
    fn not_deleted(&self, hole: Run, history: &History, size: SegmentSize) -> Vec<Run> {
        let mut missing: Vec<Run> = Vec::new();
        for (timeline, span) in inventory::spans(history, size, hole.first) {
            let last = SegmentNo(span.end.min(hole.end).0.saturating_sub(1));
            let [first, last] = [span.first, last].map(|number| number.on(timeline, size));
            for (first, last) in self.deleted.outside(first, last, size) {
                match missing.last_mut().filter(|run| run.end == first) {
                    Some(run) => run.end = last.next(),
                    None => missing.push(Run::through(first, last)),
                }
            }
        }
        missing
    }

    fn tell_gap(
        &self,
        findings: &Findings,
        history: &History,
        size: SegmentSize,
        gap: Run,
        backups: &[&BackupEntry],
    ) {
        let (first, last) = (gap.first, gap.last());
        let name = history.segment_name(first, size);
        let object = self
            .repository
            .layout()
            .wal(WalFileName::Segment(name), Packing::NONE);
        let affected = backups
            .iter()
            .filter(|backup| size.segment_of(backup.start_lsn) <= last);
        let ids: Vec<String> = affected.map(|backup| backup.id.to_string()).collect();
        let range = match last.0 - first.0 {
            0 => "it is missing".to_owned(),
            more => format!(
                "it and the {more} after it, to {}, are missing",
                history.segment_name(last, size)
            ),
        };
        let mut trace = String::new();
        for (name, found) in &self.traces {
            let number = name.number(size).filter(|number| gap.contains(*number));
            if number.is_some_and(|number| history.segment_name(number, size) == *name) {
                lock(&self.lost).insert(*name);
                if trace.is_empty() {
                    trace = format!(" ({found})");
                }
            }
        }
        let what = format!(
            "{range}{trace}: replay along timeline {} ends at {} for {}",
            history.timeline.number(),
            first.start(size),
            backups_in_words(&ids)
        );
        findings.problem(self.repository.url(&object.key), what);
    }

    /// Reads everything.
    ///
    /// # Errors
    /// [`ObjectError::Locked`] before anything is read, when no identity is set and one is needed.
    fn read(&self, findings: &Findings, options: &Options) -> Result<(), Error> {
        self.must_be_open()?;
        let of_backup = self.backups.last().map(Cluster::from);
        let cluster = of_backup.or_else(|| self.cluster_of_a_segment());
        let reader = RunReader {
            repository: self.repository,
            cluster,
            findings,
            receipts: options.receipts.as_ref(),
        };
        self.note_absent(findings, options);
        let (mut runs, mut others) = (Vec::new(), Vec::new());
        for (timeline, files) in self.all_files() {
            let is_wanted = |archived: &ArchivedFile| self.is_wanted(archived, findings, options);
            let root = History::root(timeline);
            let history = self.histories.get(&timeline).unwrap_or(&root);
            let segments = files.segments.iter().filter(|(_, file)| is_wanted(file));
            let segments: Vec<_> = segments.map(|(name, file)| (*name, file.clone())).collect();
            match cluster {
                Some(cluster) => {
                    runs.extend(self.runs(history, &segments, cluster.segment_size));
                }
                // How long a segment is cannot be told.
                None => others.extend(
                    segments
                        .into_iter()
                        .map(|(name, file)| (WalFileName::Segment(name), file, history.clone())),
                ),
            }
            let other = files.others.iter().filter(|(_, file)| is_wanted(file));
            others.extend(other.map(|(name, file)| (*name, file.clone(), history.clone())));
        }
        read_all(&reader, options, &runs, &others)?;
        self.tails(findings)
    }

    /// Reads what was stored of segments that are not archived.
    fn tails(&self, findings: &Findings) -> Result<(), Error> {
        for segment in &self.unfinished {
            let root = History::root(segment.timeline);
            let history = self.histories.get(&segment.timeline).unwrap_or(&root);
            // Since it was listed it may have become longer, or the segment may have been archived.
            let files = self.repository.tail_files(*segment)?;
            for files in by_run(&files).into_values() {
                self.tail(history, *segment, files, findings)?;
            }
        }
        if self.superseded > 0 {
            findings.note(format!(
                "{} objects hold WAL of segments that were archived since, and are of no use any more",
                self.superseded
            ));
        }
        Ok(())
    }

    fn tail(
        &self,
        history: &History,
        segment: SegmentName,
        files: Vec<TailFile>,
        findings: &Findings,
    ) -> Result<(), Error> {
        let folder = self.repository.layout().tail_folder(segment);
        let url = format!("{}/{folder}", self.repository.store_url());
        count(&findings.objects, files.len() as u64);
        count(
            &findings.bytes,
            files.iter().map(|file| file.stored_bytes).sum(),
        );
        let surveyed = tail::survey(self.repository, history, segment, files, None);
        let Some(surveyed) = findings.judge(&url, surveyed.map_err(Error::from))? else {
            return Ok(());
        };
        if let Some(mismatch) = surveyed.unfit {
            findings.problem(url, format!("it is no WAL of the segment: {mismatch}"));
        }
        match surveyed.damage {
            Some(RunDamage::Damaged(error)) => {
                let object = error.object().unwrap_or_default().to_owned();
                findings.judge::<()>(&object, Err(error.into()))?;
            }
            Some(RunDamage::Torn(error)) => {
                findings.note(format!(
                    "{}: its writer died there",
                    crate::output::chain(&error)
                ));
            }
            None => {}
        }
        Ok(())
    }

    fn note_absent(&self, findings: &Findings, options: &Options) {
        let files = self.all_files().flat_map(|(_, files)| files.all());
        let present = files.map(|file| self.repository.url(&file.object().key));
        let folders = self.repository.layout().wal_folders();
        let folder = format!("{}/{folders}", self.repository.store_url());
        let mut present: HashSet<String> = present.collect();
        // What tells of a loss is not forgotten.
        if let Some(receipts) = &options.receipts {
            let prefix = format!("{}/", self.repository.store_url());
            let lost = lock(&self.lost);
            let is_lost = |url: &String| {
                let name = self.segment_at(&prefix, url);
                name.is_some_and(|name| lost.contains(&name))
            };
            present.extend(receipts.urls().into_iter().filter(is_lost));
        }
        note_absent(findings, options, &folder, &present);
    }

    /// What a segment's first page says of the cluster, where no backup does.
    fn cluster_of_a_segment(&self) -> Option<Cluster> {
        let segments = self
            .all_files()
            .flat_map(|(_, files)| files.segments.values());
        let system_identifier = self.repository.layout().system_identifier();
        segments.take(FIRST_PAGES).find_map(|archived| {
            let mut content = self.repository.open(&archived.object()).ok()?;
            let mut page = [0; LONG_HEADER_BYTES];
            content.read_exact(&mut page).ok()?;
            Cluster::of_first_page(&page, system_identifier)
        })
    }

    fn must_be_open(&self) -> Result<(), Error> {
        let files = self.all_files().flat_map(|(_, files)| files.all());
        let mut locked = files.filter(|file| !self.repository.may_open(&file.object()));
        match locked.next() {
            None => Ok(()),
            Some(file) => Err(self
                .repository
                .locked(&file.object().key, Locked::NoIdentity)
                .into()),
        }
    }

    fn is_wanted(&self, archived: &ArchivedFile, findings: &Findings, options: &Options) -> bool {
        let Some(receipts) = &options.receipts else {
            return true;
        };
        let url = self.repository.url(&archived.object().key);
        let (length, modified) = (archived.stored_bytes, archived.modified);
        let has_receipt = receipts
            .valid(&url, length, modified, Depth::Content)
            .is_some();
        if has_receipt {
            count(&findings.with_receipt, 1);
        }
        !has_receipt
    }

    /// Divides segments into runs without a hole, each with the segment before it on the way of recovery.
    fn runs(
        &self,
        history: &History,
        segments: &[(SegmentName, ArchivedFile)],
        size: SegmentSize,
    ) -> Vec<Followed> {
        let mut runs: Vec<Followed> = Vec::new();
        let mut last = None;
        for (name, archived) in segments {
            let Some(number) = name.number(size) else {
                // The check of its name says so.
                runs.push(Followed {
                    history: history.clone(),
                    before: Vec::new(),
                    segments: vec![(*name, archived.clone())],
                    after: Vec::new(),
                });
                continue;
            };
            let follows = last.is_some_and(|last: SegmentNo| last.next() == number);
            match runs.last_mut() {
                Some(run) if follows && run.segments.len() < RUN_SEGMENTS => {
                    run.segments.push((*name, archived.clone()));
                }
                _ => runs.push(Followed {
                    history: history.clone(),
                    before: self.before(history, number, size),
                    segments: vec![(*name, archived.clone())],
                    after: Vec::new(),
                }),
            }
            last = Some(number);
        }
        for run in &mut runs {
            run.after = self.after(run, segments, size);
        }
        runs
    }

    /// What comes after a run and is not the beginning of another, which reads what is before it.
    fn after(
        &self,
        run: &Followed,
        wanted: &[(SegmentName, ArchivedFile)],
        size: SegmentSize,
    ) -> Vec<(SegmentName, ArchivedFile)> {
        let next = |(name, _): &(SegmentName, ArchivedFile)| {
            let name = name.number(size)?.next().on(name.timeline, size);
            let archived = self.inventory.segment(name)?;
            let is_wanted = wanted.binary_search_by_key(&name, |(wanted, _)| *wanted);
            is_wanted.is_err().then(|| (name, archived.clone()))
        };
        let following = std::iter::successors(run.segments.last().and_then(next), next);
        to_a_record(self.repository, following)
    }

    fn before(
        &self,
        history: &History,
        number: SegmentNo,
        size: SegmentSize,
    ) -> Vec<(SegmentName, ArchivedFile)> {
        let numbers = (0..number.0).rev();
        let preceding = numbers.map_while(|number| {
            let name = history.segment_name(SegmentNo(number), size);
            let archived = self.inventory.segment(name)?;
            Some((name, archived.clone()))
        });
        let mut before = to_a_record(self.repository, preceding);
        before.reverse();
        before
    }
}

fn read_all(
    reader: &RunReader,
    options: &Options,
    runs: &[Followed],
    others: &[(WalFileName, ArchivedFile, History)],
) -> Result<(), Error> {
    let of_runs = runs.iter().flat_map(Followed::all);
    let total = of_runs.map(|(_, file)| file.stored_bytes).sum::<u64>()
        + others
            .iter()
            .map(|(_, file, _)| file.stored_bytes)
            .sum::<u64>();
    let progress = Progress::new(options.show, "verifying WAL", total);
    let (next_run, next_other) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let outcome = on_threads(options.threads, &progress, &|| {
        while let Some(run) = runs.get(next_run.fetch_add(1, Ordering::Relaxed)) {
            reader.run(run, &|bytes| progress.add(bytes))?;
        }
        while let Some((file, archived, history)) =
            others.get(next_other.fetch_add(1, Ordering::Relaxed))
        {
            reader.other(*file, archived, history)?;
            if !progress.add(archived.stored_bytes) {
                return Err(Error::BrokenOff);
            }
        }
        Ok(())
    });
    progress.finish();
    outcome
}

fn backups_in_words(ids: &[String]) -> String {
    match ids {
        [] => "no backup".to_owned(),
        [id] => format!("backup {id}"),
        [first, .., last] => format!("{} backups, {first} to {last}", ids.len()),
    }
}
