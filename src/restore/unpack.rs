//! Unpacking a backup's parts into a data directory.
//!
//! ```text
//! part ─▶ download ─▶ hash ─▶ decompress ─▶ untar ─▶ hash ─▶ write       N parts at a time
//! all parts ─▶ fsync every file, every directory
//! ```
//!
//! Each file must be in the manifest, once, with the content that the manifest gives. The last part
//! waits until every other file is durable; of it, `pg_control` comes last.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::Advice;
use sha2::{Digest, Sha256};
use tar::{Archive, Entry, EntryType};

use super::{Error, PartProblem};
use crate::backup::manifest::{self, FileFacts, Manifest, hex};
use crate::pipeline::{Decoder, ObjectReader, SharedHash};
use crate::postgres::control;
use crate::progress::Progress;
use crate::repository::catalog::StoredPart;
use crate::repository::{BackupEntry, Repository};
use crate::threads::{lock, on_threads};
use crate::wal::fetcher::NewFile;

/// Bytes that are hashed and written at a time.
const CHUNK_BYTES: usize = 1 << 18;
/// How much of a file is written before the disk is told to begin.
const FLUSH_BYTES: u64 = 8 << 20;
/// For stock tools; restoring makes the links itself.
const TABLESPACE_MAP: &str = "tablespace_map";
/// Where `pg_control` is until everything else is in place.
const HELD_BACK: &str = "global/pg_control.walhalla.tmp";
/// Permissions of directories until a part says otherwise.
const PRIVATE: u32 = 0o700;

/// A backup on its way into a data directory.
pub struct Unpacker<'a> {
    repository: &'a Repository,
    backup: &'a BackupEntry,
    pgdata: &'a Path,
    manifest_text: String,
    /// Files of the manifest that did not come yet.
    expected: Mutex<BTreeMap<PathBuf, FileFacts>>,
    directories: Mutex<BTreeSet<PathBuf>>,
    unsynced: Mutex<Vec<PathBuf>>,
}

impl<'a> Unpacker<'a> {
    /// Reads the backup's manifest.
    pub fn new(
        repository: &'a Repository,
        backup: &'a BackupEntry,
        pgdata: &'a Path,
    ) -> Result<Self, Error> {
        let mut reader = PartReader::open(repository, backup, &backup.manifest)?;
        let mut text = String::new();
        reader
            .decoder
            .read_to_string(&mut text)
            .map_err(|source| reader.damaged(source))?;
        let object = reader.finish(&backup.manifest)?;
        let manifest =
            Manifest::parse(&text).map_err(|source| Error::Manifest { object, source })?;
        Ok(Self {
            repository,
            backup,
            pgdata,
            manifest_text: text,
            expected: Mutex::new(manifest.files),
            directories: Mutex::default(),
            unsynced: Mutex::default(),
        })
    }

