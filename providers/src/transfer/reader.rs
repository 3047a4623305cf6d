//! Bodies that survive a dropped connection.

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::retry::{Pace, Retries};
use super::{BodyUse, Store};
use crate::{Download, Error, ErrorKind, ObjectKey, Operation, Result};

/// How often in a row a body may end early without a byte before the object counts as damaged.
const MAX_EARLY_ENDS: u32 = 5;

/// An object's bytes on their way from the store.
///
/// A connection that drops is made again from where it was; the object must be the same one
/// still. Exactly the promised number of bytes comes before the end.
///
/// A connection on which next to nothing comes is made again, too, and a body that stays so slow
/// fails when it has fallen behind by the deadline. The caller's own time between two calls does not count, and neither does
/// the time that the rate takes: each call waits for the bytes of the call before it, so that none are lost when it is dropped.
pub struct Reader {
    store: Store,
    key: ObjectKey,
    object_size_bytes: u64,
    version: Option<String>,
    position: u64,
    end: u64,
    pace: Pace,
    /// Bytes that were handed over and are not paid by the rate yet.
    unpaid_bytes: usize,
    body: Body,
}

enum Body {
    Open(Download, Pace, OwnedSemaphorePermit),
    /// To be asked for again, from the position.
    Lost(OwnedSemaphorePermit),
    Done,
}

impl Reader {
    pub(super) async fn open(
        store: Store,
        key: ObjectKey,
        offset: u64,
        length: Option<u64>,
        body: BodyUse,
    ) -> Result<Self> {
        let permit = store.inner.permit_to_read(body).await;
        // No range header can ask for nothing.
        let asked = length.map(|length| length.max(1));
        let download = request(&store, &key, offset, asked).await?;
        let size = download.object_size_bytes;
        Ok(Self {
            store,
            key,
            object_size_bytes: size,
            version: download.version.clone(),
            position: offset,
            end: offset.saturating_add(length.unwrap_or(u64::MAX)).min(size),
            pace: Pace::default(),
            unpaid_bytes: 0,
            body: if length == Some(0) {
                Body::Done
            } else {
                Body::Open(download, Pace::default(), permit)
            },
        })
    }

    /// Length of the whole object, whatever part of it is read.
    pub fn size_bytes(&self) -> u64 {
        self.object_size_bytes
    }

