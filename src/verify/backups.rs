//! Verifying backups: every object, every file in it, every page, and the WAL that makes them consistent.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use jiff::Timestamp;
use walhalla_postgres::page::{Judge, PageState};
use walhalla_postgres::wal::cluster::Cluster;
use walhalla_postgres::{
    ControlFile, RelationFile, SegmentName, SegmentNo, TimelineId, WalFileName, control,
};

use super::receipts::Depth;
use super::segments::{Followed, RunReader, to_a_record};
use super::{Error, Findings, Options, Sound, Verified, count, damaged_entries, wrong_with};
use crate::archive::inventory::{Inventory, Listed, Run, WalFiles};
use crate::archive::proof::{Told, read_backup_wal};
use crate::contents::delta_file::{Header, ReadError, whole_name};
use crate::contents::relations::Relations;
use crate::contents::{self, Contents, FileError, FileHeader, Sink, Summed, Taken, check_stored};
use crate::failure::Failure as _;
use crate::pipeline::Packing;
use crate::pipeline::streams::read_full;
use crate::progress::Progress;
use crate::repository::entry::StoredPart;
use crate::repository::{ArchivedFile, BackupEntry, BackupKind, Catalog, Repository};
use crate::threads::{lock, on_threads};
use crate::wal;

/// Bytes of a file that are hashed and checked at a time: whole data pages of any size.
const CHUNK_BYTES: usize = 1 << 18;
/// Damaged blocks of one file that are told one by one.
const TOLD_BLOCKS: u64 = 16;

/// Verifies the backups of `catalog`.
pub fn verify(repository: &Repository, catalog: &Catalog, options: Options) -> Verified {
    let findings = Findings::new();
    let outcome = work(repository, catalog, &options, &findings);
    let receipts = options.receipts.map_or(Ok(()), super::Receipts::finish);
    findings.report(outcome.and(receipts.map_err(Error::from)))
}

fn work(
    repository: &Repository,
    catalog: &Catalog,
    options: &Options,
    findings: &Findings,
) -> Result<(), Error> {
    damaged_entries(repository, catalog, findings);
    let parts = catalog.backups().iter().flat_map(|backup| &backup.parts);
    let total = parts.map(|part| part.size_bytes).sum();
    let progress = Progress::new(options.show, "verifying", total);
    let wal = listings(repository, catalog.backups(), findings)?;
    for backup in catalog.backups() {
        let verification = Verification {
            repository,
            backup,
            findings,
            options,
            progress: &progress,
            stored: stored_objects(repository, backup)?,
            wal: &wal,
            is_incomplete: AtomicBool::new(false),
        };
        verification.run()?;
        count(&findings.backups, 1);
    }
    progress.finish();
    Ok(())
}

/// What is archived of the backups' timelines from their first backup on.
fn listings(
    repository: &Repository,
    backups: &[BackupEntry],
    findings: &Findings,
) -> Result<Inventory, Error> {
    let mut firsts: HashMap<TimelineId, SegmentName> = HashMap::new();
    for backup in backups {
        let size = backup.wal_segment_size;
        let first = size.segment_of(backup.start_lsn).on(backup.timeline, size);
        let known = firsts.entry(backup.timeline).or_insert(first);
        *known = first.min(*known);
    }
    let mut wal = Inventory::default();
    for (timeline, first) in firsts {
        let mut listing = repository.list_wal(timeline, Some(first), &[])?;
        for double in std::mem::take(&mut listing.doubles) {
            let object = double.object().unwrap_or_default().to_owned();
            findings.judge::<()>(&object, Err(double.into()))?;
        }
        let listed = Listed::since(first, WalFiles::from(listing));
        wal.wal.insert(timeline, listed);
    }
    Ok(wal)
}

/// Length and time of each object in the backup's folder, by its name there.
fn stored_objects(
    repository: &Repository,
    backup: &BackupEntry,
) -> Result<HashMap<String, (u64, Timestamp)>, Error> {
    let folder = repository.layout().backup_folder(&backup.id);
    let found = repository.session().list(&folder, None)?;
    let named = found.iter().filter_map(|info| {
        let name = info.key.as_str().strip_prefix(&folder)?;
        Some((name.to_owned(), (info.size_bytes, info.modified)))
    });
    Ok(named.collect())
}

