//! The first and the last frame of an archived WAL file: a checksum over the object's name and everything before it.
//!
//! Codecs leave bits of their own headers unchecked, and a timeline history does not say whose it is.
//! Both frames are skippable ones (LZ4 frame format, "Skippable Frames"; RFC 8878, 3.1.2), which `lz4 -d` and
//! `zstd -d` pass over:
//!
//! ```text
//! magic 0x184D2A5E │ length 16 │ "walhalla-blake3\n"                                     the first
//! magic 0x184D2A5E │ length 48 │ "walhalla-blake3\n" │ BLAKE3 of NAME "\n" and all before    the last, the trailer
//!       4 bytes         4              16                     32
//! ```
//!
//! NAME is the object's key below the store without the suffixes of its packing. The first frame announces the last one,
//! so that a reader knows what to compute, and what was cut is noticed wherever the cut is.
//!
//! Earlier versions wrote no first frame, and a trailer with `walhalla-sha256` and a SHA-256: it is read. An object without
//! either, written by stock tools, is read too.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

/// Length of the whole trailer.
pub const TRAILER_BYTES: usize = 56;
const FIRST_BYTES: usize = 24;
const MAGIC: [u8; 4] = 0x184D_2A5E_u32.to_le_bytes();
const FIRST_LENGTH: [u8; 4] = 16_u32.to_le_bytes();
const LENGTH: [u8; 4] = 48_u32.to_le_bytes();
const MARK: &[u8; 16] = b"walhalla-blake3\n";
const EARLIER_MARK: &[u8; 16] = b"walhalla-sha256\n";
/// Bytes that are read at a time.
const BUFFER_BYTES: usize = 64 << 10;

/// The checksum in the making.
#[derive(Clone)]
pub(super) enum Trailer {
    /// As it is written.
    Blake3(Box<blake3::Hasher>),
    /// As earlier versions wrote it.
    Sha256(Sha256),
}

/// The frame that announces a trailer.
pub(super) fn first_frame() -> Vec<u8> {
    [&MAGIC[..], &FIRST_LENGTH, MARK].concat()
}

impl Trailer {
    /// The trailer of the object `name`, which begins with [`first_frame`].
    pub(super) fn new(name: &str) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(name.as_bytes()).update(b"\n");
        hash.update(&first_frame());
        Self::Blake3(Box::new(hash))
    }

    /// The trailer of an object without a first frame.
    fn earlier(name: &str) -> Self {
        Self::Sha256(Sha256::new().chain_update(name).chain_update("\n"))
    }

    /// Takes in bytes of the object.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Blake3(hash) => drop(hash.update(bytes)),
            Self::Sha256(hash) => hash.update(bytes),
        }
    }

    /// The frame.
    pub(super) fn frame(self) -> Vec<u8> {
        let (mark, checksum): (_, [u8; 32]) = match self {
            Self::Blake3(hash) => (MARK, hash.finalize().into()),
            Self::Sha256(hash) => (EARLIER_MARK, hash.finalize().into()),
        };
        [&MAGIC[..], &LENGTH, mark, &checksum].concat()
    }
}

/// The checksum in a trailer; `None` when `frame` is none.
pub fn checksum(frame: &[u8]) -> Option<[u8; 32]> {
    let frame = frame.strip_prefix(&MAGIC)?.strip_prefix(&LENGTH)?;
    let marked = [MARK, EARLIER_MARK].into_iter();
    let mut checksums = marked.filter_map(|mark| frame.strip_prefix(mark));
    checksums.next()?.try_into().ok()
}

/// A reader that keeps the trailer back and checks it.
pub(super) struct Checked<R> {
    input: R,
    state: State,
    found: Arc<AtomicBool>,
    buffer: Vec<u8>,
    /// What was handed out of the buffer, and what may be.
    taken: usize,
    ready: usize,
}

enum State {
    /// Nothing was read of the object of this name.
    Begun(String),
    Reading(Trailer),
    Ended,
    /// It is not sound, and nothing more of it is handed out: `lz4_flex` goes on after some errors.
    Failed(&'static str),
}

impl<R: Read> Checked<R> {
    /// A reader of the object `name`; tells `found` at the end whether there was a trailer.
    pub(super) fn new(input: R, name: &str, found: Arc<AtomicBool>) -> Self {
        Self {
            input,
            found,
            state: State::Begun(name.to_owned()),
            buffer: Vec::new(),
            taken: 0,
            ready: 0,
        }
    }

    /// Reads on; all but the last bytes, which may be a trailer, become ready.
    fn advance(&mut self) -> io::Result<()> {
        self.buffer.drain(..self.ready);
        (self.taken, self.ready) = (0, 0);
        let room = BUFFER_BYTES as u64;
        let count = self
            .input
            .by_ref()
            .take(room)
            .read_to_end(&mut self.buffer)?;
        let mut trailer = match std::mem::replace(&mut self.state, State::Ended) {
            State::Begun(name) if self.buffer.starts_with(&first_frame()) => {
                self.buffer.drain(..FIRST_BYTES);
                Trailer::new(&name)
            }
            State::Begun(name) => Trailer::earlier(&name),
            State::Reading(trailer) => trailer,
            State::Ended => return Ok(()),
            State::Failed(reason) => return self.fail(reason),
        };
        self.ready = self.buffer.len().saturating_sub(TRAILER_BYTES);
        trailer.update(self.buffer.get(..self.ready).unwrap_or_default());
        if count < BUFFER_BYTES {
            return self.end(trailer);
        }
        self.state = State::Reading(trailer);
        Ok(())
    }

