//! Packing files into a tar part while their pages are checked and their content is hashed.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header as TarHeader};

use super::Error;
use super::delta_file::{Header, delta_name};
use super::extent::{Extent, Item, count, is_older, is_worth_it, joined};
use super::index::FilePlace;
use super::manifest::FileFacts;
use crate::pipeline::{self, ObjectWriter, StoredObject};
use crate::postgres::data_directory::Entry;
use crate::postgres::page::{self, PageState};
use crate::postgres::{ControlFile, Lsn};
use crate::repository::catalog::CorruptBlock;

/// tar's unit (POSIX ustar).
const TAR_BLOCK_BYTES: u64 = 512;
/// How often a page whose checksum does not fit is read again, as a write may be under way.
const REREADS: u32 = 5;
/// Pause before each of those.
const REREAD_PAUSE: Duration = Duration::from_millis(10);
/// Pages that are read at a time when their LSNs are looked at.
const SCANNED_PAGES: usize = 64;
/// Mismatches in one file after which pages are read again without a pause.
const PATIENCE: usize = 16;

/// What the checks need to know of the cluster and the backup.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageRules {
    block_size_bytes: usize,
    blocks_per_file: u32,
    checksums: bool,
    begin: Lsn,
}

/// Who owns the data directory, and so everything in a part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    user: u32,
    group: u32,
}

/// A tar part on its way to the store.
pub(super) struct PartWriter {
    tar: Builder<ObjectWriter>,
    rules: PageRules,
    owner: Owner,
    /// Each file that was packed.
    pub(super) files: Vec<(PathBuf, FileFacts)>,
    /// Where each of them is in the part.
    pub(super) places: Vec<FilePlace>,
    /// Blocks whose checksum is wrong.
    pub(super) corrupt_blocks: Vec<CorruptBlock>,
    /// Length of the files as they will be restored.
    pub(super) restored_bytes: u64,
    /// Pages with an older LSN are the parent's.
    since: Lsn,
}

impl PageRules {
    /// Rules for a backup that began at `begin`.
    pub(super) fn new(control: &ControlFile, begin: Lsn) -> Self {
        Self {
            block_size_bytes: usize::try_from(control.block_size_bytes).unwrap_or(8192),
            blocks_per_file: control.blocks_per_file,
            checksums: control.data_checksums,
            begin,
        }
    }
}

impl Owner {
    /// The owner of `pgdata`.
    pub(super) fn of(pgdata: &Path) -> Result<Self, Error> {
        let metadata = std::fs::metadata(pgdata).map_err(|source| Error::Read {
            path: pgdata.to_owned(),
            source,
        })?;
        Ok(Self {
            user: metadata.uid(),
            group: metadata.gid(),
        })
    }

    fn header(self, kind: EntryType, size_bytes: u64, mode: u32, modified: i64) -> TarHeader {
        let mut header = TarHeader::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size_bytes);
        header.set_mode(mode);
        header.set_mtime(u64::try_from(modified).unwrap_or(0));
        header.set_uid(u64::from(self.user));
        header.set_gid(u64::from(self.group));
        header
    }
}

impl PartWriter {
    /// A part; of files of which the newer pages are stored, those from `since` on are.
    pub(super) fn new(object: ObjectWriter, rules: PageRules, owner: Owner, since: Lsn) -> Self {
        Self {
            tar: Builder::new(object),
            rules,
            owner,
            files: Vec::new(),
            places: Vec::new(),
            corrupt_blocks: Vec::new(),
            restored_bytes: 0,
            since,
        }
    }

    /// Adds a directory, without its content.
    pub(super) fn directory(&mut self, entry: &Entry) -> Result<(), Error> {
        let mut header = self
            .owner
            .header(EntryType::Directory, 0, entry.mode, entry.modified);
        self.tar
            .append_data(&mut header, &entry.path, io::empty())
            .map_err(|error| failed(&entry.path, error))
    }

