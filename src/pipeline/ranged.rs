//! Reading an object in pieces: any stretch of what its codec wrote, without what lies before it.

use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use age::stream::StreamReader;
use bytes::{Buf, Bytes};
use walhalla_providers::{ErrorKind, ObjectKey};

use super::encryption::{
    CHUNK_BYTES, HEADER_BYTES, Identities, NONCE_BYTES, OpenError, chunks_bytes, packed_bytes,
};
use super::packing::{Encryption, Packing};
use crate::session::StoreSession;
use crate::threads::lock;

/// An object that is read in pieces, by several threads at a time.
///
/// A thread holds a download permit of the store only while its own piece comes in. The header of an encrypted object
/// is read once, with the first piece.
pub struct Ranged {
    session: StoreSession,
    identities: Identities,
    key: ObjectKey,
    packing: Packing,
    stored_bytes: u64,
    opened: Mutex<Option<Opened>>,
}

impl Ranged {
    /// The object `key`, `stored_bytes` long. No request is sent.
    pub fn new(
        session: StoreSession,
        identities: Identities,
        key: ObjectKey,
        packing: Packing,
        stored_bytes: u64,
    ) -> Self {
        Self {
            session,
            identities,
            key,
            packing,
            stored_bytes,
            opened: Mutex::default(),
        }
    }

    /// Where it is.
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// How it is packed.
    pub fn packing(&self) -> Packing {
        self.packing
    }

    /// The bytes in `range` of what the codec wrote, by one request and another one for an encrypted object's header.
    ///
    /// # Errors
    /// [`OpenError`]; a store's error is inside of the [`io::Error`].
    pub fn packed(&self, range: &Range<u64>) -> Result<Bytes, OpenError> {
        match self.packing.encryption {
            Encryption::None => self.stored(range).map_err(OpenError::Unreadable),
            Encryption::Age => self.decrypted(range),
        }
    }

    /// The last `count` bytes of what the codec wrote; fewer of a shorter object.
    ///
    /// # Errors
    /// As [`Ranged::packed`].
    pub fn last(&self, count: u64) -> Result<Bytes, OpenError> {
        let length = match self.packing.encryption {
            Encryption::None => self.stored_bytes,
            Encryption::Age => {
                let payload_at = self.with_opened(|opened| Ok(opened.payload_at))?;
                packed_bytes(self.stored_bytes.saturating_sub(payload_at))
            }
        };
        self.packed(&(length.saturating_sub(count)..length))
    }

    fn decrypted(&self, range: &Range<u64>) -> Result<Bytes, OpenError> {
        let (first, after) = (range.start / CHUNK_BYTES, range.end.div_ceil(CHUNK_BYTES));
        let payload_at = self.with_opened(|opened| Ok(opened.payload_at))?;
        let begin = payload_at + chunks_bytes(first);
        let end = self.stored_bytes.min(payload_at + chunks_bytes(after));
        let stretch = self.stored(&(begin..end)).map_err(OpenError::Unreadable)?;
        self.with_opened(|opened| {
            opened.window.hold(begin, stretch);
            opened.read(range).map_err(OpenError::Unreadable)
        })
    }

    fn with_opened<T>(
        &self,
        work: impl FnOnce(&mut Opened) -> Result<T, OpenError>,
    ) -> Result<T, OpenError> {
        let mut slot = lock(&self.opened);
        let mut opened = slot.take().map_or_else(|| self.open(), Ok)?;
        let outcome = work(&mut opened)?;
        // One that failed is not used again, as it may be in the middle of a chunk.
        *slot = Some(opened);
        Ok(outcome)
    }

    fn open(&self) -> Result<Opened, OpenError> {
        let length = self.stored_bytes.min(HEADER_BYTES as u64 + NONCE_BYTES);
        let begin = self.stored(&(0..length)).map_err(OpenError::Unreadable)?;
        let window = Window::default();
        window.hold(0, begin);
        let reader = self.identities.decrypt_bounded(window.clone())?;
        let payload_at = lock(&window.held).position;
        Ok(Opened {
            reader,
            window,
            payload_at,
        })
    }

    /// The bytes in `range` as they are stored.
    fn stored(&self, range: &Range<u64>) -> io::Result<Bytes> {
        let length = range.end.checked_sub(range.start).ok_or_else(too_short)?;
        match self.session.read_range(&self.key, range) {
            Ok(bytes) if bytes.len() as u64 == length => Ok(bytes),
            Ok(_) => Err(too_short()),
            Err(error) if error.kind == ErrorKind::Invalid => Err(too_short()),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

fn too_short() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "it is shorter than backup.json says",
    )
}

/// An encrypted object whose header was read.
struct Opened {
    reader: StreamReader<Window>,
    /// The same that the reader reads from.
    window: Window,
    /// Where the first chunk begins.
    payload_at: u64,
}

impl Opened {
    /// The decrypted bytes in `range`, whose chunks the window holds.
    fn read(&mut self, range: &Range<u64>) -> io::Result<Bytes> {
        // To go to the first byte of a chunk, StreamReader reads the last one of the file; to the second, it does not.
        if range.start.is_multiple_of(CHUNK_BYTES) {
            self.reader.seek(SeekFrom::Start(range.start + 1))?;
        }
        self.reader.seek(SeekFrom::Start(range.start))?;
        let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes.into())
    }
}

/// An object of which one stretch can be read; elsewhere it is as if it ended. Clones share the position.
#[derive(Clone, Default)]
struct Window {
    held: Arc<Mutex<Held>>,
    /// What was held from the position on when it was last asked for.
    rest: Bytes,
}

#[derive(Default)]
struct Held {
    at: u64,
    stretch: Bytes,
    position: u64,
}

impl Window {
    /// Lets `stretch`, which begins at `at` in the object, be what can be read.
    fn hold(&self, at: u64, stretch: Bytes) {
        let mut held = lock(&self.held);
        (held.at, held.stretch) = (at, stretch);
    }
}

impl Held {
    fn rest(&self) -> Bytes {
        let mut rest = self.stretch.clone();
        let passed = self.position.checked_sub(self.at);
        let passed = passed.and_then(|passed| usize::try_from(passed).ok());
        rest.advance(passed.unwrap_or(usize::MAX).min(rest.len()));
        rest
    }
}

impl BufRead for Window {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.rest = lock(&self.held).rest();
        Ok(&self.rest)
    }

    fn consume(&mut self, count: usize) {
        lock(&self.held).position += count as u64;
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let mut held = lock(&self.held);
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => held.position.checked_add_signed(by),
            SeekFrom::End(_) => None,
        };
        held.position = position.ok_or(io::ErrorKind::Unsupported)?;
        Ok(held.position)
    }
}
