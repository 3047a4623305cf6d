//! The segment that is being received: a file in the spool, which is never synced.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use walhalla_postgres::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};

use crate::wal::Error;

/// A segment, from its begin to where WAL of it has come.
#[derive(Debug)]
pub(super) struct OpenSegment {
    pub(super) name: SegmentName,
    pub(super) path: PathBuf,
    pub(super) begin: Lsn,
    pub(super) size: SegmentSize,
    /// How much of it has come.
    pub(super) received: u32,
    file: File,
}

impl OpenSegment {
    /// A segment of which nothing has come; `path` gives the place of a file.
    pub(super) fn create(
        number: SegmentNo,
        timeline: TimelineId,
        size: SegmentSize,
        path: impl Fn(&str) -> PathBuf,
    ) -> Result<Self, Error> {
        let name = number.on(timeline, size);
        let path = path(&name.to_string());
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path);
        let file = file.map_err(Error::local("create", &path))?;
        file.set_len(size.bytes())
            .map_err(Error::local("set the length of", &path))?;
        Ok(Self {
            name,
            path,
            begin: number.start(size),
            size,
            received: 0,
            file,
        })
    }

    /// Up to where it has come.
    pub(super) fn end(&self) -> Lsn {
        Lsn(self.begin.0 + u64::from(self.received))
    }

    /// Whether all of it has come.
    pub(super) fn is_full(&self) -> bool {
        u64::from(self.received) == self.size.bytes()
    }

    /// Takes what belongs into it of bytes that follow what has come; returns the rest.
    pub(super) fn take<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Error> {
        let room = self.size.bytes() - u64::from(self.received);
        let count = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        let (now, later) = bytes.split_at(count);
        self.file
            .write_all_at(now, u64::from(self.received))
            .map_err(Error::local("write", &self.path))?;
        self.received += u32::try_from(count).unwrap_or(0);
        Ok(later)
    }

    /// Removes the file, of a segment that is archived. The next one does not need its name.
    pub(super) fn discard(&self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("could not remove {}: {error}", self.path.display());
            }
            Ok(()) | Err(_) => {}
        }
    }

    /// The file, for who reads it at the same time.
    pub(super) fn reader(&self) -> Result<SegmentFile, Error> {
        let file = self.file.try_clone();
        Ok(SegmentFile {
            file: file.map_err(Error::local("open", &self.path))?,
            path: self.path.clone(),
        })
    }
}

/// A segment's file, opened; it can be read when it has no name any more.
#[derive(Debug)]
pub(super) struct SegmentFile {
    file: File,
    path: PathBuf,
}

impl SegmentFile {
    /// The bytes between two places.
    pub(super) fn bytes(&self, from: u32, to: u32) -> Result<Vec<u8>, Error> {
        let length = usize::try_from(to.saturating_sub(from)).unwrap_or(0);
        let mut bytes = vec![0; length];
        self.file
            .read_exact_at(&mut bytes, u64::from(from))
            .map_err(Error::local("read", &self.path))?;
        Ok(bytes)
    }
}
