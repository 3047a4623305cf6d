//! Unpacking a backup's parts into a data directory.
//!
//! ```text
//! parts ─▶ write and check each file       N parts at a time
//! all parts ─▶ every file durable ─▶ modes of directories, fsync each
//! ```
//!
//! The last part waits until every other file is durable; of it, `pg_control` comes last. Into places that are
//! [`Durability::Unsynced`] the same is written in the same order, and nothing waits for the disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use rustix::fs::Advice;
use walhalla_postgres::control;

use super::Error;
use super::existing::{self, Existing};
use super::places::Places;
use super::refresh::{Update, refresh};
use crate::contents::chain::Chain;
use crate::contents::checksum::{Checksum, Summing};
use crate::contents::manifest;
use crate::contents::{self, FileError, FileHeader, Sink, Summed, Taken};
use crate::durability::Durability;
use crate::paths::PathList;
use crate::pipeline::streams::read_full;
use crate::progress::Progress;
use crate::threads::{lock, on_threads};

/// Bytes that are checked and written at a time.
const CHUNK_BYTES: usize = 1 << 18;
/// How much of a file is written before the disk is told to begin.
const FLUSH_BYTES: u64 = 8 << 20;
/// So many files are not made durable one by one. That would spare what else is on the file system, and take seconds.
const MANY_FILES: usize = 2_000;
/// Where `pg_control` is until everything else is in place.
const HELD_BACK: &str = "global/pg_control.walhalla.tmp";
/// Written when the backup ended, so that no file of the server's says which mode it has.
const WITHOUT_MODE: [&str; 2] = ["backup_label", control::PATH];

/// A backup on its way into a data directory.
pub struct Unpacker<'a> {
    chain: Chain<'a>,
    places: &'a Places,
    existing: Existing,
    progress: &'a Progress,
    /// With the mode of each, as far as a part told it.
    directories: Mutex<BTreeMap<PathBuf, Option<u32>>>,
    unsynced: Mutex<PathList<()>>,
    kept_bytes: AtomicU64,
}

impl<'a> Unpacker<'a> {
    /// Unpacks what `chain` makes into `places`.
    pub(super) fn new(
        chain: Chain<'a>,
        places: &'a Places,
        existing: Existing,
        progress: &'a Progress,
    ) -> Self {
        Self {
            chain,
            places,
            existing,
            progress,
            directories: Mutex::default(),
            unsynced: Mutex::default(),
            kept_bytes: AtomicU64::new(0),
        }
    }

    /// How much of the files was there already.
    pub fn kept_bytes(&self) -> u64 {
        self.kept_bytes.load(Ordering::Relaxed)
    }

    /// Unpacks everything but the leaf's last part; it is durable then if the places are.
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
    fn refresh(&self, files: &PathList<()>, threads: usize) -> Result<(), Error> {
        if let Some(first) = self.chain.first_task() {
            self.chain.read(first, self)?;
        }
        let next = AtomicUsize::new(0);
        on_threads(threads, self.progress, &|| {
            while let Some(path) = files.path(next.fetch_add(1, Ordering::Relaxed)) {
                self.refresh_file(&path)?;
            }
            Ok(())
        })
    }

    fn refresh_file(&self, path: &Path) -> Result<(), Error> {
        let Some(file) = self.chain.file(path)? else {
            return Ok(());
        };
        self.create_directories(path.parent().unwrap_or(Path::new("")))?;
        let (header, whole) = (file.header, file.whole.as_ref());
        let checksum = whole.map(|whole| whole.checksum.clone());
        let summing = { checksum.as_ref() }.map_or_else(Summing::default, Checksum::summing);
        let update = self.update(path, header.mode, summing)?;
        let refreshed = refresh(update, file, self.progress).map_err(|failure| match failure {
            FileError::Read(source) => self.chain.unreadable(path, source).into(),
            FileError::Sink(error) => error,
        })?;
        if checksum.is_some_and(|checksum| checksum != refreshed.sum.1) {
            return Err(self.chain.other_content(path).into());
        }
        self.kept_bytes
            .fetch_add(refreshed.kept_bytes, Ordering::Relaxed);
        self.chain.record_file(path, header, refreshed.sum);
        lock(&self.unsynced).push(path, ());
        Ok(())
    }

