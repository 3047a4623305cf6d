//! Reading objects: the download runs ahead by a few chunks while the caller decompresses.

use std::io::{self, BufRead, Read};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use bytes::{Buf, Bytes};
use walhalla_providers::{Error as StoreError, ObjectKey};

use super::codec::{Codec, Decoder};
use super::digest::{StoredDigest, StoredHash};
use super::encryption::{Identities, OpenError};
use super::packing::{Encryption, Packing};
use super::trailer::Checked;
use crate::session::{Chunks, StoreSession};
use crate::threads::lock;

/// An object's content: decrypted, checked and decompressed while it is read.
pub type Content = Decoder<Box<dyn BufRead + Send>>;

/// An object that may end in a trailer.
#[derive(Clone, Debug)]
pub struct Trailed<'a> {
    /// Its name.
    pub name: &'a str,
    /// Set when the end was read and a trailer was there.
    pub found: Arc<AtomicBool>,
}

/// The content of `stored`.
///
/// # Errors
/// [`OpenError`], as soon as the header of an encrypted object is read.
pub fn unpack(
    stored: impl BufRead + Send + 'static,
    packing: Packing,
    identities: &Identities,
    trailed: Option<Trailed>,
) -> Result<Content, OpenError> {
    let input: Box<dyn BufRead + Send> = match packing.encryption {
        Encryption::None => Box::new(stored),
        Encryption::Age => Box::new(io::BufReader::new(identities.decrypt(stored)?)),
    };
    let input = match trailed {
        Some(Trailed { name, found }) if packing.codec != Codec::None => {
            Box::new(Checked::new(input, name, found))
        }
        _ => input,
    };
    Decoder::new(packing.codec, input).map_err(OpenError::Unreadable)
}

/// Content that is neither packed nor encrypted.
///
/// # Errors
/// Never, but the signature is a decoder's.
pub fn plain(content: impl BufRead + Send + 'static) -> io::Result<Content> {
    Decoder::new(Codec::None, Box::new(content))
}

/// An object's stored bytes as a blocking reader.
///
/// Store errors come out as [`io::Error`]s that hold the [`StoreError`].
pub struct ObjectReader {
    chunks: Chunks,
    chunk: Bytes,
    hash: Option<SharedHash>,
}

/// The hash of what was read so far.
#[derive(Clone)]
pub struct SharedHash(Arc<Mutex<StoredHash>>);

impl SharedHash {
    /// Of all stored bytes read until now.
    pub fn digest(&self) -> StoredDigest {
        lock(&self.0).digest()
    }
}

impl ObjectReader {
    /// Opens the object; its first bytes are already on their way.
    ///
    /// # Errors
    /// The store's, `NotFound` among them.
    pub fn open(session: &StoreSession, key: &ObjectKey) -> Result<Self, StoreError> {
        Ok(Self {
            chunks: session.read(key)?,
            chunk: Bytes::new(),
            hash: None,
        })
    }

    /// Takes what is read from here on into `hash`.
    pub fn hash(&mut self, hash: StoredHash) -> SharedHash {
        let shared = SharedHash(Arc::new(Mutex::new(hash)));
        self.hash = Some(shared.clone());
        shared
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer
            .split_at_mut(count)
            .0
            .copy_from_slice(available.split_at(count).0);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for ObjectReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.chunk.is_empty() {
            match self.chunks.wait_for_next() {
                Some(chunk) => self.chunk = chunk.map_err(io::Error::other)?,
                None => break,
            }
            if let Some(hash) = &self.hash {
                lock(&hash.0).update(&self.chunk);
            }
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, count: usize) {
        self.chunk.advance(count.min(self.chunk.len()));
    }
}