struct Verification<'a> {
    repository: &'a Repository,
    backup: &'a BackupEntry,
    findings: &'a Findings,
    options: &'a Options,
    progress: &'a Progress,
    stored: HashMap<String, (u64, Timestamp)>,
    /// What is archived.
    wal: &'a Inventory,
    /// Whether a part could not be read, so that its files are not told to be missing.
    is_incomplete: AtomicBool,
}

impl Verification<'_> {
    fn run(&self) -> Result<(), Error> {
        self.extra_objects();
        let parts = self.parts_there();
        if !self.is_open()? {
            self.findings.note(format!(
                "backup {} is encrypted and no identity is set: its stored bytes alone were compared",
                self.backup.id
            ));
            self.on_each(&parts, &|part| self.stored_bytes(part))?;
            return self.wal();
        }
        let manifest = self.url(&self.backup.manifest);
        let contents = Contents::open(self.repository, self.backup);
        let contents = contents.map_err(Error::from);
        match self.findings.judge(&manifest, contents)? {
            Some(contents) => self.contents(&contents, &parts)?,
            None => self.on_each(&parts, &|part| self.stored_bytes(part))?,
        }
        self.wal()
    }

    fn folder_url(&self) -> String {
        let folder = self.repository.layout().backup_folder(&self.backup.id);
        format!("{}/{folder}", self.repository.store_url())
    }

    fn url(&self, part: &StoredPart) -> String {
        format!("{}{}", self.folder_url(), part.name)
    }

    fn is_open(&self) -> Result<bool, Error> {
        let layout = self.repository.layout();
        let manifest = layout.backup_object(&self.backup.id, &self.backup.manifest.name)?;
        Ok(self.repository.may_open(&manifest))
    }

    /// Objects in the backup's folder that are none of its own.
    fn extra_objects(&self) {
        let known: Vec<&str> = self
            .backup
            .objects()
            .map(|part| part.name.as_str())
            .chain(["backup.json"])
            .collect();
        let mut extra: Vec<&String> = self.stored.keys().collect();
        extra.retain(|name| !known.contains(&name.as_str()));
        extra.sort();
        for name in extra {
            let object = format!("{}{name}", self.folder_url());
            self.findings
                .problem(object, "backup.json does not name it".to_owned());
        }
    }

    /// The parts that are there with the length they must have; the last one first, as it holds `pg_control`.
    fn parts_there(&self) -> Vec<&StoredPart> {
        let (parts, others) = (self.backup.parts.iter().rev(), self.backup.others());
        let is_there = |part: &&StoredPart| {
            let what = match self.stored.get(&part.name) {
                Some((length, _)) if *length == part.stored_bytes => return true,
                Some((length, _)) => format!(
                    "it has {length} bytes, backup.json says {}",
                    part.stored_bytes
                ),
                None => "it is missing".to_owned(),
            };
            self.is_incomplete.store(true, Ordering::Relaxed);
            self.findings.problem(self.url(part), what);
            false
        };
        parts.chain(others).filter(is_there).collect()
    }

    fn on_each(
        &self,
        parts: &[&StoredPart],
        verify: &(impl Fn(&StoredPart) -> Result<(), Error> + Sync),
    ) -> Result<(), Error> {
        let next = AtomicUsize::new(0);
        on_threads(self.options.threads, self.progress, &|| {
            while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                verify(part)?;
            }
            Ok(())
        })
    }

    fn stored_bytes(&self, part: &StoredPart) -> Result<(), Error> {
        if self.has_receipt(part, Depth::Stored).is_some() {
            return Ok(());
        }
        let checked = check_stored(self.repository, self.backup, part);
        count(&self.findings.unopened, 1);
        self.judged(part, checked.map_err(Error::from), Depth::Stored, 0)?;
        if self.progress.add(part.size_bytes) {
            Ok(())
        } else {
            Err(Error::BrokenOff)
        }
    }

    /// What a receipt says of the part: the files that were in it.
    fn has_receipt(&self, part: &StoredPart, depth: Depth) -> Option<u64> {
        let receipts = self.options.receipts.as_ref()?;
        let (length, modified) = self.stored.get(&part.name)?;
        let receipt = receipts.valid(&self.url(part), *length, *modified, depth)?;
        // Another entry under the same name is another backup's.
        if receipt.digest != part.digest {
            return None;
        }
        count(&self.findings.with_receipt, 1);
        self.progress.add(part.size_bytes);
        Some(receipt.files)
    }

    /// Takes in how reading a part ended.
    fn judged(
        &self,
        part: &StoredPart,
        outcome: Result<(), Error>,
        depth: Depth,
        files: u64,
    ) -> Result<(), Error> {
        count(&self.findings.objects, 1);
        count(&self.findings.bytes, part.stored_bytes);
        let url = self.url(part);
        if self.findings.judge(&url, outcome)?.is_none() {
            self.is_incomplete.store(true, Ordering::Relaxed);
            return Ok(());
        }
        let Some((stored_bytes, modified)) = self.stored.get(&part.name).copied() else {
            return Ok(());
        };
        let sound = Sound {
            url: &url,
            stored_bytes,
            modified,
            depth,
            files,
        };
        let receipts = self.options.receipts.as_ref();
        self.findings.sound(receipts, &sound, part.digest)
    }

    fn contents(&self, contents: &Contents, parts: &[&StoredPart]) -> Result<(), Error> {
        count(&self.findings.objects, 1);
        count(&self.findings.bytes, self.backup.manifest.stored_bytes);
        let (parts, others): (Vec<&StoredPart>, Vec<_>) = parts
            .iter()
            .copied()
            .partition(|part| self.backup.others().all(|other| other.name != part.name));
        let (repository, backup) = (self.repository, self.backup);
        self.list(backup.index.as_ref(), &others, || {
            contents::read_index(repository, backup).map(drop)
        })?;
        self.list(backup.relations.as_ref(), &others, || {
            Relations::read(repository, backup).map(drop)
        })?;
        let found = self.parts(contents, &parts, Reading::WithoutReceipt)?;
        if found == contents.files().list().len() as u64
            || self.is_incomplete.load(Ordering::Relaxed)
        {
            return Ok(());
        }
        // Receipts tell how many files there were, not which.
        let again = Contents::open(self.repository, self.backup)?;
        self.parts(&again, &parts, Reading::Always)?;
        if let Some(missing) = again.missing() {
            self.findings
                .judge::<()>(&self.folder_url(), Err(missing.into()))?;
        }
        Ok(())
    }

    /// A list of the backup's that is read by `read`, if it is among `objects`.
    fn list(
        &self,
        list: Option<&StoredPart>,
        objects: &[&StoredPart],
        read: impl FnOnce() -> Result<(), contents::Error>,
    ) -> Result<(), Error> {
        let is_there = |list: &&StoredPart| objects.iter().any(|object| object.name == list.name);
        let Some(list) = list.filter(is_there) else {
            return Ok(());
        };
        count(&self.findings.objects, 1);
        count(&self.findings.bytes, list.stored_bytes);
        let read = read().map_err(Error::from);
        self.findings.judge(&self.url(list), read).map(drop)
    }

    /// Reads the parts; returns how many files were in them, by the receipts of those that were not read.
    fn parts(
        &self,
        contents: &Contents,
        parts: &[&StoredPart],
        reading: Reading,
    ) -> Result<u64, Error> {
        let (files, control) = (AtomicU64::new(0), Mutex::new(None));
        let Some((last, others)) = parts.split_first() else {
            return Ok(0);
        };
        // Always read: it is small, and tells how long pages are and whether they have checksums.
        let of_last = self.part(contents, last, None, &control, Reading::Always)?;
        files.fetch_add(of_last, Ordering::Relaxed);
        let control = control.into_inner().unwrap_or_default();
        let unused = Mutex::new(None);
        self.on_each(others, &|part| {
            let of_part = self.part(contents, part, control.as_ref(), &unused, reading)?;
            files.fetch_add(of_part, Ordering::Relaxed);
            Ok(())
        })?;
        Ok(files.into_inner())
    }

    /// Reads a part; returns the number of its files that are the manifest's.
    fn part(
        &self,
        contents: &Contents,
        part: &StoredPart,
        control: Option<&ControlFile>,
        found_control: &Mutex<Option<ControlFile>>,
        reading: Reading,
    ) -> Result<u64, Error> {
        if reading == Reading::WithoutReceipt
            && let Some(files) = self.has_receipt(part, Depth::Content)
        {
            return Ok(files);
        }
        let pages = Pages {
            verification: self,
            url: self.url(part),
            control,
            found_control,
            files: AtomicU64::new(0),
            found: Mutex::default(),
        };
        let outcome = contents.part(part, &pages);
        let files = pages.files.into_inner();
        count(&self.findings.files, files);
        let found = pages.found.into_inner().unwrap_or_default();
        if outcome.is_err() || found.is_empty() {
            // What else was found in bytes that are not the stored ones says nothing of the backup.
            self.judged(part, outcome, Depth::Content, files)?;
        } else {
            // Without a receipt it is said again by the next run.
            count(&self.findings.objects, 1);
            count(&self.findings.bytes, part.stored_bytes);
            for what in found {
                self.findings.problem(self.url(part), what);
            }
        }
        Ok(files)
    }

    /// The WAL from the backup's start to its end.
    fn wal(&self) -> Result<(), Error> {
        let backup = self.backup;
        let size = backup.wal_segment_size;
        let first = size.segment_of(backup.start_lsn);
        let own = Run::through(first, size.segment_before(backup.stop_lsn));
        let history = backup.timeline_history();
        let archived = self.wal.runs_along(&history, size, first);
        let holes = archived.holes(own);
        let names = { own.numbers() }.map(|number| number.on(backup.timeline, size));
        let segments: Vec<_> = names
            .filter_map(|name| Some((name, self.wal.segment(name)?)))
            .collect();
        count(&self.findings.segments, segments.len() as u64);
        for hole in &holes {
            self.missing_wal(*hole);
        }
        let there = segments.len();
        let mut open = Vec::new();
        for (name, archived) in segments {
            if self.repository.may_open(&archived.object()) {
                open.push((name, archived.clone()));
            } else {
                count(&self.findings.unopened, 1);
                let url = self.repository.url(&archived.object().key);
                let header = self.repository.check_header(&archived.object());
                self.findings.judge(&url, header.map_err(Error::from))?;
            }
        }
        self.read_wal(&open)?;
        if holes.is_empty() && open.len() == there {
            self.own_wal(&open)
        } else {
            Ok(())
        }
    }

    /// Whether the WAL is that of the server that was backed up: a record in it names the backup.
    fn own_wal(&self, segments: &[(SegmentName, ArchivedFile)]) -> Result<(), Error> {
        let (repository, history) = (self.repository, self.backup.timeline_history());
        let shown = read_backup_wal(
            Told::by(self.backup),
            segments,
            |(name, archived), last, show| {
                wal::segment::read(repository, *name, archived, &history, last, show)
            },
        );
        match shown {
            Ok(shown) if shown.is_own => return Ok(()),
            Ok(_) => {}
            // Reading it before has said so.
            Err(error) if error.is_of_the_object() => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let Some((_, last)) = segments.last() else {
            return Ok(());
        };
        let id = &self.backup.id;
        let none = match segments.len() {
            1 => "no record in it names".to_owned(),
            count => format!(
                "no record in it and the {} segments before it names",
                count - 1
            ),
        };
        let what = format!(
            "{none} backup {id}, which cannot be restored with them: another server archived them under the same names"
        );
        self.findings
            .problem(self.repository.url(&last.object().key), what);
        Ok(())
    }

    fn missing_wal(&self, hole: Run) {
        let (first, last) = (hole.first, hole.last());
        let (timeline, size) = (self.backup.timeline, self.backup.wal_segment_size);
        let name = WalFileName::Segment(first.on(timeline, size));
        let object = self.repository.layout().wal(name, Packing::NONE);
        let range = if first == last {
            "it is missing".to_owned()
        } else {
            format!(
                "it and those after it to {} are missing",
                last.on(timeline, size)
            )
        };
        let id = &self.backup.id;
        let what = format!("{range}, and backup {id} is not consistent without");
        self.findings
            .problem(self.repository.url(&object.key), what);
    }

    /// Reads segments that follow one another, a run for each thread. What is before the first is not read, so nothing
    /// is noted of them; what `wal-verify` noted is believed.
    fn read_wal(&self, segments: &[(SegmentName, ArchivedFile)]) -> Result<(), Error> {
        let is_wanted = |(_, archived): &&(SegmentName, ArchivedFile)| {
            let url = self.repository.url(&archived.object().key);
            let (length, modified) = (archived.stored_bytes, archived.modified);
            let receipts = self.options.receipts.as_ref();
            let receipt = receipts.and_then(|it| it.valid(&url, length, modified, Depth::Content));
            count(&self.findings.with_receipt, u64::from(receipt.is_some()));
            receipt.is_none()
        };
        let wanted: Vec<_> = segments.iter().filter(is_wanted).cloned().collect();
        let reader = RunReader {
            repository: self.repository,
            cluster: Some(Cluster::from(self.backup)),
            findings: self.findings,
            receipts: None,
        };
        let length = wanted.len().div_ceil(self.options.threads.max(1)).max(1);
        let size = self.backup.wal_segment_size;
        let follows = |a: &(SegmentName, _), b: &(SegmentName, _)| {
            a.0.number(size).map(SegmentNo::next) == b.0.number(size)
        };
        let whole = wanted.chunk_by(follows).flat_map(|run| run.chunks(length));
        let runs: Vec<Followed> = whole
            .map(|run| Followed {
                history: self.backup.timeline_history(),
                before: self.before(run.first()),
                segments: run.to_vec(),
                after: Vec::new(),
            })
            .collect();
        let next = AtomicUsize::new(0);
        on_threads(self.options.threads, self.progress, &|| {
            while let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                // They are not in the total: only the stored length is known.
                reader.run(run, &|_| self.progress.add(0))?;
            }
            Ok(())
        })
    }

    fn before(
        &self,
        first: Option<&(SegmentName, ArchivedFile)>,
    ) -> Vec<(SegmentName, ArchivedFile)> {
        let size = self.backup.wal_segment_size;
        let Some((first, _)) = first else {
            return Vec::new();
        };
        let numbers = first.number(size).map_or(0..0, |number| 0..number.0).rev();
        let preceding = numbers.map_while(|number| {
            let name = SegmentNo(number).on(first.timeline, size);
            Some((name, self.wal.segment(name)?.clone()))
        });
        let mut before = to_a_record(self.repository, preceding);
        before.reverse();
        before
    }
}

