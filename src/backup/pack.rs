//! Packing files into a tar part while their pages are checked and their content is hashed.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use walhalla_postgres::page::{Judge, PageState};
use walhalla_postgres::{ControlFile, Fork, Lsn};

use super::Error;
use super::extent::{Extent, Item, Since, count, is_older, is_worth_it, joined};
use super::newest::Newest;
use super::reading::Reading;
use crate::contents::checksum::FileSums;
use crate::contents::delta_file::{Header, delta_name};
use crate::contents::tar_part::{PartWriter, failed};
use crate::pipeline::{self, ObjectWriter};
use crate::repository::entry::CorruptBlock;
use crate::server::data_directory::Entry;

/// How often a page that does not look whole is read again, as a write may be under way.
const REREADS: u32 = 5;
/// Pause before each of those.
const REREAD_PAUSE: Duration = Duration::from_millis(10);
/// Pages that are read at a time when their LSNs are looked at.
const SCANNED_PAGES: usize = 64;
/// Such pages in one file after which pages are read again without a pause.
const PATIENCE: usize = 16;

/// What the checks need to know of the cluster and the backup.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageRules {
    pub(super) block_size_bytes: usize,
    pub(super) blocks_per_file: u32,
    pub(super) judge: Judge,
}

/// Packs files of a data directory into a part.
pub(super) struct Packer {
    /// The part.
    pub(super) part: PartWriter,
    rules: PageRules,
    /// Pages with an older LSN are the parent's.
    since: Since,
    /// Blocks that are damaged.
    pub(super) corrupt_blocks: Vec<CorruptBlock>,
    /// The pages that were changed last, which may turn out to be damaged.
    pub(super) newest: Newest,
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packed {
    /// It is in the part.
    Stored,
    /// It vanished, or is not wanted any more.
    Gone,
}

impl PageRules {
    /// Rules for a backup that began at `begin`.
    pub(super) fn new(control: &ControlFile, begin: Lsn) -> Self {
        Self {
            block_size_bytes: usize::try_from(control.block_size_bytes).unwrap_or(8192),
            blocks_per_file: control.blocks_per_file,
            judge: Judge {
                begin,
                checksums: control.data_checksums,
            },
        }
    }
}

impl Packer {
    /// A packer for `part`; of files of which the newer pages are stored, those from `since` on are.
    pub(super) fn new(part: PartWriter, rules: PageRules, since: Since) -> Self {
        Self {
            part,
            rules,
            since,
            corrupt_blocks: Vec::new(),
            newest: Newest::default(),
        }
    }

