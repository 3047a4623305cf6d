//! The tail: what is stored of a segment that was being received, before the segment is archived.
//!
//! ```text
//! run ─▶ pieces, one object each            0─────100──180───┤ found by name, longest first
//!     └▶ or one log that grows, in a directory: entry, entry, entry, zeros
//! ```
//!
//! A run stores one segment from its begin on, without a hole. Runs are never mixed: two of them may be of two servers. Each
//! piece checks itself by its trailer, and an entry of a log by its header too. What is not whole was never acknowledged, so
//! that it is passed over.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crc_fast::CrcAlgorithm;
use jiff::Timestamp;
use walhalla_postgres::{Lsn, SegmentName, SegmentSize};
use walhalla_providers::{Error as StoreError, ErrorKind, ObjectInfo};

use super::layout::{Key, Layout, Object, RunId, TailObject, TailPart};
use super::{Error, Repository};
use crate::failure::{Class, Failure as _};
use crate::pipeline::{Content, ObjectReader, OpenError, Packing, Trailed, plain, streams, unpack};

/// Longest content of a piece, and of an entry of a log.
pub const PIECE_BYTES: u32 = 8 << 20;
/// Longest entry of a log as it is stored; packing makes nothing much longer.
const ENTRY_LIMIT_BYTES: u32 = 2 * PIECE_BYTES;
/// Length of what stands before each entry of a log.
const ENTRY_HEADER_BYTES: usize = 32;
/// A skippable frame of LZ4 and Zstandard, with 24 bytes.
const ENTRY_BEGIN: [u8; 16] = *b"\x5D\x2A\x4D\x18\x18\0\0\0wal-tail";

/// A stored object of a tail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailFile {
    /// What it holds.
    pub what: TailObject,
    /// Where and how it is stored.
    pub object: Object,
    /// Length of the stored bytes.
    pub stored_bytes: u64,
    /// When the store received it, by the store's clock.
    pub modified: Timestamp,
}

impl TailFile {
    /// What a listing tells of an object; `None` of one that is no part of a tail.
    pub(crate) fn of(layout: &Layout, info: &ObjectInfo) -> Option<Self> {
        let Key::Tail(what, packing) = layout.parse(&info.key) else {
            return None;
        };
        Some(Self::new(what, packing, info))
    }

    pub(super) fn new(what: TailObject, packing: Packing, info: &ObjectInfo) -> Self {
        let object = Object {
            key: info.key.clone(),
            packing,
        };
        Self {
            what,
            object,
            stored_bytes: info.size_bytes,
            modified: info.modified,
        }
    }
}

/// A segment as far as it was received: WAL up to a position, and zeros after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    /// The segment.
    pub segment: SegmentName,
    /// Its length.
    pub size: SegmentSize,
    /// The objects of one run.
    pub files: Vec<TailFile>,
    /// Where the last whole record ends.
    pub valid_until: Lsn,
    /// How much of the segment that is.
    pub valid_bytes: u64,
}

impl Tail {
    /// Length of its objects in the store.
    pub fn stored_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.stored_bytes).sum()
    }

    /// When the newest of them was stored.
    pub fn modified(&self) -> Timestamp {
        let times = self.files.iter().map(|file| file.modified);
        times.max().unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// An object that stands for it, for messages.
    pub fn object(&self) -> Option<&Object> {
        self.files.last().map(|file| &file.object)
    }
}

/// What is stored of a timeline's unfinished segments.
pub type TailFiles = BTreeMap<SegmentName, Vec<TailFile>>;

/// What stands before `packed`, the bytes of a piece, in a log.
pub fn entry_header(from: u32, to: u32, packed: &[u8]) -> [u8; ENTRY_HEADER_BYTES] {
    let length = u32::try_from(packed.len()).expect("a piece is much shorter than 4 GiB");
    let mut header = [0; ENTRY_HEADER_BYTES];
    let fields = [from, to, length].map(u32::to_le_bytes).concat();
    let mut crc = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
    crc.update(&fields);
    crc.update(packed);
    let crc = u32::try_from(crc.finalize()).expect("a CRC of 32 bits");
    let all = [&ENTRY_BEGIN[..], &fields, &crc.to_le_bytes()].concat();
    header.copy_from_slice(&all);
    header
}

