//! Sending one object: as it is stored, or packed anew; and reading it back.

use std::io::{self, Read};

use walhalla_providers::ObjectKey;

use super::Error;
use super::order::{Place, Turn};
use crate::failure::Failure as _;
use crate::output;
use crate::pipeline::{self, ObjectWriter, Pipeline, StoredDigest, StoredHash, StoredObject};
use crate::progress::Progress;
use crate::repository::layout::Object;
use crate::repository::sending::{self, SendError};
use crate::repository::{self, Repository};

/// From where to where objects are sent.
#[derive(Clone, Copy)]
pub(super) struct Sending<'a> {
    pub(super) source: &'a Repository,
    pub(super) copy: &'a Repository,
    pub(super) progress: &'a Progress,
    /// Packs objects anew; without it they are sent as they are.
    pub(super) pipeline: Option<&'a Pipeline>,
}

/// How sending an object ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It is in the copy.
    Now {
        /// Length in the copy.
        stored_bytes: u64,
        /// Of the stored bytes.
        digest: StoredDigest,
    },
    /// Another writer was faster.
    Before,
    /// Another thread failed.
    Stopped,
}

impl Sent {
    /// How an object was sent by a pipeline that hashes.
    pub(super) fn of(stored: &StoredObject) -> Self {
        Self::Now {
            stored_bytes: stored.stored_bytes,
            digest: stored.digest.expect("the pipeline of a copy hashes"),
        }
    }
}

impl Sending<'_> {
    /// Sends the stored bytes of `object`, which are taken into `hash`, to the same key. The object comes to exist when the turn
    /// comes to its `place`.
    pub(super) fn as_it_is(
        &self,
        object: &Object,
        mut hash: StoredHash,
        place: &Place,
    ) -> Result<Sent, Error> {
        let each = |bytes: &[u8]| {
            hash.update(bytes);
            self.progress.add(bytes.len() as u64)
        };
        let sent = self
            .source
            .send(object, self.copy, each, || place.wait() == Turn::Come);
        match sent {
            Ok(sending::Sent::Now(stored_bytes)) => Ok(Sent::Now {
                stored_bytes,
                digest: hash.digest(),
            }),
            Ok(sending::Sent::Before) => Ok(Sent::Before),
            Ok(sending::Sent::Stopped) => Ok(Sent::Stopped),
            Err(SendError::Source(error)) => Err(self.of_source(object, error)),
            Err(SendError::Copy(error)) => Err(error.into()),
        }
    }

    /// Writes the content of `object` to `writer`; returns the digest of the stored bytes that were read.
    pub(super) fn repack(
        &self,
        object: &Object,
        hash: StoredHash,
        writer: &mut ObjectWriter,
    ) -> Result<StoredDigest, Error> {
        let watched = self.source.open_watched(object, hash);
        let mut watched = watched.map_err(|error| self.of_source(object, error))?;
        loop {
            let room = writer.room().map_err(broken_off)?;
            let count = { watched.content.read(room) }.map_err(|source| {
                self.of_source(object, self.source.damaged(&object.key, source))
            })?;
            if count == 0 {
                return Ok(watched.hash.digest());
            }
            writer.fill(count);
        }
    }

    /// The error of reading an object of the source: its own fault does not keep others from being copied.
    pub(super) fn of_source(&self, object: &Object, error: repository::Error) -> Error {
        if error.is_of_the_object() {
            Error::Damaged {
                object: self.source.url(&object.key),
                source: error,
            }
        } else {
            error.into()
        }
    }

    /// Reads an object of the copy, with all checks that it brings along, and compares it with what was sent. One that differs,
    /// or was damaged in the source, is removed again.
    pub(super) fn read_back(&self, object: &Object, sent: StoredDigest) -> Result<(), Error> {
        let read = self.copy.open_watched(object, sent.hash());
        let read = read.and_then(|mut watched| {
            io::copy(&mut watched.content, &mut io::sink())
                .map_err(|source| self.copy.damaged(&object.key, source))?;
            Ok(watched.hash.digest())
        });
        let problem = match read {
            Ok(digest) if digest == sent => return Ok(()),
            Ok(_) => None,
            Err(error) if error.is_locked() || error.is_of_the_object() => {
                match self.copy.stored_digest(&object.key, sent.hash())? {
                    digest if digest != Some(sent) => None,
                    _ if error.is_locked() => return Ok(()),
                    _ => Some(error),
                }
            }
            Err(error) => return Err(error.into()),
        };
        self.take_back(&object.key);
        Err(match problem {
            Some(source) => Error::Damaged {
                object: self.source.url(&object.key),
                source,
            },
            None => Error::NotAsSent {
                object: self.copy.url(&object.key),
            },
        })
    }

    /// Removes an object that this run made and that is not what it should be.
    pub(super) fn take_back(&self, key: &ObjectKey) {
        if let Err(error) = self.copy.remove(std::slice::from_ref(key)) {
            tracing::error!("{}; delete it by hand", output::chain(&error));
        }
    }
}

/// Why a writer takes no more.
pub(super) fn broken_off(error: io::Error) -> Error {
    match error.downcast::<pipeline::Error>() {
        Ok(error) => Error::Pipeline(error),
        Err(error) => Error::Local(error),
    }
}
