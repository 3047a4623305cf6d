//! Bringing a file that is there to what the backup has, by writing only what differs and fetching only what may.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::Error;
use crate::contents::chain::{ChainFile, Whole};
use crate::contents::checksum::{Identity, Summing};
use crate::contents::merged::Skip;
use crate::contents::{FileError, Sum};
use crate::pipeline::BlockDigest;
use crate::pipeline::streams::{self, read_full};
use crate::progress::Progress;

/// Bytes that are compared at a time.
const CHUNK_BYTES: usize = 1 << 18;

/// What became of a file.
#[derive(Clone, Debug)]
pub(super) struct Refreshed {
    /// Length and checksum.
    pub(super) sum: Sum,
    /// How much of it was there.
    pub(super) kept_bytes: u64,
}

/// A file that is being brought up to date.
pub(super) struct Update {
    path: PathBuf,
    file: File,
    /// Where the next bytes go.
    at: u64,
    summing: Summing,
    kept_bytes: u64,
    here: Vec<u8>,
}

/// Brings a file to what `from` holds.
pub(super) fn refresh(
    mut update: Update,
    mut from: ChainFile,
    progress: &Progress,
) -> Result<Refreshed, FileError<Error>> {
    if let Some(kept) = update.is_same(from.header.size_bytes, from.whole)? {
        go_on(progress, from.header.size_bytes)?;
        return Ok(kept);
    }
    for (offset, length, digest) in std::mem::take(&mut from.known) {
        let before = offset - update.at;
        update.write_differences(&mut from.content.by_ref().take(before), progress)?;
        if update.has(length, digest)? {
            from.content
                .skip(u64::from(length))
                .map_err(FileError::Read)?;
            go_on(progress, u64::from(length))?;
        } else {
            let content = &mut from.content.by_ref().take(u64::from(length));
            update.write_differences(content, progress)?;
        }
    }
    update.write_differences(&mut from.content, progress)?;
    update.finish()
}

impl Update {
    /// Of an open file; `path` is for messages, and `summing` makes the checksum of what it will hold.
    pub(super) fn of(file: File, path: PathBuf, summing: Summing) -> Self {
        Self {
            path,
            file,
            at: 0,
            summing,
            kept_bytes: 0,
            here: vec![0; CHUNK_BYTES],
        }
    }

    /// Whether all of the file is as it must be, where that is known.
    fn is_same(
        &mut self,
        size_bytes: u64,
        whole: Option<Whole>,
    ) -> Result<Option<Refreshed>, Error> {
        let metadata = self.file.metadata();
        let length = metadata.map_err(Error::local("look at", &self.path))?.len();
        let whole = whole.filter(|_| length == size_bytes);
        let Some((checksum, identity)) = whole.and_then(|of| Some((of.checksum, of.identity?)))
        else {
            return Ok(None);
        };
        let here = match identity {
            Identity::Xxh128(_) => streams::xxh128(&mut self.file).map(Identity::Xxh128),
            Identity::Sha256(_) => streams::sha256(&mut self.file).map(Identity::Sha256),
        };
        let here = here.map_err(Error::local("read", &self.path))?;
        Ok((here == identity).then_some(Refreshed {
            sum: (size_bytes, checksum),
            kept_bytes: size_bytes,
        }))
    }

    /// Whether the next `length` bytes have this digest; they are kept then.
    fn has(&mut self, length: u32, digest: BlockDigest) -> Result<bool, Error> {
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        let here = read_at(&self.file, &mut bytes, self.at);
        let here = here.map_err(Error::local("read", &self.path))?;
        if here.len() != bytes.len() || !digest.is_of(&bytes) {
            return Ok(false);
        }
        self.summing.update(&bytes);
        self.at += u64::from(length);
        self.kept_bytes += u64::from(length);
        Ok(true)
    }

    /// Writes what differs of `content`, which goes on from here.
    pub(super) fn write_differences(
        &mut self,
        content: &mut dyn Read,
        progress: &Progress,
    ) -> Result<(), FileError<Error>> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut content = content;
        loop {
            let bytes = read_full(&mut content, &mut buffer).map_err(FileError::Read)?;
            if bytes.is_empty() {
                return Ok(());
            }
            let here = read_at(&self.file, &mut self.here, self.at);
            let here = here.map_err(Error::local("read", &self.path))?;
            let same = here.get(..bytes.len()).is_some_and(|here| here == bytes);
            if same {
                self.kept_bytes += bytes.len() as u64;
            } else {
                let written = self.file.write_all_at(bytes, self.at);
                written.map_err(Error::local("write", &self.path))?;
            }
            self.summing.update(bytes);
            self.at += bytes.len() as u64;
            go_on(progress, bytes.len() as u64)?;
        }
    }

    /// Cuts off what the file has beyond.
    pub(super) fn finish(self) -> Result<Refreshed, FileError<Error>> {
        let cut = self.file.set_len(self.at);
        cut.map_err(Error::local("set the length of", &self.path))?;
        Ok(Refreshed {
            sum: (self.at, self.summing.checksum()),
            kept_bytes: self.kept_bytes,
        })
    }
}

/// As much of `buffer` as the file has from `at` on.
fn read_at<'b>(file: &File, buffer: &'b mut [u8], at: u64) -> io::Result<&'b [u8]> {
    let mut filled = 0;
    loop {
        let rest = buffer.get_mut(filled..).unwrap_or_default();
        match file.read_at(rest, at + filled as u64) {
            Ok(0) => return Ok(buffer.get(..filled).unwrap_or_default()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn go_on(progress: &Progress, bytes: u64) -> Result<(), Error> {
    if progress.add(bytes) {
        Ok(())
    } else {
        Err(Error::BrokenOff)
    }
}