impl Repository {
    /// What is stored of one unfinished segment.
    ///
    /// # Errors
    /// The store's.
    pub fn tail_files(&self, segment: SegmentName) -> Result<Vec<TailFile>, StoreError> {
        let folder = self.layout.tail_folder(segment);
        let listed = self.session.list(&folder, None)?;
        let files = listed.iter();
        Ok(files
            .filter_map(|info| TailFile::of(&self.layout, info))
            .collect())
    }

    /// Reads what a run stored, from the segment's begin on. `files` are all objects of the run.
    pub fn read_run(&self, files: &[TailFile]) -> RunReader {
        let log = files.iter().find(|file| file.what.part == TailPart::Log);
        let source = match log {
            Some(log) => Source::Log(LogReader {
                file: log.clone(),
                input: None,
            }),
            None => Source::Pieces(PieceReader {
                files: files.to_vec(),
                unusable: BTreeSet::new(),
            }),
        };
        RunReader {
            repository: self.clone(),
            at: 0,
            source,
            damage: None,
        }
    }

    /// The content of a segment as far as it was received: all that is valid of it, and zeros to its end.
    ///
    /// # Errors
    /// Reading it fails as soon as it is not what it was when it was looked at.
    pub fn open_tail(&self, tail: &Arc<Tail>) -> Result<Content, Error> {
        let reader = TailReader {
            run: self.read_run(&tail.files),
            chunk: Cursor::default(),
            tail: Arc::clone(tail),
            given: 0,
        };
        let content = plain(io::BufReader::new(reader));
        content.map_err(|source| match tail.object() {
            Some(object) => self.damaged(&object.key, source),
            None => self.nothing_of(tail),
        })
    }

    /// The content of a piece that is `packed` as its object would be.
    fn unpack_piece(
        &self,
        what: TailObject,
        packing: Packing,
        packed: Vec<u8>,
    ) -> Result<Vec<u8>, Error> {
        let TailPart::Piece(from, to) = what.part else {
            return Ok(Vec::new());
        };
        let object = self.layout.tail(what, packing);
        let found: Arc<AtomicBool> = Arc::default();
        let trailed = Trailed {
            name: object.name(),
            found: Arc::clone(&found),
        };
        let content = unpack(
            Cursor::new(packed),
            packing,
            &self.identities,
            Some(trailed),
        );
        let content = content.map_err(|error| match error {
            OpenError::Locked(reason) => self.locked(&object.key, reason),
            OpenError::Unreadable(source) => self.damaged(&object.key, source),
        })?;
        let mut bytes = Vec::new();
        let limit = u64::from(PIECE_BYTES) + 1;
        content
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(|source| self.damaged(&object.key, source))?;
        if !found.load(Ordering::Relaxed) {
            let reason = "it was cut while it was stored, or something else wrote it";
            return Err(self.unfit(&object.key, "it has no checksum", reason));
        }
        if bytes.len() as u64 != u64::from(to.saturating_sub(from)) {
            let reason = format!("{} bytes", bytes.len());
            return Err(self.unfit(
                &object.key,
                "it has not the length that its name tells",
                reason,
            ));
        }
        Ok(bytes)
    }

    fn nothing_of(&self, tail: &Tail) -> Error {
        let folder = self.layout.tail_folder(tail.segment);
        let object = format!("{}/{folder}", self.session.url());
        StoreError::new(
            walhalla_providers::Operation::Get,
            object,
            ErrorKind::NotFound,
        )
        .into()
    }
}

/// Files by the runs that stored them.
pub fn by_run(files: &[TailFile]) -> BTreeMap<RunId, Vec<TailFile>> {
    let mut runs: BTreeMap<RunId, Vec<TailFile>> = BTreeMap::new();
    for file in files {
        runs.entry(file.what.run).or_default().push(file.clone());
    }
    runs
}

