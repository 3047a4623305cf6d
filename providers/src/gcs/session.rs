//! Uploads in parts: the resumable sessions of GCS.
//!
//! A session is one object, sent in order. The server says how far it has come, which may be less than was sent, and
//! takes multiples of 256 KiB until the last bytes. What is known of each session is kept here from its start to its
//! end, so that a part that is put again sends only what is missing:
//!
//! ```text
//! start ─▶ part, part, … (308, each as far as the server has it) ─▶ rest and CRC-32C of all (200: the object)
//!            ▲    │ no answer                                         │ no answer
//!            └────┴─ how far? (308) ◀─────────────────────────────────┴─▶ how far? (200: it had been stored)
//! ```

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, RANGE};
use reqwest::{Method, StatusCode};
use tokio::sync::Mutex as AsyncMutex;

use super::client::{Client, json};
use super::failure::{Failure, Unexpected};
use super::resource::{Resource, checksum};
use crate::{ErrorKind, PartReceipt, PutMode, UploadId};

/// What a request that is not an upload's last must send a multiple of.
const QUANTUM_BYTES: usize = 256 << 10;

/// Length of each part but the last: parts go one after the other, each at the cost of a round trip, and a WAL segment
/// of the usual 16 MiB is one put even when it is not compressed.
pub(super) const PART_SIZE_BYTES: usize = 16 << 20;
const _: () = assert!(PART_SIZE_BYTES.is_multiple_of(QUANTUM_BYTES));

/// The uploads that this store began and did not end, some hundred bytes and at most one short part each.
#[derive(Default)]
pub(super) struct Sessions {
    open: Mutex<HashMap<UploadId, Arc<AsyncMutex<Session>>>>,
}

/// An upload, and what is known of it.
pub(super) struct Session {
    address: String,
    mode: PutMode,
    /// The last part that was taken.
    last: Option<PartReceipt>,
    /// Length of all parts that were taken.
    length: u64,
    /// CRC-32C of all parts that were taken.
    crc32c: u32,
    /// The last part when it is short: nothing but the upload's end may follow it.
    tail: Option<Bytes>,
    progress: Progress,
}

#[derive(Clone, Copy)]
enum Progress {
    /// The server has so many bytes.
    Known(u64),
    /// A request got no answer, and may have stored any part of what it sent.
    Unknown,
}

/// What the server says of a session.
enum Answer {
    Has(u64),
    Stored(Resource),
}

impl Sessions {
    /// Keeps what will be known of the session at `address`.
    pub(super) fn begin(&self, address: String, mode: PutMode) -> UploadId {
        let upload = UploadId(address.clone());
        let session = Session {
            address,
            mode,
            last: None,
            length: 0,
            crc32c: 0,
            tail: None,
            progress: Progress::Known(0),
        };
        self.open()
            .insert(upload.clone(), Arc::new(AsyncMutex::new(session)));
        upload
    }

    /// The session of an upload that this store began and did not end.
    pub(super) fn find(&self, upload: &UploadId) -> Result<Arc<AsyncMutex<Session>>, Failure> {
        let session = self.open().get(upload).cloned();
        session.ok_or_else(|| Failure::new(ErrorKind::NotFound, UploadGone))
    }

    /// Forgets an upload.
    pub(super) fn end(&self, upload: &UploadId) {
        self.open().remove(upload);
    }

    fn open(&self) -> MutexGuard<'_, HashMap<UploadId, Arc<AsyncMutex<Session>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Sends a full part, as far as the server does not have it, and keeps a short one for the end.
    pub(super) async fn put_part(
        &mut self,
        client: &Client,
        number: u32,
        body: Bytes,
    ) -> Result<PartReceipt, Failure> {
        let receipt = PartReceipt {
            number,
            tag: checksum(crc32c::crc32c(&body)),
            checksum: None,
            size_bytes: body.len() as u64,
        };
        // Taken already: the answer was lost between here and the caller.
        if self.last.as_ref() == Some(&receipt) {
            return Ok(receipt);
        }
        if number != self.next_number() || self.tail.is_some() || body.len() > PART_SIZE_BYTES {
            return Err(Failure::new(ErrorKind::Invalid, OutOfOrder { number }));
        }
        if body.len() == PART_SIZE_BYTES {
            self.send(client, self.length, &body, None).await?;
        } else {
            self.tail = Some(body.clone());
        }
        self.length += receipt.size_bytes;
        self.crc32c = crc32c::crc32c_append(self.crc32c, &body);
        self.last = Some(receipt.clone());
        Ok(receipt)
    }

