//! Uploads in parts, by the JSON API: the resumable sessions of GCS.
//!
//! Google's crate begins, sends and resumes a session inside one call, and loses bytes when a connection breaks in the
//! middle of one; see `docs/decisions/0049-gcs-through-googles-crate.md`, and `google_cloud_storage_loses_a_part` in
//! `tests/gcs.rs`, which fails when it no longer does. This file can go then.
//!
//! A session is one object, sent in order. The server says how far it has come, which may be less than was sent, and
//! takes multiples of 256 KiB until the last bytes:
//!
//! ```text
//! start ─▶ part, part, … (308, each as far as the server has it) ─▶ rest and CRC-32C of all (200: the object)
//!            ▲    │ no answer                                         │ no answer
//!            └────┴─ how far? (308) ◀─────────────────────────────────┴─▶ how far? (200: it had been stored)
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, RANGE};
use reqwest::{Method, StatusCode};
use tokio::sync::Mutex as AsyncMutex;

use super::failure::{Failure, Unexpected};
use super::json::{Json, NewObject, Resource, checksum, json as parsed};
use crate::{ErrorKind, PartReceipt, PutMode, UploadId};

/// What a request that is not an upload's last must send a multiple of.
const QUANTUM_BYTES: usize = 256 << 10;

/// Length of each part but the last: parts go one after the other, each at the cost of a round trip, and a WAL segment
/// of the usual 16 MiB is one put even when it is not compressed.
pub(super) const PART_SIZE_BYTES: usize = 16 << 20;
const _: () = assert!(PART_SIZE_BYTES.is_multiple_of(QUANTUM_BYTES));

/// The uploads that this store began and did not end, some hundred bytes and at most one short part each.
#[derive(Default)]
pub(super) struct Uploads {
    open: Mutex<HashMap<UploadId, Arc<AsyncMutex<Session>>>>,
}

/// An upload, and what is known of it.
pub(super) struct Session {
    address: String,
    /// The last part that was taken.
    last: Option<PartReceipt>,
    /// Length and CRC-32C of all parts that were taken.
    length: u64,
    crc32c: u32,
    /// The last part when it is short: nothing but the upload's end may follow it.
    tail: Option<Bytes>,
    /// How many bytes the server has; none after a request without an answer, which may have stored any part of its own.
    progress: Option<u64>,
}

impl Uploads {
    /// Begins the upload of `object`.
    pub(super) async fn begin(
        &self,
        json: &Json,
        object: &NewObject<'_>,
        mode: PutMode,
    ) -> Result<UploadId, Failure> {
        let mut query = vec![("uploadType", "resumable"), ("name", object.name)];
        query.extend((mode == PutMode::Create).then_some(("ifGenerationMatch", "0")));
        query.extend(object.kms_key.map(|key| ("kmsKeyName", key)));
        let resource = serde_json::to_vec(object).expect("text is always JSON");
        let request = json
            .insert()
            .query(&query)
            .header(CONTENT_TYPE, "application/json; charset=UTF-8")
            .header("x-upload-content-type", object.content_type)
            .body(resource);
        let response = json.send(request).await.map_err(Failure::on_bucket)?;
        let upload = UploadId(json.session_address(&response)?);
        let session = Arc::new(AsyncMutex::new(Session::new(&upload)));
        self.open().insert(upload.clone(), session);
        Ok(upload)
    }

    /// Ends an upload without an object.
    pub(super) async fn end(&self, json: &Json, upload: &UploadId) -> Result<(), Failure> {
        self.forget(upload);
        let request = json
            .session_request(Method::DELETE, &upload.0)
            .header(CONTENT_LENGTH, 0);
        let response = json.exchange(request).await?;
        match response.status().as_u16() {
            // 499 is how GCS says that the client gave the upload up.
            200..300 | 404 | 410 | 499 => Ok(()),
            _ => Err(Failure::of_answer(response).await),
        }
    }

    /// The session of an upload that this store began and did not end.
    pub(super) fn find(&self, upload: &UploadId) -> Result<Arc<AsyncMutex<Session>>, Failure> {
        let session = self.open().get(upload).cloned();
        session.ok_or_else(|| Failure::new(ErrorKind::NotFound, UploadGone))
    }

    /// Nothing more is known of an upload.
    pub(super) fn forget(&self, upload: &UploadId) {
        self.open().remove(upload);
    }