/// The piece that leads furthest on from `at`, of those that are usable.
fn piece_at<'a>(
    files: &'a [TailFile],
    unusable: &BTreeSet<TailObject>,
    at: u32,
) -> Option<(&'a TailFile, u32)> {
    let leads_on = |file: &'a TailFile| match file.what.part {
        TailPart::Piece(from, to) if from <= at && at < to => Some((file, to)),
        TailPart::Piece(..) | TailPart::Log => None,
    };
    let usable = files.iter().filter(|file| !unusable.contains(&file.what));
    usable.filter_map(leads_on).max_by_key(|(_, to)| *to)
}

/// The bytes of a run, in order.
pub struct RunReader {
    repository: Repository,
    at: u32,
    source: Source,
    damage: Option<RunDamage>,
}

/// Why a run ends where it does, if it ends in something that is not whole.
#[derive(Debug)]
pub enum RunDamage {
    /// What was written last when its writer died, it seems. Nothing of it was acknowledged.
    Torn(Error),
    /// An object that was whole once.
    Damaged(Error),
}

impl RunDamage {
    /// What is wrong.
    pub fn error(&self) -> &Error {
        let (Self::Torn(error) | Self::Damaged(error)) = self;
        error
    }
}

enum Source {
    Pieces(PieceReader),
    Log(LogReader),
}

struct PieceReader {
    files: Vec<TailFile>,
    unusable: BTreeSet<TailObject>,
}

struct LogReader {
    file: TailFile,
    input: Option<ObjectReader>,
}

impl RunReader {
    /// The next bytes; `None` where nothing that is whole goes on.
    ///
    /// # Errors
    /// Of an object that is not there any more, or that cannot be opened here, and the store's. What is damaged ends the run.
    pub fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let read = match &mut self.source {
            Source::Pieces(pieces) => pieces.next(&self.repository, self.at, &mut self.damage)?,
            Source::Log(log) => log.next(&self.repository, self.at, &mut self.damage)?,
        };
        if let Some(bytes) = &read {
            self.at = self
                .at
                .saturating_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        }
        Ok(read)
    }

    /// What is wrong with the last object that could not be used, if there was one.
    pub fn damage(&mut self) -> Option<RunDamage> {
        self.damage.take()
    }
}