    fn update(&self, path: &Path, mode: u32, summing: Summing) -> Result<Update, Error> {
        let file = self.places.open_or_create(path, mode)?;
        let full = self.places.data.path().join(path);
        Ok(Update::of(file, full, summing))
    }

    /// Gives what is not restored its length, and no content.
    fn empty_files(&self) -> Result<(), Error> {
        for (path, size_bytes) in self.chain.left_out().iter() {
            self.create_directories(path.parent().unwrap_or(Path::new("")))?;
            let file = self.places.open_or_create(&path, self.file_mode()?)?;
            let emptied = file.set_len(0).and_then(|()| file.set_len(*size_bytes));
            emptied.map_err(Error::local("create", self.places.data.path().join(&path)))?;
            lock(&self.unsynced).push(&path, ());
        }
        Ok(())
    }

    /// Makes every file durable, if the places are. All are on their way to the disk by now, so one commit of the file
    /// system's journal does for many files, where an fsync after each file would take one for each.
    fn sync_files(&self, threads: usize) -> Result<(), Error> {
        let files = std::mem::take(&mut *lock(&self.unsynced));
        if self.places.durability() == Durability::Unsynced {
            let count = files.len();
            tracing::debug!(
                "{count} files are left to the system, which writes them when it likes"
            );
            return Ok(());
        }
        if files.len() >= MANY_FILES && self.places.sync_all_files()? {
            tracing::debug!("{} files were made durable at once", files.len());
            return Ok(());
        }
        let next = AtomicUsize::new(0);
        on_threads(threads, self.progress, &|| {
            while let Some(path) = files.path(next.fetch_add(1, Ordering::Relaxed)) {
                if path == Path::new(HELD_BACK) {
                    self.places.data.sync_file(&path)?;
                } else {
                    self.places.sync_file(&path)?;
                }
            }
            Ok(())
        })
    }

    /// Checks that nothing is missing and puts `pg_control` in place: from here on the server starts.
    pub fn finish(&self) -> Result<(), Error> {
        if let Some(last) = self.chain.last_task() {
            self.chain.read(last, self)?;
        }
        let data = &self.places.data;
        // A manifest of files that are empty would say no more than that they are not the backup's.
        if self.chain.left_out().is_empty() {
            data.write_with(manifest::FILE_NAME.as_ref(), self.file_mode()?, |file| {
                self.chain.write_manifest(file)
            })?;
        }
        self.sync_files(1)?;
        self.chain.missing().map_or(Ok(()), Err)?;
        self.finish_directories()?;
        existing::take_tablespaces_proof_away(self.places)?;
        let path = Path::new(control::PATH);
        data.rename(HELD_BACK.as_ref(), path)?;
        data.sync(path.parent().unwrap_or(Path::new("")))
    }

    fn create_directories(&self, path: &Path) -> Result<(), Error> {
        let mut known = lock(&self.directories);
        if !known.contains_key(path) {
            self.places.make_directory(path)?;
            for path in path.ancestors() {
                // What is between the data directory and a tablespace's files is a link.
                if !known.contains_key(path) && self.places.locate(path).is_ok() {
                    known.insert(path.to_owned(), None);
                }
            }
        }
        Ok(())
    }

    /// Whether the cluster's group may read it (`initdb --allow-group-access`).
    fn is_open_to_group(&self) -> Result<bool, Error> {
        let mode = self.places.data.mode("PG_VERSION".as_ref())?;
        Ok(mode.is_some_and(|mode| mode & 0o040 != 0))
    }

    /// The mode that PostgreSQL gives to files of this cluster.
    pub fn file_mode(&self) -> Result<u32, Error> {
        Ok(if self.is_open_to_group()? {
            0o640
        } else {
            0o600
        })
    }