    /// Adds a file of the data directory, or what of it is to be stored; one that vanished is left out.
    ///
    /// `reading` is told of bytes as they are read and answers whether to go on.
    pub(super) fn item(
        &mut self,
        pgdata: &Path,
        item: &Item,
        reading: Reading,
    ) -> Result<Packed, Error> {
        let path = pgdata.join(&item.entry.path);
        // What did not change is told by its length alone.
        if let Extent::Blocks { runs, length } = &item.extent
            && runs.is_empty()
        {
            let entry = &item.entry;
            self.delta(&path, None, entry, runs, *length, reading)?;
            return Ok(Packed::Stored);
        }
        // Of an unlogged relation the init fork alone is stored, and recovery fails where it finds the main fork too.
        if is_unlogged_by_now(&path, &item.entry) {
            return Ok(Packed::Gone);
        }
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Packed::Gone),
            Err(source) => return Err(Error::Read { path, source }),
        };
        match &item.extent {
            Extent::Whole => self.file(&path, &file, &item.entry, reading),
            Extent::Blocks { runs, length } => {
                self.delta(&path, Some(&file), &item.entry, runs, *length, reading)
            }
            Extent::Newer { runs, length } => {
                let newer = self.newer(&path, &file, *length, reading)?;
                let again = reading.again();
                let all = runs.iter().chain(&newer).cloned();
                let runs = joined(all.collect(), *length);
                if is_worth_it(&runs, *length) {
                    self.delta(&path, Some(&file), &item.entry, &runs, *length, again)
                } else {
                    self.file(&path, &file, &item.entry, again)
                }
            }
        }?;
        Ok(Packed::Stored)
    }

    /// Adds a whole file with as many bytes as it has now.
    fn file(
        &mut self,
        path: &Path,
        file: &File,
        entry: &Entry,
        reading: Reading,
    ) -> Result<(), Error> {
        let metadata = file.metadata().map_err(unreadable(path))?;
        let size_bytes = metadata.len();
        self.part
            .begin(&entry.path, size_bytes, entry.mode, metadata.mtime())?;
        let mut content = Content::new(path, FileCheck::new(file, entry, self.rules), reading);
        content.range(self.part.object(), 0..size_bytes)?;
        let Content { check, sums, .. } = content;
        self.checked(check.corrupt_blocks, check.newest);
        self.part.end(&sums)?;
        self.part.restored_bytes += size_bytes;
        Ok(())
    }

    /// Adds blocks of a file as an `INCREMENTAL.*` file; `file` is not needed for none.
    fn delta(
        &mut self,
        path: &Path,
        file: Option<&File>,
        entry: &Entry,
        runs: &[Range<u32>],
        length: u32,
        reading: Reading,
    ) -> Result<(), Error> {
        let block_size = self.rules.block_size_bytes as u64;
        let header = Header {
            truncation_block_length: length,
            blocks: runs.iter().cloned().flatten().collect(),
        };
        let header = header.to_bytes(u32::try_from(block_size).unwrap_or(8192));
        let name = delta_name(&entry.path);
        let size_bytes = header.len() as u64 + count(runs) * block_size;
        self.part
            .begin(&name, size_bytes, entry.mode, entry.modified)?;
        self.part.object().append(&header)?;
        let mut sums = FileSums::default();
        sums.update(&header);
        if let Some(file) = file {
            let mut content = Content::new(path, FileCheck::new(file, entry, self.rules), reading);
            content.sums = sums;
            for run in runs {
                let bytes = u64::from(run.start) * block_size..u64::from(run.end) * block_size;
                content.range(self.part.object(), bytes)?;
            }
            let check = content.check;
            sums = content.sums;
            self.checked(check.corrupt_blocks, check.newest);
        }
        self.part.end(&sums)?;
        self.part.restored_bytes += u64::from(length) * block_size;
        Ok(())
    }

    /// Takes in what was found in a file.
    fn checked(&mut self, mut corrupt_blocks: Vec<CorruptBlock>, newest: Newest) {
        self.corrupt_blocks.append(&mut corrupt_blocks);
        self.newest.append(newest);
    }

    /// Blocks of a file that its pages do not show to be older than the parent's start.
    fn newer(
        &self,
        path: &Path,
        file: &File,
        length: u32,
        reading: Reading,
    ) -> Result<Vec<Range<u32>>, Error> {
        let page = self.rules.block_size_bytes;
        let mut buffer = vec![0; page * SCANNED_PAGES];
        let (mut newer, mut block) = (Vec::new(), 0);
        while block < length {
            let at = u64::from(block) * page as u64;
            let read = read_full_at(file, &mut buffer, at).map_err(unreadable(path))?;
            let pages = buffer.get(..read / page * page).unwrap_or_default();
            if pages.is_empty() {
                // Cut meanwhile, which WAL replay will see to.
                break;
            }
            for page in pages.chunks(page) {
                if !is_older(page, self.since) {
                    newer.push(block..block.saturating_add(1));
                }
                block = block.saturating_add(1);
            }
            go_on(path, reading, pages.len() as u64)?;
        }
        Ok(newer)
    }
}

/// A file's content on its way into a part.
struct Content<'a> {
    path: &'a Path,
    check: FileCheck<'a>,
    sums: FileSums,
    reading: Reading<'a>,
}

impl<'a> Content<'a> {
    fn new(path: &'a Path, check: FileCheck<'a>, reading: Reading<'a>) -> Self {
        Self {
            path,
            check,
            sums: FileSums::default(),
            reading,
        }
    }

    /// Reads `bytes` of the file straight into the object's next block.
    fn range(&mut self, object: &mut ObjectWriter, bytes: Range<u64>) -> Result<(), Error> {
        let page = self.check.rules.block_size_bytes;
        let mut at = bytes.start;
        while at < bytes.end {
            let failed = |error| failed(self.path, error);
            object.reserve(page).map_err(failed)?;
            let room = object.room().map_err(failed)?;
            let whole_pages = room.len() / page * page;
            let count = whole_pages.min(usize::try_from(bytes.end - at).unwrap_or(usize::MAX));
            let chunk = room.get_mut(..count).unwrap_or_default();
            self.check.read(chunk, at).map_err(unreadable(self.path))?;
            self.sums.update(chunk);
            object.fill(count);
            at += count as u64;
            go_on(self.path, self.reading, count as u64)?;
        }
        Ok(())
    }
}

fn go_on(path: &Path, reading: Reading, bytes: u64) -> Result<(), Error> {
    if reading.goes_on_after(bytes) {
        return Ok(());
    }
    Err(pipeline::Error::BrokenOff {
        object: path.display().to_string(),
    }
    .into())
}