impl PieceReader {
    fn next(
        &mut self,
        repository: &Repository,
        at: u32,
        damage: &mut Option<RunDamage>,
    ) -> Result<Option<Vec<u8>>, Error> {
        while let Some((file, _)) = piece_at(&self.files, &self.unusable, at) {
            match piece(repository, file, at) {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) if error.class() == Class::Damaged => {
                    *damage = Some(RunDamage::Damaged(error));
                    let what = file.what;
                    self.unusable.insert(what);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// The bytes of a piece from `at` on.
fn piece(repository: &Repository, file: &TailFile, at: u32) -> Result<Vec<u8>, Error> {
    let mut packed = Vec::new();
    let stored = ObjectReader::open(&repository.session, &file.object.key)?;
    stored
        .take(u64::from(ENTRY_LIMIT_BYTES))
        .read_to_end(&mut packed)
        .map_err(|source| repository.damaged(&file.object.key, source))?;
    let bytes = repository.unpack_piece(file.what, file.object.packing, packed)?;
    Ok(from_place(file.what.part, bytes, at))
}

/// What of a part's bytes lies at and after `at`.
fn from_place(part: TailPart, mut bytes: Vec<u8>, at: u32) -> Vec<u8> {
    if let TailPart::Piece(from, _) = part {
        let before = usize::try_from(at.saturating_sub(from)).unwrap_or(usize::MAX);
        bytes.drain(..before.min(bytes.len()));
    }
    bytes
}

impl LogReader {
    fn next(
        &mut self,
        repository: &Repository,
        at: u32,
        damage: &mut Option<RunDamage>,
    ) -> Result<Option<Vec<u8>>, Error> {
        let key = &self.file.object.key;
        let input = match &mut self.input {
            Some(input) => input,
            none => none.insert(ObjectReader::open(&repository.session, key)?),
        };
        let read = read_entry(input).map_err(|source| repository.damaged(key, source))?;
        let (part, packed) = match read {
            Entry::Whole(part, packed) => (part, packed),
            Entry::End => return Ok(None),
            Entry::Torn => {
                let follows = has_entry(input).map_err(|source| repository.damaged(key, source))?;
                let reason = "an entry in it is not whole";
                let error = repository.unfit(key, "its end cannot be read", reason);
                *damage = Some(if follows {
                    RunDamage::Damaged(error)
                } else {
                    RunDamage::Torn(error)
                });
                return Ok(None);
            }
        };
        let TailPart::Piece(from, to) = part else {
            return Ok(None);
        };
        let what = TailObject {
            part,
            ..self.file.what
        };
        if from > at || to <= at {
            let reason = format!("an entry for {from} to {to} stands where {at} is due");
            let error = repository.unfit(key, "its entries do not follow one another", reason);
            *damage = Some(RunDamage::Damaged(error));
            return Ok(None);
        }
        match repository.unpack_piece(what, self.file.object.packing, packed) {
            Ok(bytes) => Ok(Some(from_place(part, bytes, at))),
            Err(error) if error.class() == Class::Damaged => {
                *damage = Some(RunDamage::Damaged(error));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// What stands next in a log.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    /// A piece and its packed bytes.
    Whole(TailPart, Vec<u8>),
    /// Nothing, or the zeros behind the last entry.
    End,
    /// Something that is no whole entry: added by a writer that died, or damaged since.
    Torn,
}

/// Whether an entry begins in what is left of a log.
fn has_entry(input: &mut impl BufRead) -> io::Result<bool> {
    let mut kept = Vec::new();
    loop {
        let chunk = input.fill_buf()?;
        if chunk.is_empty() {
            return Ok(false);
        }
        kept.extend_from_slice(chunk);
        let count = chunk.len();
        input.consume(count);
        if kept
            .windows(ENTRY_BEGIN.len())
            .any(|begin| begin == ENTRY_BEGIN)
        {
            return Ok(true);
        }
        let rest = kept.len().saturating_sub(ENTRY_BEGIN.len());
        kept.drain(..rest);
    }
}

fn read_entry(input: &mut impl BufRead) -> io::Result<Entry> {
    let mut header = [0; ENTRY_HEADER_BYTES];
    let read = streams::read_full(input, &mut header)?.len();
    if read == 0 || header.iter().all(|byte| *byte == 0) {
        return Ok(Entry::End);
    }
    let number = |at: usize| {
        let bytes = header.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let fields = (number(16), number(20), number(24));
    let (Some(from), Some(to), Some(length)) = fields else {
        return Ok(Entry::Torn);
    };
    let fits = header.starts_with(&ENTRY_BEGIN) && read == ENTRY_HEADER_BYTES;
    if !fits || from >= to || to - from > PIECE_BYTES || length > ENTRY_LIMIT_BYTES {
        return Ok(Entry::Torn);
    }
    let mut packed = Vec::new();
    input.take(u64::from(length)).read_to_end(&mut packed)?;
    if packed.len() as u64 == u64::from(length) && entry_header(from, to, &packed) == header {
        Ok(Entry::Whole(TailPart::Piece(from, to), packed))
    } else {
        Ok(Entry::Torn)
    }
}

/// See [`Repository::open_tail`].
struct TailReader {
    run: RunReader,
    chunk: Cursor<Vec<u8>>,
    tail: Arc<Tail>,
    given: u64,
}

impl Read for TailReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Tail {
            size, valid_bytes, ..
        } = *self.tail;
        let left = if self.given < valid_bytes {
            valid_bytes - self.given
        } else {
            size.bytes() - self.given.min(size.bytes())
        };
        let most = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let room = buffer.split_at_mut(most).0;
        let count = if self.given < valid_bytes {
            self.read_wal(room)?
        } else {
            room.fill(0);
            room.len()
        };
        self.given += count as u64;
        Ok(count)
    }
}

impl TailReader {
    fn read_wal(&mut self, room: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.chunk.read(room)?;
            if count > 0 || room.is_empty() {
                return Ok(count);
            }
            let next = self.run.next_chunk().map_err(io::Error::other)?;
            let Some(next) = next else {
                let changed = match self.run.damage() {
                    Some(RunDamage::Torn(error) | RunDamage::Damaged(error)) => error,
                    None => self.run.repository.nothing_of(&self.tail),
                };
                return Err(io::Error::other(changed));
            };
            self.chunk = Cursor::new(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::Packing;

    const SEGMENT: &str = "000000010000000000000003";

    fn piece(from: u32, to: u32) -> TailFile {
        let what = TailObject {
            segment: SEGMENT.parse().unwrap(),
            run: "0123456789abcdef".parse().unwrap(),
            part: TailPart::Piece(from, to),
        };
        let layout = super::super::Layout::new("7710533931497189584".parse().unwrap());
        TailFile {
            what,
            object: layout.tail(what, Packing::NONE),
            stored_bytes: 1,
            modified: Timestamp::UNIX_EPOCH,
        }
    }

    /// How far pieces lead, of which some are unusable.
    fn reach(files: &[TailFile], unusable: &BTreeSet<TailObject>) -> u32 {
        let mut at = 0;
        while let Some((_, to)) = piece_at(files, unusable, at) {
            assert!(to > at);
            at = to;
        }
        at
    }

    #[test]
    fn pieces_lead_as_far_as_any_choice_of_them_leads() {
        for _ in 0..2000 {
            let end = fastrand::u32(1..40);
            let files: Vec<TailFile> = (0..fastrand::usize(0..12))
                .map(|_| {
                    let from = fastrand::u32(0..end);
                    piece(from, fastrand::u32(from + 1..=end))
                })
                .collect();
            let (usable, unusable): (Vec<_>, Vec<_>) =
                files.iter().cloned().partition(|_| fastrand::u8(..) > 50);
            let unusable: BTreeSet<TailObject> = { unusable.iter() }
                .map(|file| file.what)
                .filter(|what| usable.iter().all(|file| file.what != *what))
                .collect();
            // Every byte up to where the first one is in no piece.
            let has = |at: &u32| {
                usable.iter().any(|file| match file.what.part {
                    TailPart::Piece(from, to) => from <= *at && at < &to,
                    TailPart::Log => false,
                })
            };
            let expected = (0..end).take_while(has).count();
            assert_eq!(reach(&files, &unusable) as usize, expected);
        }
    }

    #[test]
    fn a_log_is_read_up_to_where_it_is_whole() {
        let entries = [(0, 100), (100, 180), (180, 181)];
        let bodies: Vec<Vec<u8>> = (1..4)
            .map(|body| vec![body; 50 * usize::from(body)])
            .collect();
        let mut log = Vec::new();
        let mut ends = vec![0];
        for ((from, to), body) in entries.iter().zip(&bodies) {
            log.extend(entry_header(*from, *to, body));
            log.extend(body);
            ends.push(log.len());
        }
        let whole = log.len();
        log.resize(whole + 500, 0);
        let read = |log: &[u8]| {
            let (mut input, mut count) = (log, 0);
            loop {
                match read_entry(&mut input).unwrap() {
                    Entry::Whole(part, body) => {
                        let (from, to) = entries[count];
                        assert_eq!((part, &body), (TailPart::Piece(from, to), &bodies[count]));
                        count += 1;
                    }
                    Entry::End => return (count, false),
                    Entry::Torn => return (count, true),
                }
            }
        };
        assert_eq!(read(&log), (3, false));
        for length in 0..whole {
            let within = ends
                .iter()
                .filter(|end| **end > 0 && **end <= length)
                .count();
            assert_eq!(
                read(&log[..length]),
                (within, !ends.contains(&length)),
                "{length}"
            );
            let mut zeros = log[..length].to_vec();
            zeros.resize(log.len(), 0);
            assert_eq!(read(&zeros).0, within, "zeros after {length}");
            let mut changed = log.clone();
            changed[length] ^= 4;
            let before = ends
                .iter()
                .filter(|end| **end > 0 && **end <= length)
                .count();
            assert_eq!(read(&changed), (before, true), "changed at {length}");
        }
        let mut rest = &log[1..];
        assert!(has_entry(&mut rest).unwrap());
        let mut rest = &log[ends[2] + 1..];
        assert!(!has_entry(&mut rest).unwrap());
    }
}