    /// Unpacks everything but the last part, durably.
    pub fn unpack(&self, threads: usize, progress: &Progress) -> Result<(), Error> {
        let parts = self
            .backup
            .parts
            .split_last()
            .map(|(_, parts)| parts)
            .unwrap_or_default();
        let next = AtomicUsize::new(0);
        let worker = || -> Result<(), Error> {
            while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.part(part, progress)?;
            }
            Ok(())
        };
        on_threads(threads, progress, &worker)?;
        self.sync_files(threads, progress)
    }

    /// Makes every file durable. All are on their way to the disk by now, so one commit of the file
    /// system's journal does for many files, where an fsync after each file would take one for each.
    fn sync_files(&self, threads: usize, progress: &Progress) -> Result<(), Error> {
        let files = std::mem::take(&mut *lock(&self.unsynced));
        let next = AtomicUsize::new(0);
        on_threads(threads, progress, &|| {
            while let Some(path) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                let synced = File::open(path).and_then(|file| file.sync_all());
                synced.map_err(Error::local("fsync", path))?;
            }
            Ok(())
        })
    }

    /// Checks that nothing is missing and puts `pg_control` in place: from here on the server starts.
    pub fn finish(&self, progress: &Progress) -> Result<(), Error> {
        let mut manifest = NewFile::create(&self.pgdata.join(manifest::FILE_NAME))?;
        manifest.write(self.manifest_text.as_bytes())?;
        manifest.finish()?;
        if let Some(last) = self.backup.parts.last() {
            self.part(last, progress)?;
        }
        self.sync_files(1, progress)?;
        self.nothing_is_missing()?;
        self.open_to_group()?;
        self.sync_directories()?;
        let (held_back, path) = (self.pgdata.join(HELD_BACK), self.pgdata.join(control::PATH));
        std::fs::rename(&held_back, &path).map_err(Error::local("rename", &held_back))?;
        sync_directory(path.parent().unwrap_or(self.pgdata))
    }

    fn part(&self, part: &StoredPart, progress: &Progress) -> Result<(), Error> {
        let mut reader = PartReader::open(self.repository, self.backup, part)?;
        let unpacked = self.entries(&mut reader.decoder, progress);
        unpacked.map_err(|failure| match failure {
            Failure::Read(source) => reader.damaged(source),
            Failure::Content(problem) => Error::Part {
                object: reader.object.clone(),
                problem,
            },
            Failure::Other(error) => error,
        })?;
        reader.finish(part).map(drop)
    }

    fn entries(&self, input: &mut impl Read, progress: &Progress) -> Result<(), Failure> {
        let mut archive = Archive::new(input);
        for entry in archive.entries().map_err(Failure::Read)? {
            let mut entry = entry.map_err(Failure::Read)?;
            let path = entry.path().map_err(Failure::Read)?.into_owned();
            let inside = path
                .components()
                .all(|part| matches!(part, Component::Normal(_)));
            match entry.header().entry_type() {
                EntryType::Directory if inside => {
                    self.directory(&path, entry.header().mode().map_err(Failure::Read)?)?;
                }
                EntryType::Regular if path == Path::new(TABLESPACE_MAP) => {}
                EntryType::Regular if inside => self.file(&mut entry, &path, progress)?,
                _ => {
                    return Err(Failure::Content(PartProblem::Unexpected(
                        path.display().to_string(),
                    )));
                }
            }
        }
        Ok(())
    }

    fn directory(&self, path: &Path, mode: u32) -> Result<(), Error> {
        self.create_directories(path)?;
        let path = self.pgdata.join(path);
        std::fs::set_permissions(&path, Permissions::from_mode(mode & 0o777))
            .map_err(Error::local("set the mode of", path))
    }

    fn create_directories(&self, path: &Path) -> Result<(), Error> {
        let mut known = lock(&self.directories);
        if !known.contains(path) {
            let full = self.pgdata.join(path);
            let created = DirBuilder::new()
                .recursive(true)
                .mode(PRIVATE)
                .create(&full);
            created.map_err(Error::local("create the directory", full))?;
            known.extend(path.ancestors().map(Path::to_owned));
        }
        Ok(())
    }

    fn file(
        &self,
        entry: &mut Entry<impl Read>,
        path: &Path,
        progress: &Progress,
    ) -> Result<(), Failure> {
        let name = || path.display().to_string();
        let facts = lock(&self.expected).remove(path);
        let facts = facts.ok_or_else(|| Failure::Content(PartProblem::Unexpected(name())))?;
        self.create_directories(path.parent().unwrap_or(Path::new("")))?;
        let target = self.pgdata.join(if path == Path::new(control::PATH) {
            Path::new(HELD_BACK)
        } else {
            path
        });
        let mode = entry.header().mode().map_err(Failure::Read)? & 0o777;
        let found = write_file(entry, &target, mode, progress)?;
        lock(&self.unsynced).push(target);
        if found == (facts.size_bytes, facts.sha256) {
            Ok(())
        } else {
            Err(Failure::Content(PartProblem::Content(name())))
        }
    }

    /// A cluster that its group may read (`initdb --allow-group-access`) has the same mode on its directory.
    fn open_to_group(&self) -> Result<(), Error> {
        let path = self.pgdata.join("PG_VERSION");
        let metadata = path.metadata().map_err(Error::local("look at", &path))?;
        let mode = if metadata.permissions().mode() & 0o040 == 0 {
            0o700
        } else {
            0o750
        };
        std::fs::set_permissions(self.pgdata, Permissions::from_mode(mode))
            .map_err(Error::local("set the mode of", self.pgdata))
    }

    fn nothing_is_missing(&self) -> Result<(), Error> {
        let expected = lock(&self.expected);
        let Some(path) = expected.keys().next() else {
            return Ok(());
        };
        let problem = PartProblem::Missing(path.display().to_string());
        let folder = self.repository.layout.backup_folder(&self.backup.id);
        Err(Error::Part {
            object: format!("{}/{folder}", self.repository.store.url()),
            problem,
        })
    }

    fn sync_directories(&self) -> Result<(), Error> {
        let directories = lock(&self.directories);
        directories
            .iter()
            .try_for_each(|directory| sync_directory(&self.pgdata.join(directory)))?;
        sync_directory(self.pgdata)?;
        self.pgdata.parent().map_or(Ok(()), sync_directory)
    }
}