    /// Sends what is left and makes it the object; checks that the server stored what was sent.
    pub(super) async fn complete(
        &mut self,
        client: &Client,
        parts: &[PartReceipt],
        mode: PutMode,
    ) -> Result<(), Failure> {
        let length = parts.iter().map(|part| part.size_bytes).sum();
        if (self.length, self.mode) != (length, mode) || self.last.as_ref() != parts.last() {
            return Err(Failure::new(ErrorKind::Invalid, OtherParts));
        }
        let tail = self.tail.clone().unwrap_or_default();
        let start = self.length - tail.len() as u64;
        match self.send(client, start, &tail, Some(self.length)).await? {
            Some(resource) => resource.check(self.crc32c, self.length),
            None => Err(unexpected(Unexpected::MissingField)),
        }
    }

    fn next_number(&self) -> u32 {
        self.last
            .as_ref()
            .map_or(1, |last| last.number.saturating_add(1))
    }

    /// Brings the server to the end of `body`, which begins at `start`; with `total` it then stores the object.
    ///
    /// A server that takes a piece of what was sent is sent the rest at once: that is no repetition, and every round
    /// brings it further.
    async fn send(
        &mut self,
        client: &Client,
        start: u64,
        body: &Bytes,
        total: Option<u64>,
    ) -> Result<Option<Resource>, Failure> {
        let possible = start..=start + body.len() as u64;
        let mut progress = match self.progress {
            Progress::Known(progress) => progress,
            Progress::Unknown => match self.ask(client).await? {
                Answer::Has(progress) => progress,
                Answer::Stored(resource) => return stored(resource, total),
            },
        };
        loop {
            let rest = rest(body, progress, &possible)?;
            if rest.is_empty() && total.is_none() {
                return Ok(None);
            }
            match self.exchange(client, progress, rest, total).await? {
                Answer::Stored(resource) => return stored(resource, total),
                Answer::Has(further) if further > progress => progress = further,
                Answer::Has(_) => return Err(Failure::new(ErrorKind::Unavailable, NoProgress)),
            }
        }
    }

    /// How far the server has come.
    async fn ask(&mut self, client: &Client) -> Result<Answer, Failure> {
        let headers = HeaderMap::from_iter([(CONTENT_RANGE, header("bytes */*"))]);
        self.request(client, headers, Bytes::new()).await
    }

    async fn exchange(
        &mut self,
        client: &Client,
        start: u64,
        body: Bytes,
        total: Option<u64>,
    ) -> Result<Answer, Failure> {
        let range = content_range(start, body.len() as u64, total);
        let mut headers = HeaderMap::from_iter([(CONTENT_RANGE, header(&range))]);
        if total.is_some() {
            let hash = format!("crc32c={}", checksum(self.crc32c));
            headers.insert("x-goog-hash", header(&hash));
        }
        self.request(client, headers, body).await
    }