/// Whether a receipt makes reading unnecessary.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    Always,
    WithoutReceipt,
}

/// Looks at a part's files without keeping them.
struct Pages<'a> {
    verification: &'a Verification<'a>,
    url: String,
    control: Option<&'a ControlFile>,
    found_control: &'a Mutex<Option<ControlFile>>,
    files: AtomicU64,
    /// What is wrong with its files. It is told once the part is known to be what was stored.
    found: Mutex<Vec<String>>,
}

impl Pages<'_> {
    fn say(&self, what: String) {
        lock(&self.found).push(what);
    }

    /// Checks the pages in `chunk`, blocks `blocks` of the file at `path`; returns how many are damaged.
    fn pages(
        &self,
        path: &Path,
        control: &ControlFile,
        chunk: &[u8],
        blocks: impl Iterator<Item = u32>,
        in_file: u32,
    ) -> u64 {
        let page_bytes = usize::try_from(control.block_size_bytes)
            .unwrap_or(8192)
            .max(1);
        let mut wrong = 0;
        for (block, page) in blocks.zip(chunk.chunks_exact(page_bytes)) {
            count(&self.verification.findings.pages, 1);
            let number = in_file.wrapping_add(block);
            if let Some(what) = self.damage(control, page, number) {
                wrong += 1;
                self.wrong_page(path, block, &what);
            }
        }
        wrong
    }

    /// What is wrong with a page, block `number` of its relation fork.
    fn damage(&self, control: &ControlFile, page: &[u8], number: u32) -> Option<String> {
        let backup = self.verification.backup;
        let judge = Judge {
            begin: backup.start_lsn,
            checksums: control.data_checksums,
        };
        match judge.state(page, number) {
            PageState::Changed { lsn, .. } if lsn > backup.stop_lsn => Some(format!(
                "has the LSN {lsn}, and the backup's WAL ends at {}",
                backup.stop_lsn
            )),
            PageState::Sound | PageState::Changed { .. } => None,
            PageState::Damaged => Some("has a wrong checksum or header".to_owned()),
        }
    }

    /// The blocks that a delta's file holds of a relation's file.
    fn blocks(&self, path: &Path, content: &mut Summed) -> Result<Vec<u32>, FileError<Error>> {
        let control = self.control;
        let block_size = control.map_or(8192, |control| control.block_size_bytes);
        let most = control.map_or(u32::MAX, |control| control.blocks_per_file);
        match Header::read(content, block_size, most) {
            Ok(header) => Ok(header.blocks),
            Err(ReadError::Read(source)) => Err(FileError::Read(source)),
            Err(ReadError::Malformed(malformed)) => {
                self.say(format!("the file {} in it: {malformed}", path.display()));
                Ok(Vec::new())
            }
        }
    }

    fn wrong_page(&self, path: &Path, block: u32, what: &str) {
        let name = path.display().to_string();
        let known = &self.verification.backup.corrupt_blocks;
        let was_known = known
            .iter()
            .any(|known| known.file == name && known.block == block);
        let since = if was_known {
            ", as it was when the backup was taken"
        } else {
            ""
        };
        self.say(format!(
            "block {block} of the file {name} in it is damaged{since}: it {what}"
        ));
    }

    fn keep_control(&self, bytes: &[u8]) {
        match ControlFile::parse(bytes) {
            Ok(control) => {
                let (found, expected) = (
                    control.system_identifier,
                    self.verification.backup.system_identifier,
                );
                if found != expected {
                    let path = control::PATH;
                    self.say(format!(
                        "the file {path} in it is of cluster {found}, the backup is of cluster {expected}"
                    ));
                }
                *lock(self.found_control) = Some(control);
            }
            Err(damage) => self.say(format!("the file {} in it: {damage}", control::PATH)),
        }
    }
}