/// Whether the init fork of the file's relation came into being after the folder was listed
/// (reinit.c, `ResetUnloggedRelationsInDbspaceDir`).
fn is_unlogged_by_now(path: &Path, entry: &Entry) -> bool {
    let relation = entry.relation.filter(|file| file.fork != Fork::Init);
    relation.is_some_and(|file| {
        let init_fork = format!("{}_{}", file.files.number, Fork::Init.name());
        path.with_file_name(init_fork).exists()
    })
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Read { path, source }
}

/// Fills `buffer` from `at`; returns how much of it, less only at the end of the file.
fn read_full_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    loop {
        let rest = buffer.get_mut(filled..).unwrap_or_default();
        match file.read_at(rest, at + filled as u64) {
            Ok(0) => return Ok(filled),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads a file's pages and checks them (basebackup.c, `sendFile` and `verify_page_checksum`).
struct FileCheck<'a> {
    file: &'a File,
    entry: &'a Entry,
    rules: PageRules,
    first_block: Option<u32>,
    /// Pages that did not look whole however often they were read.
    doubtful: usize,
    corrupt_blocks: Vec<CorruptBlock>,
    newest: Newest,
}

impl<'a> FileCheck<'a> {
    fn new(file: &'a File, entry: &'a Entry, rules: PageRules) -> Self {
        let relation = entry.relation;
        let first_block = relation.map(|file| file.segment.wrapping_mul(rules.blocks_per_file));
        Self {
            file,
            entry,
            rules,
            first_block,
            doubtful: 0,
            corrupt_blocks: Vec::new(),
            newest: Newest::default(),
        }
    }

    /// Fills `chunk` from `at`; a file that became shorter goes on with zeros, as WAL replay will see to it.
    fn read(&mut self, chunk: &mut [u8], at: u64) -> io::Result<()> {
        let count = read_full_at(self.file, chunk, at)?;
        chunk.get_mut(count..).unwrap_or_default().fill(0);
        let Some(first_block) = self.first_block else {
            return Ok(());
        };
        let page = self.rules.block_size_bytes;
        let begin = u32::try_from(at / page as u64).unwrap_or(u32::MAX);
        for (block, page) in (begin..).zip(
            chunk
                .get_mut(..count / page * page)
                .unwrap_or_default()
                .chunks_mut(page),
        ) {
            self.page(page, block, first_block)?;
        }
        Ok(())
    }

    fn page(&mut self, page: &mut [u8], block: u32, first_block: u32) -> io::Result<()> {
        let number = first_block.wrapping_add(block);
        let mut state = self.rules.judge.state(page, number);
        for _ in 0..REREADS {
            if is_whole(state) {
                break;
            }
            if self.doubtful < PATIENCE {
                std::thread::sleep(REREAD_PAUSE);
            }
            match self
                .file
                .read_exact_at(page, u64::from(block) * page.len() as u64)
            {
                // Truncated meanwhile: WAL replay truncates it too.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                result => result?,
            }
            state = self.rules.judge.state(page, number);
        }
        self.doubtful += usize::from(!is_whole(state));
        match state {
            PageState::Sound => {}
            PageState::Changed { lsn, .. } => self.newest.note(lsn, &self.entry.path, block),
            PageState::Damaged => self.corrupt_blocks.push(CorruptBlock {
                file: self.entry.path.display().to_string(),
                block,
            }),
        }
        Ok(())
    }
}

/// Whether reading a page again would tell nothing new.
fn is_whole(state: PageState) -> bool {
    match state {
        PageState::Sound | PageState::Changed { fits: true, .. } => true,
        PageState::Changed { fits: false, .. } | PageState::Damaged => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhalla_postgres::RelationFile;

    #[test]
    fn forks_of_a_relation_whose_init_fork_came_later_are_known() {
        let pgdata = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(pgdata.path().join("base/5")).unwrap();
        let is_unlogged = |name: &str| {
            let entry = Entry {
                path: Path::new("base/5").join(name),
                size_bytes: 0,
                mode: 0o600,
                modified: 0,
                relation: RelationFile::of_path(&Path::new("base/5").join(name)),
            };
            is_unlogged_by_now(&pgdata.path().join(&entry.path), &entry)
        };
        let forks = ["16384", "16384.1", "16384_fsm", "16384_vm"];
        assert!(!forks.iter().any(|name| is_unlogged(name)));
        std::fs::write(pgdata.path().join("base/5/16384_init"), "").unwrap();
        assert!(forks.iter().all(|name| is_unlogged(name)));
        assert!(
            !["16384_init", "1638", "PG_VERSION"]
                .iter()
                .any(|name| is_unlogged(name))
        );
    }
}