    /// The next bytes, never empty; `None` once all of them came. Only then is what the store
    /// keeps as the object's checksum checked.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] when another object took the place of the one being read, and
    /// [`ErrorKind::Corrupted`] when the bytes are too few, too many or not those that were stored.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        self.pay().await?;
        let started = Instant::now();
        let mut retries = self.store.retries().having_spent(self.pace.behind());
        let mut early_ends = 0;
        while self.position < self.end {
            if retries.remaining().is_zero() {
                return Err(self.too_slow());
            }
            match self.attempt(&mut retries).await {
                Ok(Some(chunk)) => {
                    self.pace.count(started.elapsed(), chunk.len());
                    return self.accept(chunk).map(Some);
                }
                Ok(None) if early_ends >= MAX_EARLY_ENDS => {
                    return Err(self.ended_early(ErrorKind::Corrupted));
                }
                Ok(None) => {
                    early_ends += 1;
                    self.lose_body();
                    retries
                        .wait_after(self.ended_early(ErrorKind::Unavailable))
                        .await?;
                }
                Err(error) if is_replaced(&error) => return Err(error),
                Err(error) if self.ran_out(&error, &retries) => return Err(self.too_slow()),
                Err(error) => {
                    self.lose_body();
                    retries.wait_after(error).await?;
                }
            }
        }
        self.check_end(&mut retries).await?;
        Ok(None)
    }

    /// One chunk, from the body at hand or from a new one.
    async fn attempt(&mut self, retries: &mut Retries) -> Result<Option<Bytes>> {
        if let Body::Lost(_) = self.body {
            self.reopen(retries).await?;
        }
        let Body::Open(download, pace, _) = &mut self.body else {
            return Ok(None);
        };
        let started = Instant::now();
        let object = || self.store.object_url(&self.key);
        let chunk = async {
            loop {
                match download.body.next().await.transpose()? {
                    Some(chunk) if chunk.is_empty() => {}
                    chunk => return Ok(chunk),
                }
            }
        };
        let chunk = retries.attempt(Operation::Get, object, chunk).await?;
        let length = chunk.as_ref().map_or(0, Bytes::len);
        pace.count(started.elapsed(), length);
        // After the last byte the end is still wanted, where the checksum is compared.
        let goes_on = self.position + (length as u64) < self.end;
        if goes_on && pace.behind() > retries.unanswered_limit() {
            let object = self.store.object_url(&self.key);
            tracing::debug!(%object, "next to nothing comes on this connection; it is made again");
            self.lose_body();
        }
        Ok(chunk)
    }

    async fn reopen(&mut self, retries: &mut Retries) -> Result<()> {
        let (store, key) = (&self.store, &self.key);
        let request = store
            .inner
            .store
            .get(key, self.position, Some(self.end - self.position));
        let download = retries
            .attempt(Operation::Get, || store.object_url(key), request)
            .await?;
        if (&download.version, download.object_size_bytes)
            != (&self.version, self.object_size_bytes)
        {
            return Err(self.error(ErrorKind::Conflict).with_source(ObjectReplaced));
        }
        self.body = match std::mem::replace(&mut self.body, Body::Done) {
            Body::Open(_, _, permit) | Body::Lost(permit) => {
                Body::Open(download, Pace::default(), permit)
            }
            Body::Done => Body::Done,
        };
        Ok(())
    }

    fn accept(&mut self, chunk: Bytes) -> Result<Bytes> {
        let length = chunk.len() as u64;
        if length > self.end - self.position {
            return Err(self.error(ErrorKind::Corrupted).with_source(BodyTooLong));
        }
        self.position += length;
        self.unpaid_bytes = chunk.len();
        Ok(chunk)
    }

    /// Waits until the rate allows what was handed over.
    async fn pay(&mut self) -> Result<()> {
        if let Some(rate) = &self.store.inner.options.rates.down {
            let waited = self.store.wait_for_turn(rate, self.unpaid_bytes).await;
            waited.map_err(|ended| self.error(ErrorKind::DeadlineExceeded).with_source(ended))?;
        }
        self.unpaid_bytes = 0;
        Ok(())
    }

    /// Reads past the last byte, where stores tell that the checksum did not match, and frees the permit.
    async fn check_end(&mut self, retries: &mut Retries) -> Result<()> {
        let last = if matches!(self.body, Body::Open(..)) {
            self.attempt(retries).await
        } else {
            Ok(None)
        };
        self.body = Body::Done;
        match last {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(self.error(ErrorKind::Corrupted).with_source(BodyTooLong)),
            // The bytes are out; without its end the body's checksum was not compared.
            Err(error) => Err(error),
        }
    }

    fn lose_body(&mut self) {
        self.body = match std::mem::replace(&mut self.body, Body::Done) {
            Body::Open(_, _, permit) | Body::Lost(permit) => Body::Lost(permit),
            Body::Done => Body::Done,
        };
    }

    /// Whether the body came until the deadline, and too slowly.
    fn ran_out(&self, error: &Error, retries: &Retries) -> bool {
        let is_late = error.kind == ErrorKind::TimedOut && retries.remaining().is_zero();
        is_late && !self.pace.behind().is_zero()
    }

    /// Gives up; who asks for more all the same has a new deadline.
    fn too_slow(&mut self) -> Error {
        self.pace = Pace::default();
        self.lose_body();
        self.error(ErrorKind::DeadlineExceeded)
            .with_source(BodyTooSlow {
                missing_bytes: self.end - self.position,
            })
    }

    fn ended_early(&self, kind: ErrorKind) -> Error {
        self.error(kind).with_source(BodyTooShort {
            missing_bytes: self.end - self.position,
        })
    }

    fn error(&self, kind: ErrorKind) -> Error {
        Error::new(Operation::Get, self.store.object_url(&self.key), kind)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(rate) = &self.store.inner.options.rates.down {
            rate.owe(self.unpaid_bytes);
        }
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("object", &self.store.object_url(&self.key))
            .field("position", &self.position)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

/// The object under a key is no longer the one whose first bytes were read.
#[derive(Debug, thiserror::Error)]
#[error("the object was replaced while it was read")]
struct ObjectReplaced;

/// A body ended before its last byte.
#[derive(Debug, thiserror::Error)]
#[error("the body ended {missing_bytes} bytes early")]
struct BodyTooShort {
    missing_bytes: u64,
}

/// A body that came, but so slowly that nobody can wait for its end.
#[derive(Debug, thiserror::Error)]
#[error("the body came at less than 1 KiB a second; {missing_bytes} bytes were still to come")]
struct BodyTooSlow {
    missing_bytes: u64,
}

/// A body went on after its last byte.
#[derive(Debug, thiserror::Error)]
#[error("the body is longer than the store said")]
struct BodyTooLong;

/// Another try would not bring the old object back.
fn is_replaced(error: &Error) -> bool {
    error
        .source
        .as_ref()
        .is_some_and(|source| source.is::<ObjectReplaced>())
}

async fn request(
    store: &Store,
    key: &ObjectKey,
    offset: u64,
    length: Option<u64>,
) -> Result<Download> {
    let mut retries = store.retries();
    loop {
        let request = store.inner.store.get(key, offset, length);
        match retries
            .attempt(Operation::Get, || store.object_url(key), request)
            .await
        {
            Ok(download) => return Ok(download),
            Err(error) => retries.wait_after(error).await?,
        }
    }
}
