//! Sending an object to the same key of another store, byte for byte, and telling whether two stores have the same.

use std::mem::discriminant;

use walhalla_providers::{ErrorKind, ObjectKey, PutMode};

use super::layout::Object;
use super::{Error, Repository};
use crate::failure::Failure as _;
use crate::output;
use crate::pipeline::{StoredDigest, StoredHash};

/// Longest object that is sent in one request where another might create it at the same moment.
const WHOLE_BYTES: usize = 64 << 20;

/// How sending an object ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is there now, this many bytes long.
    Now(u64),
    /// There was one before.
    Before,
    /// The caller did not want to go on.
    Stopped,
}

/// On which side sending failed.
#[derive(Debug)]
pub enum SendError {
    /// The source could not be read.
    Source(Error),
    /// The other store did not take it.
    Copy(Error),
}

/// What two objects are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likeness {
    /// They have the same content.
    Same,
    /// They have not.
    Other,
    /// That cannot be told without the identity.
    Unknown,
}

impl Repository {
    /// Sends the stored bytes of `object` to the same key of `copy`. `each` sees what was read, and `last` is asked before the
    /// object comes to exist: either may end it.
    ///
    /// # Errors
    /// On either side.
    pub fn send(
        &self,
        object: &Object,
        copy: &Self,
        mut each: impl FnMut(&[u8]) -> bool,
        last: impl FnOnce() -> bool,
    ) -> Result<Sent, SendError> {
        let session = copy.session();
        let mut upload = session.upload(object.key.clone(), PutMode::Create);
        if copy.layout().has_trailer(object) {
            // Another server might create it at the same moment.
            upload = upload.whole_up_to(WHOLE_BYTES);
        }
        let mut fill = || {
            let read = |error: walhalla_providers::Error| SendError::Source(error.into());
            let mut chunks = self.session.read(&object.key).map_err(read)?;
            while let Some(chunk) = chunks.wait_for_next() {
                let chunk = chunk.map_err(read)?;
                if !each(&chunk) {
                    return Ok(false);
                }
                let written = session.wait(upload.write(chunk));
                written.map_err(|error| SendError::Copy(error.into()))?;
            }
            Ok(true)
        };
        let filled = fill();
        if !matches!(filled, Ok(true)) || !last() {
            session.wait(upload.abort());
            return filled.map(|_| Sent::Stopped);
        }
        match session.wait(upload.finish()) {
            Err(error) if error.kind == ErrorKind::AlreadyExists => Ok(Sent::Before),
            Err(error) => Err(SendError::Copy(error.into())),
            Ok(stored_bytes) => Ok(Sent::Now(stored_bytes)),
        }
    }

    /// The digest of an object's stored bytes; `None` where the store itself finds that they changed.
    ///
    /// # Errors
    /// The store's.
    pub fn stored_digest(
        &self,
        key: &ObjectKey,
        mut hash: StoredHash,
    ) -> Result<Option<StoredDigest>, Error> {
        let mut chunks = self.session.read(key)?;
        while let Some(chunk) = chunks.wait_for_next() {
            match chunk {
                Ok(chunk) => hash.update(&chunk),
                Err(error) if error.kind == ErrorKind::Corrupted => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(hash.digest()))
    }

    /// Whether an object here and one of `copy` have the same stored bytes.
    ///
    /// # Errors
    /// Of either store.
    pub fn is_stored_alike(&self, object: &Object, copy: &Self) -> Result<bool, Error> {
        let known = self.stored_digest(&object.key, StoredHash::default())?;
        Ok(known.is_some() && copy.stored_digest(&object.key, StoredHash::default())? == known)
    }

    /// Whether `ours` has the content of an object of `copy`, however each is packed.
    ///
    /// # Errors
    /// Of either store; of the copy's object, where that is damaged.
    pub fn likeness(&self, ours: &Object, copy: &Self, theirs: &Object) -> Result<Likeness, Error> {
        let ours = match self.content_digest(ours) {
            // It was sound when it was copied.
            Err(error) if error.is_of_the_object() => {
                tracing::error!("{}", output::chain(&error));
                return Ok(Likeness::Unknown);
            }
            ours => ours,
        };
        match (ours, copy.content_digest(theirs)) {
            (Ok(one), Ok(other)) if discriminant(&one) == discriminant(&other) => {
                Ok(if one == other {
                    Likeness::Same
                } else {
                    Likeness::Other
                })
            }
            (Ok(_), Ok(_)) => Ok(Likeness::Unknown),
            (Err(locked), _) | (_, Err(locked)) if locked.is_locked() => Ok(Likeness::Unknown),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }
}