    /// Gives directories their modes, those that are deepest first: one may forbid its owner to write. Then makes them
    /// durable, if the places are.
    fn finish_directories(&self) -> Result<(), Error> {
        let usual = if self.is_open_to_group()? {
            0o750
        } else {
            0o700
        };
        let directories = std::mem::take(&mut *lock(&self.directories));
        for (path, mode) in directories.iter().rev() {
            if !path.as_os_str().is_empty() {
                self.places.finish_directory(path, mode.unwrap_or(usual))?;
            }
        }
        self.places.finish_outer_directories(usual)
    }

    /// Writes an entry's content. It is durable only after [`Unpacker::sync_files`]. A chunk of zeros is left out: what was a
    /// hole takes no room, and reads back as the same.
    fn write_file(
        &self,
        mut content: &mut dyn Read,
        file: &File,
        path: &Path,
    ) -> Result<(), FileError<Error>> {
        let (mut size_bytes, mut flushed) = (0, 0);
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let bytes = read_full(&mut content, &mut buffer).map_err(FileError::Read)?;
            if bytes.is_empty() {
                break;
            }
            let count = bytes.len() as u64;
            let written = if bytes.iter().all(|byte| *byte == 0) {
                file.set_len(size_bytes + count)
            } else {
                file.write_all_at(bytes, size_bytes)
            };
            written.map_err(Error::local("write", path))?;
            size_bytes += count;
            if size_bytes - flushed >= FLUSH_BYTES {
                self.start_writeback(file, flushed, size_bytes);
                flushed = size_bytes;
            }
            if !self.progress.add(count) {
                return Err(Error::BrokenOff.into());
            }
        }
        // What is short is left to the system, which writes many such files at a time.
        if size_bytes >= FLUSH_BYTES / 8 {
            self.start_writeback(file, flushed, size_bytes);
        }
        Ok(())
    }

    /// Lets the disk begin with what was written, so that it is not idle until the fsync; where there will be none, it is left
    /// alone.
    ///
    /// On Linux the advice starts the writing of dirty pages (fd.c, `pg_flush_data`); it is no more than advice.
    fn start_writeback(&self, file: &File, from: u64, to: u64) {
        if self.places.durability() == Durability::Durable {
            let _advice =
                rustix::fs::fadvise(file, from, NonZeroU64::new(to - from), Advice::DontNeed);
        }
    }
}

impl Sink for Unpacker<'_> {
    type Error = Error;

    fn directory(&self, path: &Path, header: FileHeader) -> Result<(), Error> {
        self.create_directories(path)?;
        lock(&self.directories).insert(path.to_owned(), Some(header.mode));
        Ok(())
    }

    fn file(
        &self,
        path: &Path,
        header: FileHeader,
        content: &mut Summed,
    ) -> Result<Taken, FileError<Error>> {
        self.create_directories(path.parent().unwrap_or(Path::new("")))?;
        let mode = match path.to_str() {
            Some(name) if WITHOUT_MODE.contains(&name) => self.file_mode()?,
            _ => header.mode,
        };
        let full = self.places.data.path().join(path);
        if path == Path::new(control::PATH) {
            let held_back = self.places.data.create(HELD_BACK.as_ref(), mode)?;
            lock(&self.unsynced).push(Path::new(HELD_BACK), ());
            self.write_file(content, &held_back, &full)?;
            return Ok(Taken::Content);
        }
        if path == Path::new(HELD_BACK) {
            return Err(Error::StrangePath(path.to_owned()).into());
        }
        match self.existing {
            Existing::Refuse => {
                let file = self.places.create(path, mode)?;
                self.write_file(content, &file, &full)?;
            }
            Existing::Update => {
                let mut update = self.update(path, mode, Summing::default())?;
                update.write_differences(content, self.progress)?;
                let kept_bytes = update.finish()?.kept_bytes;
                self.kept_bytes.fetch_add(kept_bytes, Ordering::Relaxed);
            }
        }
        lock(&self.unsynced).push(path, ());
        Ok(Taken::Content)
    }

    fn problem(&self, error: contents::Error) -> Result<(), Error> {
        Err(error.into())
    }
}
