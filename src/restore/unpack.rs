//! Unpacking a backup's parts into a data directory.
//!
//! ```text
//! parts ─▶ write and hash each file       N parts at a time
//! all parts ─▶ fsync every file, every directory
//! ```
//!
//! The last part waits until every other file is durable; of it, `pg_control` comes last.

use std::collections::{BTreeSet, HashSet};
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use rustix::fs::Advice;
use sha2::{Digest, Sha256};

use super::Error;
use super::existing::Existing;
use super::refresh::{Update, refresh};
use crate::backup::chain::Chain;
use crate::backup::contents::{self, Failure, FileHeader, Sink, Sum};
use crate::backup::manifest;
use crate::postgres::control;
use crate::progress::Progress;
use crate::threads::{lock, on_threads};
use crate::wal::fetcher::NewFile;

/// Bytes that are hashed and written at a time.
const CHUNK_BYTES: usize = 1 << 18;
/// How much of a file is written before the disk is told to begin.
const FLUSH_BYTES: u64 = 8 << 20;
/// Where `pg_control` is until everything else is in place.
const HELD_BACK: &str = "global/pg_control.walhalla.tmp";
/// Permissions of directories until a part says otherwise.
const PRIVATE: u32 = 0o700;

/// A backup on its way into a data directory.
pub struct Unpacker<'a> {
    chain: Chain<'a>,
    pgdata: &'a Path,
    existing: Existing,
    progress: &'a Progress,
    directories: Mutex<BTreeSet<PathBuf>>,
    unsynced: Mutex<Vec<PathBuf>>,
    kept_bytes: AtomicU64,
}

impl<'a> Unpacker<'a> {
    /// Unpacks what `chain` makes into `pgdata`.
    pub fn new(
        chain: Chain<'a>,
        pgdata: &'a Path,
        existing: Existing,
        progress: &'a Progress,
    ) -> Self {
        Self {
            chain,
            pgdata,
            existing,
            progress,
            directories: Mutex::default(),
            unsynced: Mutex::default(),
            kept_bytes: AtomicU64::new(0),
        }
    }

    /// The paths of all files that will be there.
    pub fn paths(&self) -> HashSet<PathBuf> {
        self.chain.paths()
    }

    /// How much of the files was there already.
    pub fn kept_bytes(&self) -> u64 {
        self.kept_bytes.load(Ordering::Relaxed)
    }

    /// Unpacks everything but the leaf's last part, durably.
    pub fn unpack(&self, threads: usize) -> Result<(), Error> {
        let files = match self.existing {
            Existing::Refuse => None,
            Existing::Update => self.chain.files(),
        };
        match files {
            Some(files) => self.refresh(&files, threads)?,
            None => self.stream(threads)?,
        }
        self.empty_files()?;
        self.sync_files(threads)
    }

