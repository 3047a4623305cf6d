//! Reading a backup's files in pieces, by its index: what is not asked for is not fetched.
//!
//! ```text
//! PieceReader ─▶ frames of the file ─▶ cached? ─▶ one request for adjacent frames ─▶ decrypt ─▶ decompress ─▶ digest
//! ```
//!
//! Small files share a frame, and readers of them the request for it: what one fetches the others wait for. Readers
//! that go on in a file fetch more and more frames at a time; those that skip fetch the frame they land in.
//!
//! Memory: the index, some 80 bytes for each file and each MiB; 32 blocks of 1 MiB in the cache; for each reader that is
//! not at its end 8 blocks, and while it fetches 4 MiB as they are stored and once more decrypted.

mod cache;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use bytes::{Buf, Bytes};

use self::cache::{Cache, Found};
use super::index::{FilePlace, Index, PartIndex};
use super::reader::{self, object_of};
use crate::failure::Failure as _;
use crate::pipeline::{Frame, OpenError, Ranged, open_frame};
use crate::repository::{self, BackupEntry, ObjectError, Repository};

/// Most frames of one request.
const MOST_FRAMES: usize = 8;
/// Most bytes of one request, unless a single frame is longer.
const MOST_STORED_BYTES: u64 = 4 << 20;

/// A backup whose files are read in pieces, by any number of threads.
pub struct Pieces<'a> {
    repository: &'a Repository,
    index: Index,
    parts: Vec<Part>,
    cache: Cache,
}

/// A part, and where its frames begin.
struct Part {
    object: Ranged,
    starts: Vec<Start>,
}

impl Part {
    /// The frame that holds the byte at `position` of the content.
    fn frame_at(&self, position: u64) -> usize {
        let begun = self
            .starts
            .partition_point(|start| start.content <= position);
        begun.saturating_sub(1)
    }
}

/// Where a frame begins.
#[derive(Clone, Copy, Default)]
struct Start {
    /// In the content, the tar file.
    content: u64,
    /// Before encryption.
    packed: u64,
}

/// A frame holds another block than the one that was backed up.
#[derive(Debug, thiserror::Error)]
#[error("the block at byte {0} of its content is not the one that was backed up")]
struct OtherBlock(u64);

impl<'a> Pieces<'a> {
    /// Reads the backup's index. Parts are opened when something of them is read.
    ///
    /// The index is read as a whole: a thread that is to read a part meanwhile opens the pieces before.
    ///
    /// # Errors
    /// [`reader::Error`]; `NoIndex` for a backup of an earlier version.
    pub fn open(
        repository: &'a Repository,
        backup: &'a BackupEntry,
    ) -> Result<Self, reader::Error> {
        let index = reader::read_index(repository, backup)?;
        let mut parts = Vec::new();
        for (part, stored) in index.parts.iter().zip(&backup.parts) {
            let object = object_of(repository, backup, stored)?;
            parts.push(Part {
                object: repository.ranged(object, stored.stored_bytes),
                starts: starts(part),
            });
        }
        Ok(Self {
            repository,
            index,
            parts,
            cache: Cache::default(),
        })
    }

    /// Where everything is.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// A reader of the file's content; `None` when the backup has no such file. No request is sent before it is read.
    ///
    /// Nothing is checked but that each block is the one that was backed up: a file that is read whole can be compared
    /// with the manifest besides.
    pub fn file(&self, path: &Path) -> Option<PieceReader<'_>> {
        let (number, place) = self.index.place(path)?;
        Some(PieceReader {
            pieces: self,
            number,
            part: self.parts.get(number)?,
            position: place.offset,
            end: place.offset + place.size_bytes,
            blocks: VecDeque::new(),
            first_frame: 0,
            stride: 0,
        })
    }

    /// What the index says of a file.
    pub fn find(&self, path: &Path) -> Option<&FilePlace> {
        self.index.place(path).map(|(_, place)| place)
    }

    /// The frames that hold nothing but bytes of the file, and where in the file each begins.
    pub fn frames_within(&self, path: &Path) -> Vec<(u64, &Frame)> {
        let Some((part, place)) = self.index.place(path) else {
            return Vec::new();
        };
        let starts = self.parts.get(part).map(|part| part.starts.as_slice());
        let frames = self
            .index
            .parts
            .get(part)
            .map(|part| part.frames.as_slice());
        let all = starts
            .unwrap_or_default()
            .iter()
            .zip(frames.unwrap_or_default());
        let end = place.offset + place.size_bytes;
        all.skip_while(|(start, _)| start.content < place.offset)
            .take_while(|(start, frame)| start.content + u64::from(frame.content_bytes) <= end)
            .map(|(start, frame)| (start.content - place.offset, frame))
            .collect()
    }

    /// The block of the first frame in `frames`, and those of more of them if the frame has to be fetched.
    fn blocks(&self, part: usize, frames: Range<usize>) -> Result<Vec<Bytes>, repository::Error> {
        let first = frames.start;
        let loading = match self.cache.find(part, self.one_request(part, frames)) {
            Found::Block(block) => return Ok(vec![block]),
            Found::Loading(loading) => loading,
        };
        let all = self.load(part, loading.frames.clone());
        // What was fetched ahead may never be wanted, and what is wrong with it is said when it is.
        let blocks = match all {
            Err(damaged) if loading.frames.len() > 1 && damaged.is_of_the_object() => {
                self.load(part, first..first + 1)
            }
            all => all,
        }?;
        loading.cache_blocks(&blocks);
        Ok(blocks)
    }

    /// So many of `frames` as one request may ask for.
    fn one_request(&self, part: usize, frames: Range<usize>) -> Range<usize> {
        let indexed = self
            .index
            .parts
            .get(part)
            .map(|part| part.frames.as_slice());
        let indexed = indexed.and_then(|all| all.get(frames.clone()));
        let lengths = indexed.unwrap_or_default().iter().scan(0, |sum, frame| {
            *sum += u64::from(frame.packed_bytes);
            Some(*sum)
        });
        let fit = lengths.take_while(|sum| *sum <= MOST_STORED_BYTES);
        let count = fit.take(MOST_FRAMES).count().max(1);
        frames.start..frames.start + count
    }

    /// Fetches frames and opens them.
    fn load(&self, number: usize, frames: Range<usize>) -> Result<Vec<Bytes>, repository::Error> {
        let part = self.parts.get(number);
        let indexed = self
            .index
            .parts
            .get(number)
            .and_then(|part| part.frames.get(frames.clone()));
        let starts = part.and_then(|part| part.starts.get(frames));
        let (Some(Part { object, .. }), Some(frames), Some(starts)) = (part, indexed, starts)
        else {
            return Ok(Vec::new());
        };
        let begin = starts.first().copied().unwrap_or_default().packed;
        let length: u64 = frames
            .iter()
            .map(|frame| u64::from(frame.packed_bytes))
            .sum();
        let packed = object
            .packed(&(begin..begin + length))
            .map_err(|error| match error {
                OpenError::Locked(reason) => self.repository.locked(object.key(), reason),
                OpenError::Unreadable(source) => self.repository.damaged(object.key(), source),
            })?;
        let mut rest = packed.as_ref();
        let opened = frames.iter().zip(starts).map(|(frame, start)| {
            let count = usize::try_from(frame.packed_bytes).unwrap_or(usize::MAX);
            let (packed, after) = rest.split_at(count.min(rest.len()));
            rest = after;
            self.unpacked(object, packed, frame, start.content)
        });
        opened.collect()
    }

    /// The block that a frame holds, if it is the one that was backed up.
    fn unpacked(
        &self,
        object: &Ranged,
        packed: &[u8],
        frame: &Frame,
        content_at: u64,
    ) -> Result<Bytes, repository::Error> {
        let length = usize::try_from(frame.content_bytes).unwrap_or(usize::MAX);
        let block = open_frame(object.packing().codec, packed, length)
            .map_err(|source| self.repository.damaged(object.key(), source))?;
        if block.len() == length && frame.digest.is_of(&block) {
            return Ok(block.into());
        }
        let finding = "its content is not what its index says";
        let source = OtherBlock(content_at);
        Err(self.repository.unfit(object.key(), finding, source))
    }
}