    fn end(&mut self, trailer: Trailer) -> io::Result<()> {
        let is_announced = matches!(trailer, Trailer::Blake3(_));
        let rest = self.buffer.get(self.ready..).unwrap_or_default();
        if rest == trailer.frame().as_slice() {
            self.buffer.truncate(self.ready);
            self.found.store(true, Ordering::Relaxed);
            Ok(())
        } else if is_meant_as_trailer(rest) {
            self.fail("its checksum does not fit its content and name: bits have changed, or it is another object's")
        } else if is_announced {
            self.fail("it was cut: it announces a checksum at its end, and there is none")
        } else {
            self.ready = self.buffer.len();
            Ok(())
        }
    }

    fn fail(&mut self, reason: &'static str) -> io::Result<()> {
        self.state = State::Failed(reason);
        self.ready = self.taken;
        Err(io::Error::new(io::ErrorKind::InvalidData, reason))
    }
}

/// Whether any field of a trailer is there, so that changed bits in one of them do not make it content.
fn is_meant_as_trailer(rest: &[u8]) -> bool {
    rest.len() == TRAILER_BYTES
        && (rest.starts_with(&MAGIC)
            || rest.get(4..8) == Some(&LENGTH)
            || [Some(&MARK[..]), Some(EARLIER_MARK)].contains(&rest.get(8..24)))
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl<R: Read> BufRead for Checked<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.taken == self.ready && !matches!(self.state, State::Ended) {
            self.advance()?;
        }
        Ok(self.buffer.get(self.taken..self.ready).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        self.taken = (self.taken + count).min(self.ready);
    }
}

#[cfg(test)]
mod tests {
    use super::super::codec::{Checksums, Compression, Decoder, Encoder};
    use super::*;

    fn with_trailer(name: &str, content: &[u8]) -> Vec<u8> {
        let mut trailer = Trailer::new(name);
        trailer.update(content);
        [&first_frame(), content, &trailer.frame()].concat()
    }

    /// As earlier versions wrote it.
    fn with_sha256(name: &str, content: &[u8]) -> Vec<u8> {
        let mut trailer = Trailer::earlier(name);
        trailer.update(content);
        [content, &trailer.frame()].concat()
    }

    fn read(name: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Checked::new(bytes, name, Arc::default())
            .read_to_end(&mut out)
            .map(|_| out)
    }

    #[test]
    fn content_of_any_length_comes_back_without_its_trailer() {
        for length in [0, 1, 55, 56, 57, BUFFER_BYTES - 56, BUFFER_BYTES, 200_000] {
            let content: Vec<u8> = (0..length).map(|_| fastrand::u8(..)).collect();
            assert_eq!(read("a", &with_trailer("a", &content)).unwrap(), content);
            assert_eq!(read("a", &with_sha256("a", &content)).unwrap(), content);
            assert_eq!(read("a", &content).unwrap(), content);
        }
    }

    #[test]
    fn every_changed_bit_and_another_name_are_noticed() {
        for stored in [with_trailer("a", b"content"), with_sha256("a", b"content")] {
            assert!(read("b", &stored).is_err());
            for bit in 0..stored.len() * 8 {
                let mut damaged = stored.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(read("a", &damaged).is_err(), "bit {bit}");
            }
        }
    }

    /// The cut where all but the last bytes were handed out before, so that a decoder meets the error between its blocks.
    #[test]
    fn a_cut_at_the_end_of_what_is_read_at_a_time_is_noticed() {
        for trailing in 1..=TRAILER_BYTES + 8 {
            let content: Vec<u8> = (0..2 * BUFFER_BYTES).map(|_| fastrand::u8(..)).collect();
            let frame_of = |bytes: usize| {
                let mut encoder = Encoder::new(Compression::Lz4, Checksums::InFrames).unwrap();
                let framed = encoder.frame(content[..bytes].to_vec(), Vec::new());
                framed.unwrap().0
            };
            // A frame of noise is longer than its content, always by as much.
            let more = frame_of(BUFFER_BYTES).len() - BUFFER_BYTES;
            let whole = 2 * BUFFER_BYTES + trailing - FIRST_BYTES - TRAILER_BYTES;
            let stored = with_trailer("a", &frame_of(whole - more));
            let cut = stored.split_at(2 * BUFFER_BYTES).0;
            assert_eq!(stored.len() - cut.len(), trailing);
            let mut content = Decoder::new(
                Compression::Lz4.codec(),
                Checked::new(cut, "a", Arc::default()),
            )
            .unwrap();
            let error = content.read_to_end(&mut Vec::new()).unwrap_err();
            assert!(content.read_to_end(&mut Vec::new()).is_err(), "{error}");
        }
    }

    #[test]
    fn every_cut_is_noticed_but_that_of_a_trailer_that_was_not_announced() {
        let history = b"1\t0/16000000\tno recovery target specified\n".to_vec();
        let contents = [Vec::new(), history, vec![0; 100_000]];
        let packings = [Compression::Lz4, Compression::Zstd(3)];
        for (compression, content) in packings
            .iter()
            .flat_map(|one| contents.iter().map(move |content| (*one, content)))
        {
            let (frame, _) = Encoder::new(compression, Checksums::InFrames)
                .unwrap()
                .frame(content.clone(), Vec::new())
                .unwrap();
            for (stored, unnoticed) in [
                (with_trailer("a", &frame), None),
                (with_sha256("a", &frame), Some(frame.len())),
            ] {
                for length in 0..stored.len() {
                    let input = Checked::new(stored.split_at(length).0, "a", Arc::default());
                    let read = Decoder::new(compression.codec(), input)
                        .and_then(|mut content| content.read_to_end(&mut Vec::new()));
                    assert_eq!(
                        read.is_ok(),
                        Some(length) == unnoticed,
                        "{compression} cut at {length} of {}",
                        stored.len()
                    );
                }
            }
        }
    }
}