    /// Adds a file of the data directory, or what of it is to be stored; one that vanished is left out.
    ///
    /// `progress` is told of bytes as they are read and answers whether to go on.
    pub(super) fn item(
        &mut self,
        pgdata: &Path,
        item: &Item,
        progress: &dyn Fn(u64) -> bool,
    ) -> Result<(), Error> {
        let path = pgdata.join(&item.entry.path);
        // What did not change is told by its length alone.
        if let Extent::Blocks { runs, length } = &item.extent
            && runs.is_empty()
        {
            let entry = &item.entry;
            return self.delta(&path, None, entry, runs, *length, progress);
        }
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(Error::Read { path, source }),
        };
        match &item.extent {
            Extent::Whole => self.file(&path, &file, &item.entry, progress),
            Extent::Blocks { runs, length } => {
                self.delta(&path, Some(&file), &item.entry, runs, *length, progress)
            }
            Extent::Newer { runs, length } => {
                let newer = self.newer(&path, &file, *length, progress)?;
                let again = |_| progress(0);
                let all = runs.iter().chain(&newer).cloned();
                let runs = joined(all.collect(), *length);
                if is_worth_it(&runs, *length) {
                    self.delta(&path, Some(&file), &item.entry, &runs, *length, &again)
                } else {
                    self.file(&path, &file, &item.entry, &again)
                }
            }
        }
    }

    /// Adds a whole file with as many bytes as it has now.
    fn file(
        &mut self,
        path: &Path,
        file: &File,
        entry: &Entry,
        progress: &dyn Fn(u64) -> bool,
    ) -> Result<(), Error> {
        let metadata = file.metadata().map_err(reading(path))?;
        let size_bytes = metadata.len();
        self.begin(&entry.path, size_bytes, entry.mode, metadata.mtime())?;
        let mut content = Content::new(path, FileCheck::new(file, entry, self.rules), progress);
        content.range(self.tar.get_mut(), 0..size_bytes)?;
        let facts = FileFacts {
            size_bytes,
            modified: metadata.mtime(),
            sha256: content.hash.finalize().into(),
        };
        self.corrupt_blocks
            .append(&mut content.check.corrupt_blocks);
        self.end(entry.path.clone(), facts)?;
        self.restored_bytes += size_bytes;
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
        progress: &dyn Fn(u64) -> bool,
    ) -> Result<(), Error> {
        let block_size = self.rules.block_size_bytes as u64;
        let header = Header {
            truncation_block_length: length,
            blocks: runs.iter().cloned().flatten().collect(),
        };
        let header = header.to_bytes(u32::try_from(block_size).unwrap_or(8192));
        let name = delta_name(&entry.path);
        let size_bytes = header.len() as u64 + count(runs) * block_size;
        self.begin(&name, size_bytes, entry.mode, entry.modified)?;
        self.tar
            .get_mut()
            .append(&header)
            .map_err(Error::Pipeline)?;
        let mut hash = Sha256::new_with_prefix(&header);
        if let Some(file) = file {
            let mut content = Content::new(path, FileCheck::new(file, entry, self.rules), progress);
            content.hash = hash;
            for run in runs {
                let bytes = u64::from(run.start) * block_size..u64::from(run.end) * block_size;
                content.range(self.tar.get_mut(), bytes)?;
            }
            hash = content.hash;
            self.corrupt_blocks
                .append(&mut content.check.corrupt_blocks);
        }
        let facts = FileFacts {
            size_bytes,
            modified: entry.modified,
            sha256: hash.finalize().into(),
        };
        self.end(name, facts)?;
        self.restored_bytes += u64::from(length) * block_size;
        Ok(())
    }

    /// Blocks of a file that its pages do not show to be older than the parent's start.
    fn newer(
        &self,
        path: &Path,
        file: &File,
        length: u32,
        progress: &dyn Fn(u64) -> bool,
    ) -> Result<Vec<Range<u32>>, Error> {
        let page = self.rules.block_size_bytes;
        let mut buffer = vec![0; page * SCANNED_PAGES];
        let (mut newer, mut block) = (Vec::new(), 0);
        while block < length {
            let at = u64::from(block) * page as u64;
            let read = read_full_at(file, &mut buffer, at).map_err(reading(path))?;
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
            go_on(path, progress, pages.len() as u64)?;
        }
        Ok(newer)
    }

    fn begin(
        &mut self,
        path: &Path,
        size_bytes: u64,
        mode: u32,
        modified: i64,
    ) -> Result<(), Error> {
        let mut header = self
            .owner
            .header(EntryType::Regular, size_bytes, mode, modified);
        self.tar
            .append_data(&mut header, path, io::empty())
            .map_err(|error| failed(path, error))?;
        self.place(path, size_bytes, mode, modified);
        Ok(())
    }

    /// Notes that a file's content begins here: its header was written.
    fn place(&mut self, path: &Path, size_bytes: u64, mode: u32, modified: i64) {
        self.places.push(FilePlace {
            path: path.to_owned(),
            offset: self.tar.get_ref().position(),
            size_bytes,
            mode,
            modified,
        });
    }

    fn end(&mut self, path: PathBuf, facts: FileFacts) -> Result<(), Error> {
        self.pad(facts.size_bytes)
            .map_err(|error| failed(&path, error))?;
        self.files.push((path, facts));
        Ok(())
    }

    /// Adds a file from memory, and to the manifest if `listed`.
    pub(super) fn bytes(
        &mut self,
        path: &str,
        bytes: &[u8],
        modified: i64,
        listed: bool,
    ) -> Result<(), Error> {
        let size_bytes = bytes.len() as u64;
        let failed = |error| failed(Path::new(path), error);
        let mut header = self
            .owner
            .header(EntryType::Regular, size_bytes, 0o600, modified);
        self.tar
            .append_data(&mut header, path, io::empty())
            .map_err(failed)?;
        if listed {
            self.place(Path::new(path), size_bytes, 0o600, modified);
        }
        self.tar.get_mut().write_all(bytes).map_err(failed)?;
        self.pad(size_bytes).map_err(failed)?;
        if listed {
            let sha256 = Sha256::digest(bytes).into();
            self.restored_bytes += bytes.len() as u64;
            self.files.push((
                path.into(),
                FileFacts {
                    size_bytes,
                    modified,
                    sha256,
                },
            ));
        }
        Ok(())
    }

    /// Ends the tar file and waits until it is stored.
    pub(super) fn finish(self) -> Result<StoredObject, Error> {
        let object = self
            .tar
            .into_inner()
            .map_err(|error| failed(Path::new("the tar part"), error))?;
        Ok(object.finish()?)
    }

    fn pad(&mut self, size_bytes: u64) -> io::Result<()> {
        let rest = size_bytes.next_multiple_of(TAR_BLOCK_BYTES) - size_bytes;
        let zeros = [0; 512];
        let padding = usize::try_from(rest)
            .ok()
            .and_then(|rest| zeros.get(..rest))
            .unwrap_or_default();
        self.tar.get_mut().write_all(padding)
    }
}

