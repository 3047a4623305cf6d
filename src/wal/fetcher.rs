//! Fetching a WAL file from the archive.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use walhalla_providers::ErrorKind;

use super::pages::{Cluster, Extent, SegmentCheck};
use super::{Error, Mismatch, history_beside};
use crate::pipeline::Packing;
use crate::pipeline::streams::read_full;
use crate::postgres::{History, SegmentName, WalFileName};
use crate::repository::{self, ArchivedFile, Repository};

/// Bytes that are read, checked and written at a time: whole WAL pages of any size.
const CHUNK_BYTES: usize = 1 << 18;

/// Permissions of new files: PostgreSQL's own, as WAL is not for everyone to read. A server whose group may not read it,
/// either, has an umask that takes that right away (file_perm.c, `pg_mode_mask`).
const PRIVATE: u32 = 0o640;

/// Where files come from and what they must look like.
#[derive(Clone, Debug)]
pub struct Fetcher<'a> {
    /// The archive.
    pub repository: &'a Repository,
    /// The cluster whose control file says what a segment must look like; without one, the
    /// segment's own first page does.
    pub cluster: Option<Cluster>,
}

impl Fetcher<'_> {
    /// Puts `file` at `path`. After `Ok` it is whole, checked and durable; before, `path` does not change.
    ///
    /// # Errors
    /// [`Error::NotArchived`] only when the store proved that the file is in none of its forms there.
    pub fn fetch(&self, file: WalFileName, path: &Path) -> Result<(), Error> {
        let archived = self.repository.find_wal(file)?;
        let archived = archived.ok_or_else(|| Error::NotArchived {
            file,
            archive: self
                .repository
                .url(&self.repository.layout.wal(file, Packing::NONE).key),
        })?;
        let history = match file {
            WalFileName::Segment(name) | WalFileName::Partial(name) => {
                history_beside(self.repository, path, name.timeline)?
            }
            WalFileName::History(timeline)
            | WalFileName::BackupHistory(SegmentName { timeline, .. }, _) => {
                History::root(timeline)
            }
        };
        self.fetch_archived(file, &archived, &history, None, path)
            .map(drop)
    }

    /// As [`Fetcher::fetch`], for a file that was found and whose timeline's history is known. A segment is checked as
    /// the one after `last`, so that a record that runs from one into the other is whole; returns its own check.
    ///
    /// One that arrives damaged is fetched once more: recovery stops at a damaged file, and a bit
    /// may have turned on the way.
    pub fn fetch_archived(
        &self,
        file: WalFileName,
        archived: &ArchivedFile,
        history: &History,
        last: Option<SegmentCheck>,
        path: &Path,
    ) -> Result<Option<SegmentCheck>, Error> {
        match self.fetch_once(file, archived, history, last.clone(), path) {
            Err(error) if is_damage(&error) => {
                tracing::warn!("{error}; it is fetched once more");
                self.fetch_once(file, archived, history, last, path)
            }
            outcome => outcome,
        }
    }

    fn fetch_once(
        &self,
        file: WalFileName,
        archived: &ArchivedFile,
        history: &History,
        mut last: Option<SegmentCheck>,
        path: &Path,
    ) -> Result<Option<SegmentCheck>, Error> {
        let object = self.repository.url(&archived.object.key);
        let mut reader = self.repository.open(&archived.object)?;
        let mut target = NewFile::create(path)?;
        let mut check = None;
        let mut size_bytes = 0;
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let chunk = read_full(&mut reader, &mut buffer);
            let chunk =
                chunk.map_err(|source| self.repository.damaged(&archived.object.key, source))?;
            let mismatch = |mismatch| Error::Mismatch {
                place: object.clone(),
                file,
                mismatch,
            };
            if size_bytes == 0 {
                check = match (last.take(), file) {
                    (Some(last), WalFileName::Segment(name)) => {
                        last.followed_by(history.clone(), name).map(Some)
                    }
                    _ => self.check(file, history, chunk),
                }
                .map_err(mismatch)?;
            }
            if chunk.is_empty() {
                break;
            }
            size_bytes += chunk.len() as u64;
            if let Some(check) = &mut check {
                check.pages(chunk).map_err(mismatch)?;
            }
            target.write(chunk)?;
        }
        let wrong_length = check
            .as_ref()
            .and_then(|check| check.wrong_length(size_bytes));
        if let Some(mismatch) = wrong_length {
            return Err(Error::Mismatch {
                place: object,
                file,
                mismatch,
            });
        }
        target.finish()?;
        Ok(check)
    }

    fn check(
        &self,
        file: WalFileName,
        history: &History,
        begin: &[u8],
    ) -> Result<Option<SegmentCheck>, Mismatch> {
        let (name, extent) = match file {
            WalFileName::Segment(name) => (name, Extent::Whole),
            WalFileName::Partial(name) => (name, Extent::Partial),
            WalFileName::History(_) | WalFileName::BackupHistory(..) => return Ok(None),
        };
        let own = || Cluster::of_first_page(begin, self.repository.layout.system_identifier());
        let cluster = self.cluster.or_else(own).ok_or(Mismatch::Text)?;
        SegmentCheck::new(
            cluster,
            history.clone(),
            name,
            cluster.segment_size.bytes(),
            extent,
        )
        .map(Some)
    }
}

/// Whether the bytes came, and are not what they must be.
fn is_damage(error: &Error) -> bool {
    match error {
        Error::Mismatch { .. } | Error::Repository(repository::Error::Damaged { .. }) => true,
        Error::Repository(repository::Error::Store(error)) => error.kind == ErrorKind::Corrupted,
        _ => false,
    }
}

/// A file that appears under its name whole and durable, or not at all.
pub struct NewFile {
    file: File,
    path: PathBuf,
    temporary: PathBuf,
    finished: bool,
}

impl NewFile {
    /// Begins a file that will be at `path`; what a killed process left of an earlier try is overwritten.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let mut name: OsString = path.file_name().unwrap_or_default().to_owned();
        name.push(".walhalla.tmp");
        let temporary = path.with_file_name(name);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(PRIVATE)
            .open(&temporary);
        let file = file.map_err(Error::local("create", &temporary))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            temporary,
            finished: false,
        })
    }

    /// Adds bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file
            .write_all(bytes)
            .map_err(Error::local("write", &self.temporary))
    }

    /// Adds all that `input` holds.
    pub fn copy(&mut self, input: &mut impl Read) -> Result<(), Error> {
        std::io::copy(input, &mut self.file)
            .map(drop)
            .map_err(Error::local("write", &self.temporary))
    }

    /// Puts the file in place, durably.
    pub fn finish(mut self) -> Result<(), Error> {
        self.file
            .sync_all()
            .map_err(Error::local("fsync", &self.temporary))?;
        std::fs::rename(&self.temporary, &self.path)
            .map_err(Error::local("rename", &self.temporary))?;
        self.finished = true;
        let folder = self
            .path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(Error::local("fsync", folder))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.finished {
            // Best effort: the error that led here is the one to report.
            drop(std::fs::remove_file(&self.temporary));
        }
    }
}