impl Sink for Pages<'_> {
    type Error = Error;

    fn directory(&self, _: &Path, _: FileHeader) -> Result<(), Error> {
        Ok(())
    }

    fn file(
        &self,
        path: &Path,
        _: FileHeader,
        content: &mut Summed,
    ) -> Result<Taken, FileError<Error>> {
        let control = self.control;
        let changed = match self.verification.backup.kind {
            BackupKind::Delta => whole_name(path),
            BackupKind::Full => None,
        };
        let (path, blocks) = match changed {
            Some(whole) => (Cow::from(whole), self.blocks(path, content)?),
            None => (Cow::from(path), Vec::new()),
        };
        let is_delta = matches!(path, Cow::Owned(_));
        let relation = RelationFile::of_path(&path).map(|file| file.segment);
        let checked = control.zip(relation);
        let is_control = *path == *Path::new(control::PATH);
        let (mut pages, mut wrong) = (0_u32, 0);
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let chunk = read_full(content, &mut buffer).map_err(FileError::Read)?;
            if chunk.is_empty() {
                break;
            }
            if let Some((control, segment)) = checked.filter(|_| wrong < TOLD_BLOCKS) {
                let in_file = segment.wrapping_mul(control.blocks_per_file);
                let first = usize::try_from(pages).unwrap_or(usize::MAX);
                wrong += if is_delta {
                    let held = blocks.iter().skip(first).copied();
                    self.pages(&path, control, chunk, held, in_file)
                } else {
                    self.pages(&path, control, chunk, pages.., in_file)
                };
                let count = chunk.len() as u64 / u64::from(control.block_size_bytes.max(1));
                pages = pages.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
            }
            if is_control && pages == 0 {
                self.keep_control(chunk);
            }
            if !self.verification.progress.add(chunk.len() as u64) {
                return Err(Error::BrokenOff.into());
            }
        }
        self.files.fetch_add(1, Ordering::Relaxed);
        Ok(Taken::Content)
    }

    fn problem(&self, error: contents::Error) -> Result<(), Error> {
        self.say(wrong_with(&self.url, &error));
        Ok(())
    }
}

impl From<&BackupEntry> for Cluster {
    fn from(backup: &BackupEntry) -> Self {
        Self {
            system_identifier: backup.system_identifier,
            version: backup.postgres_version,
            segment_size: backup.wal_segment_size,
            page_size_bytes: backup.wal_block_size,
        }
    }
}