fn starts(part: &PartIndex) -> Vec<Start> {
    let next = |at: &mut Start, frame: &Frame| {
        let start = *at;
        at.content += u64::from(frame.content_bytes);
        at.packed += u64::from(frame.packed_bytes);
        Some(start)
    };
    part.frames.iter().scan(Start::default(), next).collect()
}

/// A file's content, from its beginning.
///
/// An [`io::Error`] holds the store's error, or the [`repository::Error`] that says what is wrong with the part;
/// [`PieceReader::error`] takes it out.
pub struct PieceReader<'a> {
    pieces: &'a Pieces<'a>,
    number: usize,
    part: &'a Part,
    /// In the part's content.
    position: u64,
    end: u64,
    /// Blocks at hand, one after the other.
    blocks: VecDeque<Bytes>,
    /// The frame of the first of them, or the one that follows those that were there.
    first_frame: usize,
    /// Frames that were last asked for at a time.
    stride: usize,
}

impl PieceReader<'_> {
    /// Passes over `count` bytes, or what is left, without fetching them.
    pub fn skip(&mut self, count: u64) {
        self.position += count.min(self.left_bytes());
    }

    /// Bytes from here to the file's end.
    pub fn left_bytes(&self) -> u64 {
        self.end - self.position
    }

    /// What it was that reading this file failed of.
    pub fn error(&self, source: io::Error) -> repository::Error {
        let key = self.part.object.key();
        self.pieces.repository.damaged(key, source)
    }

    /// What is at hand from the position on, at least a byte; something must be left of the file.
    fn available(&mut self) -> Result<Bytes, repository::Error> {
        let frame = self.part.frame_at(self.position);
        while self.first_frame < frame && self.blocks.pop_front().is_some() {
            self.first_frame += 1;
        }
        if self.blocks.is_empty() {
            self.fetch(frame)?;
        }
        let mut bytes = self.blocks.front().cloned().unwrap_or_default();
        let start = self.part.starts.get(frame).copied().unwrap_or_default();
        let passed = usize::try_from(self.position - start.content).unwrap_or(usize::MAX);
        bytes.advance(passed.min(bytes.len()));
        bytes.truncate(usize::try_from(self.left_bytes()).unwrap_or(usize::MAX));
        Ok(bytes)
    }

    /// Fetches the block of `frame`, and twice as many as the last time where the reader goes on where it was.
    fn fetch(&mut self, frame: usize) -> Result<(), repository::Error> {
        let stride = if self.first_frame == frame {
            (self.stride * 2).clamp(1, MOST_FRAMES)
        } else {
            1
        };
        let last = self.part.frame_at(self.end - 1);
        let frames = frame..(frame + stride).min(last + 1);
        self.blocks = self.pieces.blocks(self.number, frames)?.into();
        (self.first_frame, self.stride) = (frame, stride);
        Ok(())
    }
}

impl Read for PieceReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left_bytes() == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let bytes = self.available().map_err(|error| match error {
            repository::Error::Object(ObjectError::Store(error)) => io::Error::other(error),
            error => io::Error::other(error),
        })?;
        let count = bytes.as_ref().read(buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}