/// A file's content on its way into a part.
struct Content<'a> {
    path: &'a Path,
    check: FileCheck<'a>,
    hash: Sha256,
    progress: &'a dyn Fn(u64) -> bool,
}

impl<'a> Content<'a> {
    fn new(path: &'a Path, check: FileCheck<'a>, progress: &'a dyn Fn(u64) -> bool) -> Self {
        Self {
            path,
            check,
            hash: Sha256::new(),
            progress,
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
            self.check.read(chunk, at).map_err(reading(self.path))?;
            self.hash.update(&*chunk);
            object.fill(count);
            at += count as u64;
            go_on(self.path, self.progress, count as u64)?;
        }
        Ok(())
    }
}

fn go_on(path: &Path, progress: &dyn Fn(u64) -> bool, bytes: u64) -> Result<(), Error> {
    if progress(bytes) {
        return Ok(());
    }
    Err(pipeline::Error::BrokenOff {
        object: path.display().to_string(),
    }
    .into())
}

fn reading(path: &Path) -> impl FnOnce(io::Error) -> Error {
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
    corrupt_blocks: Vec<CorruptBlock>,
}

impl<'a> FileCheck<'a> {
    fn new(file: &'a File, entry: &'a Entry, rules: PageRules) -> Self {
        let checked = entry.relation.filter(|_| rules.checksums);
        let first_block = checked.map(|file| file.segment.wrapping_mul(rules.blocks_per_file));
        Self {
            file,
            entry,
            rules,
            first_block,
            corrupt_blocks: Vec::new(),
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
        for _ in 0..REREADS {
            if page::judge(page, number, self.rules.begin) != PageState::Mismatch {
                return Ok(());
            }
            if self.corrupt_blocks.len() < PATIENCE {
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
        }
        if page::judge(page, number, self.rules.begin) == PageState::Mismatch {
            self.corrupt_blocks.push(CorruptBlock {
                file: self.entry.path.display().to_string(),
                block,
            });
        }
        Ok(())
    }
}

/// The pipeline's error, which came through [`io::Write`], or a path that tar cannot hold.
fn failed(path: &Path, error: io::Error) -> Error {
    match error.downcast::<pipeline::Error>() {
        Ok(error) => Error::Pipeline(error),
        Err(source) => Error::Read {
            path: path.to_owned(),
            source,
        },
    }
}
