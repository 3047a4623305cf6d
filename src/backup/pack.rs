//! Packing files into a tar part while their pages are checked and their content is hashed.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::Error;
use super::index::FilePlace;
use super::manifest::FileFacts;
use crate::pipeline::streams::read_full;
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

    fn header(self, kind: EntryType, size_bytes: u64, mode: u32, modified: i64) -> Header {
        let mut header = Header::new_gnu();
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
    pub(super) fn new(object: ObjectWriter, rules: PageRules, owner: Owner) -> Self {
        Self {
            tar: Builder::new(object),
            rules,
            owner,
            files: Vec::new(),
            places: Vec::new(),
            corrupt_blocks: Vec::new(),
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

    /// Adds a file of the data directory with as many bytes as it has now; one that vanished is left out.
    ///
    /// `progress` is told of bytes as they are read and answers whether to go on.
    pub(super) fn file(
        &mut self,
        pgdata: &Path,
        entry: &Entry,
        progress: &dyn Fn(u64) -> bool,
    ) -> Result<(), Error> {
        let path = pgdata.join(&entry.path);
        let reading = |source| Error::Read {
            path: path.clone(),
            source,
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(reading(error)),
        };
        let metadata = file.metadata().map_err(reading)?;
        let size_bytes = metadata.len();
        let mut header =
            self.owner
                .header(EntryType::Regular, size_bytes, entry.mode, metadata.mtime());
        self.tar
            .append_data(&mut header, &entry.path, io::empty())
            .map_err(|error| failed(&path, error))?;
        self.place(&entry.path, size_bytes);
        let mut check = FileCheck::new(&file, entry, self.rules);
        let sha256 = self.content(&path, &mut check, size_bytes, progress)?;
        self.corrupt_blocks.append(&mut check.corrupt_blocks);
        self.pad(size_bytes).map_err(|error| failed(&path, error))?;
        self.files.push((
            entry.path.clone(),
            FileFacts {
                size_bytes,
                modified: metadata.mtime(),
                sha256,
            },
        ));
        Ok(())
    }

    /// Notes that a file's content begins here: its header was written.
    fn place(&mut self, path: &Path, size_bytes: u64) {
        self.places.push(FilePlace {
            path: path.to_owned(),
            offset: self.tar.get_ref().position(),
            size_bytes,
        });
    }

    fn content(
        &mut self,
        path: &Path,
        check: &mut FileCheck,
        size_bytes: u64,
        progress: &dyn Fn(u64) -> bool,
    ) -> Result<[u8; 32], Error> {
        let (object, page) = (self.tar.get_mut(), self.rules.block_size_bytes);
        let mut hash = Sha256::new();
        let mut at = 0;
        while at < size_bytes {
            object.reserve(page).map_err(|error| failed(path, error))?;
            let room = object.room().map_err(|error| failed(path, error))?;
            let whole_pages = room.len() / page * page;
            let count = whole_pages.min(usize::try_from(size_bytes - at).unwrap_or(usize::MAX));
            let chunk = room.get_mut(..count).unwrap_or_default();
            check.read(chunk, at).map_err(|source| Error::Read {
                path: path.to_owned(),
                source,
            })?;
            hash.update(&*chunk);
            object.fill(count);
            at += count as u64;
            if !progress(count as u64) {
                return Err(pipeline::Error::BrokenOff {
                    object: path.display().to_string(),
                }
                .into());
            }
        }
        Ok(hash.finalize().into())
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
            self.place(Path::new(path), size_bytes);
        }
        self.tar.get_mut().write_all(bytes).map_err(failed)?;
        self.pad(size_bytes).map_err(failed)?;
        if listed {
            let sha256 = Sha256::digest(bytes).into();
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
        let checked = entry.relation_file.filter(|_| rules.checksums);
        let first_block = checked.map(|number| number.wrapping_mul(rules.blocks_per_file));
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
        let count = read_full(&mut io::Read::take(self.file, chunk.len() as u64), chunk)?.len();
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