    async fn request(
        &mut self,
        client: &Client,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answer, Failure> {
        // Until the answer is here: whoever waits for it may give up at any moment.
        self.progress = Progress::Unknown;
        let request = client
            .session_request(Method::PUT, &self.address)
            .headers(headers)
            .header(CONTENT_LENGTH, body.len())
            .body(body);
        let response = client.exchange(request).await?;
        match response.status() {
            StatusCode::PERMANENT_REDIRECT => {
                let progress = persisted(response.headers())?;
                self.progress = Progress::Known(progress);
                Ok(Answer::Has(progress))
            }
            status if status.is_success() => Ok(Answer::Stored(json(response).await?)),
            _ => Err(Failure::of_answer(response).await.on_session()),
        }
    }
}

/// What the server does not have of `body`.
fn rest(body: &Bytes, progress: u64, possible: &RangeInclusive<u64>) -> Result<Bytes, Failure> {
    let wrong = || {
        unexpected(Unexpected::WrongProgress {
            persisted_bytes: progress,
        })
    };
    if !possible.contains(&progress) {
        return Err(wrong());
    }
    let had = usize::try_from(progress - possible.start()).map_err(|_| wrong())?;
    Ok(body.slice(had..))
}

/// The object, if it was to be one already.
fn stored(resource: Resource, total: Option<u64>) -> Result<Option<Resource>, Failure> {
    match total {
        Some(_) => Ok(Some(resource)),
        None => Err(unexpected(Unexpected::StoredEarly)),
    }
}

/// `Content-Range` of `length` bytes from `start`; the total only with the last of them.
fn content_range(start: u64, length: u64, total: Option<u64>) -> String {
    let total = total.map_or_else(|| "*".to_owned(), |total| total.to_string());
    match length.checked_sub(1) {
        Some(before_last) => format!("bytes {start}-{}/{total}", start + before_last),
        None => format!("bytes */{total}"),
    }
}

/// How many bytes the server has by its `Range: bytes=0-N`; without one, none.
fn persisted(headers: &HeaderMap) -> Result<u64, Failure> {
    let Some(range) = headers.get(RANGE) else {
        return Ok(0);
    };
    let last = range.to_str().ok();
    let last = last.and_then(|range| range.strip_prefix("bytes=0-")?.parse::<u64>().ok());
    last.and_then(|last| last.checked_add(1))
        .ok_or_else(|| unexpected(Unexpected::MissingField))
}

fn header(value: &str) -> http::HeaderValue {
    value
        .parse()
        .expect("digits, base64 and a few signs are a header's value")
}

fn unexpected(answer: Unexpected) -> Failure {
    Failure::new(ErrorKind::Other, answer)
}

/// Nothing is known of an upload: it was completed or aborted, or another process began it.
#[derive(Debug, thiserror::Error)]
#[error("no such upload is going on")]
struct UploadGone;

/// A part that does not follow the one before.
#[derive(Debug, thiserror::Error)]
#[error(
    "part {number} does not follow the last one; parts are sent in order, and all but the last are full"
)]
struct OutOfOrder {
    number: u32,
}

/// An upload is to be completed with other parts or in another mode than it was sent.
#[derive(Debug, thiserror::Error)]
#[error("the parts or the mode of the completion are not those of the upload")]
struct OtherParts;

/// The server took nothing of what it was sent.
#[derive(Debug, thiserror::Error)]
#[error("the server kept nothing of what it was sent")]
struct NoProgress;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_spelt_as_the_protocol_asks() {
        assert_eq!(content_range(0, 10, None), "bytes 0-9/*");
        assert_eq!(content_range(10, 5, Some(15)), "bytes 10-14/15");
        assert_eq!(content_range(15, 0, Some(15)), "bytes */15");
        assert_eq!(content_range(0, 0, Some(0)), "bytes */0");
    }

    #[test]
    fn the_servers_progress_is_read_or_refused() {
        let of = |range: &str| persisted(&HeaderMap::from_iter([(RANGE, header(range))]));
        assert_eq!(of("bytes=0-262143").ok(), Some(262_144));
        assert_eq!(persisted(&HeaderMap::new()).ok(), Some(0));
        for wrong in [
            "bytes=1-5",
            "0-5",
            "bytes=0-",
            "bytes=0-18446744073709551615",
        ] {
            assert_eq!(
                of(wrong).err().map(|failure| failure.kind()),
                Some(ErrorKind::Other)
            );
        }
    }
}