/// Makes a directory's entries durable.
pub(super) fn sync_directory(path: &Path) -> Result<(), Error> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(Error::local("fsync", path))
}

/// Why unpacking a part stopped.
enum Failure {
    /// The archive cannot be read on.
    Read(io::Error),
    /// What it holds is wrong.
    Content(PartProblem),
    /// The fault is not the archive's.
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// Writes an entry's content; returns its length and SHA-256. It is durable only after [`Unpacker::sync_files`].
fn write_file(
    entry: &mut impl Read,
    path: &Path,
    mode: u32,
    progress: &Progress,
) -> Result<(u64, [u8; 32]), Failure> {
    let created = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path);
    let mut file = created.map_err(Error::local("create", path))?;
    let (mut hash, mut size_bytes, mut flushed) = (Sha256::new(), 0, 0);
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let count = entry.read(&mut buffer).map_err(Failure::Read)?;
        let bytes = buffer.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        hash.update(bytes);
        file.write_all(bytes).map_err(Error::local("write", path))?;
        size_bytes += count as u64;
        if size_bytes - flushed >= FLUSH_BYTES {
            start_writeback(&file, flushed, size_bytes);
            flushed = size_bytes;
        }
        if !progress.add(count as u64) {
            return Err(Error::BrokenOff.into());
        }
    }
    start_writeback(&file, flushed, size_bytes);
    Ok((size_bytes, hash.finalize().into()))
}

/// Lets the disk begin with what was written, so that it is not idle until the fsync.
///
/// On Linux the advice starts the writing of dirty pages (fd.c, `pg_flush_data`); it is no more than advice.
fn start_writeback(file: &File, from: u64, to: u64) {
    let _advice = rustix::fs::fadvise(file, from, NonZeroU64::new(to - from), Advice::DontNeed);
}

/// An object of a backup on its way in.
struct PartReader<'a> {
    repository: &'a Repository,
    key: walhalla_providers::ObjectKey,
    object: String,
    decoder: Decoder<ObjectReader>,
    hash: SharedHash,
}

impl<'a> PartReader<'a> {
    fn open(
        repository: &'a Repository,
        backup: &BackupEntry,
        part: &StoredPart,
    ) -> Result<Self, Error> {
        let object = repository.layout.backup_object(&backup.id, &part.name)?;
        let mut reader = ObjectReader::open(&repository.store, &repository.runtime, &object.key)?;
        let hash = reader.hash();
        let decoder = Decoder::new(object.codec, reader)
            .map_err(|source| repository.damaged(&object.key, source))?;
        Ok(Self {
            repository,
            object: repository.url(&object.key),
            key: object.key,
            decoder,
            hash,
        })
    }

    fn damaged(&self, source: io::Error) -> Error {
        self.repository.damaged(&self.key, source).into()
    }

    /// Reads to the end and checks the whole; returns the object's URL.
    fn finish(mut self, part: &StoredPart) -> Result<String, Error> {
        io::copy(&mut self.decoder, &mut io::sink()).map_err(|source| self.damaged(source))?;
        if hex(&self.hash.value()) == part.sha256 {
            Ok(self.object)
        } else {
            Err(Error::Part {
                object: self.object,
                problem: PartProblem::Digest,
            })
        }
    }
}