    fn open(&self) -> MutexGuard<'_, HashMap<UploadId, Arc<AsyncMutex<Session>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    fn new(upload: &UploadId) -> Self {
        Self {
            address: upload.0.clone(),
            last: None,
            length: 0,
            crc32c: 0,
            tail: None,
            progress: Some(0),
        }
    }

    /// Sends a full part, as far as the server does not have it, and keeps a short one for the end.
    pub(super) async fn put_part(
        &mut self,
        json: &Json,
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
        let before = self.last.as_ref().map_or(0, |last| last.number);
        let is_next = before.checked_add(1) == Some(number) && self.tail.is_none();
        if !is_next || body.len() > PART_SIZE_BYTES {
            return Err(Failure::new(ErrorKind::Invalid, OutOfOrder));
        }
        if body.len() == PART_SIZE_BYTES {
            self.send(json, self.length, &body, None).await?;
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
        json: &Json,
        parts: &[PartReceipt],
    ) -> Result<(), Failure> {
        let length: u64 = parts.iter().map(|part| part.size_bytes).sum();
        if self.length != length || self.last.as_ref() != parts.last() {
            return Err(Failure::new(ErrorKind::Invalid, OutOfOrder));
        }
        let tail = self.tail.clone().unwrap_or_default();
        let start = length - tail.len() as u64;
        match self.send(json, start, &tail, Some(length)).await? {
            Some(resource) => resource.check(self.crc32c, length),
            None => Err(unexpected(Unexpected::MissingField)),
        }
    }

    /// Brings the server to the end of `body`, which begins at `start`; with `total` it then stores the object.
    ///
    /// A server that takes a piece of what was sent is sent the rest at once: that is no repetition, and every round
    /// brings it further.
    async fn send(
        &mut self,
        json: &Json,
        start: u64,
        body: &Bytes,
        total: Option<u64>,
    ) -> Result<Option<Resource>, Failure> {
        let is_asked = self.progress.is_none();
        if is_asked && let Some(resource) = self.request(json, "bytes */*", Bytes::new()).await? {
            return stored(resource, total);
        }
        loop {
            let progress = self.progress.unwrap_or(0);
            let rest = rest(body, progress, start)?;
            if rest.is_empty() && total.is_none() {
                return Ok(None);
            }
            let range = content_range(progress, rest.len() as u64, total);
            if let Some(resource) = self.request(json, &range, rest).await? {
                return stored(resource, total);
            }
            if self.progress <= Some(progress) {
                return Err(Failure::new(ErrorKind::Unavailable, Unexpected::NoProgress));
            }
        }
    }

    /// Sends a request and notes how far the server has come by its answer; returns the object when it is stored.
    async fn request(
        &mut self,
        json: &Json,
        range: &str,
        body: Bytes,
    ) -> Result<Option<Resource>, Failure> {
        // Until the answer is here: whoever waits for it may give up at any moment.
        self.progress = None;
        let mut request = json
            .session_request(Method::PUT, &self.address)
            .header(CONTENT_RANGE, range)
            .header(CONTENT_LENGTH, body.len())
            .body(body);
        if !range.ends_with("/*") {
            let hash = format!("crc32c={}", checksum(self.crc32c));
            request = request.header("x-goog-hash", hash);
        }
        let response = json.exchange(request).await?;
        match response.status() {
            StatusCode::PERMANENT_REDIRECT => {
                self.progress = Some(persisted(response.headers())?);
                Ok(None)
            }
            status if status.is_success() => Ok(Some(parsed(response).await?)),
            _ => Err(Failure::of_answer(response).await.on_session()),
        }
    }
}

/// What the server does not have of `body`, which begins at `start`.
fn rest(body: &Bytes, persisted_bytes: u64, start: u64) -> Result<Bytes, Failure> {
    let had = persisted_bytes.checked_sub(start).map(usize::try_from);
    match had {
        Some(Ok(had)) if had <= body.len() => Ok(body.slice(had..)),
        _ => Err(unexpected(Unexpected::WrongProgress { persisted_bytes })),
    }
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

fn unexpected(answer: Unexpected) -> Failure {
    Failure::new(ErrorKind::Other, answer)
}

/// Nothing is known of an upload: it was completed or aborted, or another process began it.
#[derive(Debug, thiserror::Error)]
#[error("no such upload is going on")]
struct UploadGone;

/// A part does not follow the one before, or a completion names other parts than were sent.
#[derive(Debug, thiserror::Error)]
#[error("parts are sent and completed in order, and all but the last are full")]
struct OutOfOrder;

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
        let of = |range: &str| {
            let value = http::HeaderValue::from_str(range).unwrap();
            persisted(&HeaderMap::from_iter([(RANGE, value)]))
        };
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