    /// Part by part.
    fn stream(&self, threads: usize) -> Result<(), Error> {
        let tasks = self.chain.tasks();
        let next = AtomicUsize::new(0);
        on_threads(threads, self.progress, &|| {
            while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.chain.read(*task, self)?;
            }
            Ok(())
        })
    }

    /// File by file, each compared with what is there.
    fn refresh(&self, files: &[&Path], threads: usize) -> Result<(), Error> {
        if let Some(first) = self.chain.first_task() {
            self.chain.read(first, self)?;
        }
        let next = AtomicUsize::new(0);
        on_threads(threads, self.progress, &|| {
            while let Some(path) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.refresh_file(path)?;
            }
            Ok(())
        })
    }

    fn refresh_file(&self, path: &Path) -> Result<(), Error> {
        let Some(file) = self.chain.file(path)? else {
            return Ok(());
        };
        self.create_directories(path.parent().unwrap_or(Path::new("")))?;
        let (target, header, sha256) = (self.pgdata.join(path), file.header, file.sha256);
        let refreshed = refresh(&target, file, self.progress).map_err(|failure| match failure {
            Failure::Read(source) => self.chain.unreadable(path, source).into(),
            Failure::Sink(error) => error,
        })?;
        if sha256.is_some_and(|sha256| sha256 != refreshed.sum.1) {
            return Err(self.chain.other_content(path).into());
        }
        self.kept_bytes
            .fetch_add(refreshed.kept_bytes, Ordering::Relaxed);
        self.chain.came(path, header, refreshed.sum);
        lock(&self.unsynced).push(target);
        Ok(())
    }

    /// Gives what is not restored its length, and no content.
    fn empty_files(&self) -> Result<(), Error> {
        for (path, size_bytes) in self.chain.left_out() {
            self.create_directories(path.parent().unwrap_or(Path::new("")))?;
            let target = self.pgdata.join(path);
            let mut options = OpenOptions::new();
            let created = options.write(true).create(true).truncate(true).mode(0o600);
            let emptied = created
                .open(&target)
                .and_then(|file| file.set_len(*size_bytes));
            emptied.map_err(Error::local("create", &target))?;
            lock(&self.unsynced).push(target);
        }
        Ok(())
    }

    /// Makes every file durable. All are on their way to the disk by now, so one commit of the file
    /// system's journal does for many files, where an fsync after each file would take one for each.
    fn sync_files(&self, threads: usize) -> Result<(), Error> {
        let files = std::mem::take(&mut *lock(&self.unsynced));
        let next = AtomicUsize::new(0);
        on_threads(threads, self.progress, &|| {
            while let Some(path) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                let synced = File::open(path).and_then(|file| file.sync_all());
                synced.map_err(Error::local("fsync", path))?;
            }
            Ok(())
        })
    }

    /// Checks that nothing is missing and puts `pg_control` in place: from here on the server starts.
    pub fn finish(&self) -> Result<(), Error> {
        if let Some(last) = self.chain.last_task() {
            self.chain.read(last, self)?;
        }
        // A manifest of files that are empty would say no more than that they are not the backup's.
        if self.chain.left_out().is_empty() {
            let mut manifest = NewFile::create(&self.pgdata.join(manifest::FILE_NAME))?;
            manifest.write(self.chain.manifest_text().as_bytes())?;
            manifest.finish()?;
        }
        self.sync_files(1)?;
        self.chain.missing().map_or(Ok(()), Err)?;
        self.open_to_group()?;
        self.sync_directories()?;
        let (held_back, path) = (self.pgdata.join(HELD_BACK), self.pgdata.join(control::PATH));
        std::fs::rename(&held_back, &path).map_err(Error::local("rename", &held_back))?;
        sync_directory(path.parent().unwrap_or(self.pgdata))
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

    fn sync_directories(&self) -> Result<(), Error> {
        let directories = lock(&self.directories);
        directories
            .iter()
            .try_for_each(|directory| sync_directory(&self.pgdata.join(directory)))?;
        sync_directory(self.pgdata)?;
        self.pgdata.parent().map_or(Ok(()), sync_directory)
    }
}

impl Sink for Unpacker<'_> {
    type Error = Error;

    fn directory(&self, path: &Path, header: FileHeader) -> Result<(), Error> {
        self.create_directories(path)?;
        let path = self.pgdata.join(path);
        std::fs::set_permissions(&path, Permissions::from_mode(header.mode))
            .map_err(Error::local("set the mode of", path))
    }

    fn file(
        &self,
        path: &Path,
        header: FileHeader,
        content: &mut dyn Read,
    ) -> Result<Option<Sum>, Failure<Error>> {
        self.create_directories(path.parent().unwrap_or(Path::new("")))?;
        let target = self.pgdata.join(if path == Path::new(control::PATH) {
            Path::new(HELD_BACK)
        } else {
            path
        });
        let found = match self.existing {
            Existing::Refuse => write_file(content, &target, header.mode, self.progress)?,
            Existing::Update => {
                let mut update = Update::open(&target, header.mode)?;
                update.take(content, self.progress)?;
                let refreshed = update.finish()?;
                self.kept_bytes
                    .fetch_add(refreshed.kept_bytes, Ordering::Relaxed);
                refreshed.sum
            }
        };
        lock(&self.unsynced).push(target);
        Ok(Some(found))
    }

    fn problem(&self, error: contents::Error) -> Result<(), Error> {
        Err(error.into())
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

/// Writes an entry's content; returns its length and SHA-256. It is durable only after [`Unpacker::sync_files`].
fn write_file(
    content: &mut dyn Read,
    path: &Path,
    mode: u32,
    progress: &Progress,
) -> Result<Sum, Failure<Error>> {
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
        let count = content.read(&mut buffer).map_err(Failure::Read)?;
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
