//! Objects of unknown length, in parts.

use std::mem;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::{Store, may_be_own, permit};
use crate::{
    Error, ErrorKind, Limits, ObjectKey, Operation, PartAt, PartReceipt, PutMode, PutToken, Result,
    UploadId,
};

/// Most parts of one upload on their way at one time.
const PARTS_IN_FLIGHT: usize = 4;

/// What is at least as long is sent as it comes to a store whose parts are cheap.
const CHEAP_PART_BYTES: usize = 64 << 10;

/// Most time to delete the parts of an upload that failed: where the store is away, its failure
/// shall not be told twice as late.
const ABORT_DEADLINE: Duration = Duration::from_secs(30);

/// An object on its way to the store; visible only after [`Upload::finish`].
///
/// Memory: `part size × (1 + n)` bytes, with `n` parts in flight: the lesser of 4 and
/// [`Options::upload_concurrency`](super::Options::upload_concurrency), and 1 where the store
/// takes parts in order only. [`Upload::write`] waits while that many are on their way.
///
/// After a failure, [`Upload::abort`] or a drop the parts are deleted, on drop in the background
/// and as far as the runtime still runs.
#[derive(Debug)]
pub struct Upload {
    store: Store,
    key: ObjectKey,
    mode: PutMode,
    token: PutToken,
    limits: Limits,
    /// How much is kept in the hope that it is all.
    whole_bytes: usize,
    buffer: BytesMut,
    stored_bytes: u64,
    state: State,
    /// The request that starts the upload. It ends also where nobody waits for it any more, so that what it made is known.
    starting: Option<JoinHandle<Result<UploadId>>>,
    in_flight: JoinSet<Result<PartReceipt>>,
    receipts: Vec<PartReceipt>,
}

#[derive(Debug)]
enum State {
    /// All bytes are in the buffer, and the store knows nothing.
    Buffered,
    Started {
        upload: UploadId,
        parts: u32,
        /// In these parts.
        sent_bytes: u64,
    },
    Ended,
}

impl Upload {
    pub(super) fn new(store: Store, key: ObjectKey, mode: PutMode) -> Self {
        let limits = store.inner.store.limits();
        Self {
            store,
            key,
            mode,
            token: PutToken::random(),
            limits,
            whole_bytes: limits.part_size_bytes,
            buffer: BytesMut::new(),
            stored_bytes: 0,
            state: State::Buffered,
            starting: None,
            in_flight: JoinSet::new(),
            receipts: Vec::new(),
        }
    }

    /// Sends a body of at most `bytes` in one request, even where it is longer than a part; that many are held in memory. A
    /// store whose parts are cheap takes parts nevertheless.
    ///
    /// For objects that two writers might create at the same moment: some servers keep the condition of a
    /// single put against a race, and not that of a completion (SeaweedFS 4.48), or keep none on
    /// the latter.
    #[must_use]
    pub fn whole_up_to(mut self, bytes: usize) -> Self {
        if !self.limits.cheap_parts {
            self.whole_bytes = bytes.max(self.limits.part_size_bytes);
        }
        self
    }

    /// Length of each part but the last, where parts are not cheap.
    pub fn part_size_bytes(&self) -> usize {
        self.limits.part_size_bytes
    }

    /// Takes the object's next bytes; returns once they are buffered or on their way.
    ///
    /// When the future is dropped before it is ready, bytes may be missing and [`Upload::finish`] fails.
    ///
    /// # Errors
    /// Those of any part so far. After an error the upload is aborted and takes no more.
    pub async fn write(&mut self, chunk: Bytes) -> Result<()> {
        let written = self.buffer_and_send(chunk).await;
        self.abort_on_error(written).await
    }

    /// Makes the bytes written so far the object; returns their number. After `Ok` the object survives a crash.
    ///
    /// # Errors
    /// Those of any part, and as [`Store::put`].
    pub async fn finish(mut self) -> Result<u64> {
        let finished = match self.state {
            State::Buffered => self.put_whole().await,
            State::Started { .. } => self.complete().await,
            State::Ended => Err(self.error(ErrorKind::Invalid).with_source(UploadEnded)),
        };
        self.abort_on_error(finished).await?;
        self.state = State::Ended;
        Ok(self.stored_bytes)
    }

    /// Deletes what was stored of the object. Best effort: a failure is logged.
    pub async fn abort(mut self) {
        self.end().await;
    }

    async fn buffer_and_send(&mut self, chunk: Bytes) -> Result<()> {
        if matches!(self.state, State::Ended) {
            return Err(self.error(ErrorKind::Invalid).with_source(UploadEnded));
        }
        let mut rest = chunk;
        if self.limits.cheap_parts && rest.len() >= CHEAP_PART_BYTES {
            self.send_rest().await?;
            self.stored_bytes += rest.len() as u64;
            return self.send_part(rest).await;
        }
        while !rest.is_empty() {
            if self.buffer.len() == self.buffer_bytes() {
                self.send_buffer().await?;
            }
            let room = self.buffer_bytes() - self.buffer.len();
            let taken = rest.split_to(room.min(rest.len()));
            // The whole part at once: growing step by step would copy, and could end at twice its size.
            self.buffer.reserve(room);
            self.buffer.extend_from_slice(&taken);
            self.stored_bytes += taken.len() as u64;
        }
        Ok(())
    }

    /// How full the buffer gets before it is sent.
    fn buffer_bytes(&self) -> usize {
        match self.state {
            State::Buffered => self.whole_bytes,
            State::Started { .. } | State::Ended => self.limits.part_size_bytes,
        }
    }

    /// Sends the buffer in parts; what is left in it is less than one.
    async fn send_buffer(&mut self) -> Result<()> {
        while self.buffer.len() >= self.limits.part_size_bytes {
            let part = self.buffer.split_to(self.limits.part_size_bytes).freeze();
            self.send_part(part).await?;
        }
        // Of its own: what is left would keep all that was sent in memory.
        self.buffer = BytesMut::from(self.buffer.as_ref());
        Ok(())
    }

    /// Sends what is in the buffer as a part of its own.
    async fn send_rest(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let part = mem::take(&mut self.buffer).freeze();
        self.send_part(part).await
    }

    async fn put_whole(&mut self) -> Result<()> {
        let body = mem::take(&mut self.buffer).freeze();
        self.check_sum(body.len() as u64)?;
        self.store.put(&self.key, body, self.mode).await
    }

    async fn complete(&mut self) -> Result<()> {
        self.send_rest().await?;
        while !self.in_flight.is_empty() {
            self.take_receipt().await?;
        }
        self.receipts.sort_unstable_by_key(|receipt| receipt.number);
        self.check_sum(self.receipts.iter().map(|receipt| receipt.size_bytes).sum())?;
        match &self.state {
            State::Started { upload, .. } => self.request_completion(upload).await,
            State::Buffered | State::Ended => Ok(()),
        }
    }

    /// What is about to become the object is all that was written: a write that was dropped halfway leaves a hole.
    fn check_sum(&self, sent_bytes: u64) -> Result<()> {
        let written_bytes = self.stored_bytes;
        if sent_bytes == written_bytes {
            return Ok(());
        }
        Err(self.error(ErrorKind::Corrupted).with_source(BytesMissing {
            sent_bytes,
            written_bytes,
        }))
    }

    async fn request_completion(&self, upload: &UploadId) -> Result<()> {
        let store = &self.store;
        let _permit = permit(&store.inner.uploads).await;
        // A store that takes parts in order may send the last one only now.
        let sent_bytes = if self.limits.parallel_parts {
            0
        } else {
            self.limits.part_size_bytes
        };
        let mut retries = store.retries().with_time_for(sent_bytes);
        loop {
            let request =
                store
                    .inner
                    .store
                    .complete_upload(&self.key, upload, &self.receipts, self.mode);
            let object = || store.object_url(&self.key);
            let Err(error) = retries.attempt(Operation::Put, object, request).await else {
                return Ok(());
            };
            // An earlier attempt that did complete the upload leaves the object, and no upload.
            let answered = may_be_own(error.kind) || error.is_not_found();
            if answered && retries.is_repeated() {
                return store
                    .settle_lost_answer(&self.key, &self.token, self.stored_bytes, error)
                    .await;
            }
            retries.wait_after(error).await?;
        }
    }

    async fn send_part(&mut self, body: Bytes) -> Result<()> {
        let (upload, at) = self.next_part(body.len()).await?;
        while self.in_flight.len() >= self.most_in_flight() {
            self.take_receipt().await?;
        }
        let (store, key) = (self.store.clone(), self.key.clone());
        self.in_flight
            .spawn(async move { put_part(&store, &key, &upload, at, body).await });
        Ok(())
    }

    /// The upload, started if need be, and where its next part stands.
    async fn next_part(&mut self, size_bytes: usize) -> Result<(UploadId, PartAt)> {
        if matches!(self.state, State::Buffered) {
            let upload = self.start().await?;
            self.state = State::Started {
                upload,
                parts: 0,
                sent_bytes: 0,
            };
        }
        let max_parts = self.limits.max_parts;
        match &mut self.state {
            State::Started {
                upload,
                parts,
                sent_bytes,
            } if *parts < max_parts => {
                *parts += 1;
                let at = PartAt {
                    number: *parts,
                    offset: *sent_bytes,
                };
                *sent_bytes += size_bytes as u64;
                Ok((upload.clone(), at))
            }
            State::Started { .. } => {
                let part_size_bytes = self.limits.part_size_bytes;
                Err(self.error(ErrorKind::Invalid).with_source(TooManyParts {
                    max_parts,
                    part_size_bytes,
                }))
            }
            State::Buffered | State::Ended => {
                Err(self.error(ErrorKind::Invalid).with_source(UploadEnded))
            }
        }
    }

    async fn start(&mut self) -> Result<UploadId> {
        let (store, key) = (self.store.clone(), self.key.clone());
        let (mode, token) = (self.mode, self.token.clone());
        let begin = || tokio::spawn(async move { start(&store, &key, mode, &token).await });
        let started = self.starting.get_or_insert_with(begin).await;
        self.starting = None;
        started.unwrap_or_else(|join| Err(self.error(ErrorKind::Other).with_source(join)))
    }

    fn most_in_flight(&self) -> usize {
        if self.limits.parallel_parts {
            self.store
                .inner
                .options
                .upload_concurrency
                .clamp(1, PARTS_IN_FLIGHT)
        } else {
            1
        }
    }

    async fn take_receipt(&mut self) -> Result<()> {
        match self.in_flight.join_next().await {
            None => Ok(()),
            Some(Ok(receipt)) => {
                self.receipts.push(receipt?);
                Ok(())
            }
            Some(Err(join)) => Err(self.error(ErrorKind::Other).with_source(join)),
        }
    }

    async fn abort_on_error(&mut self, result: Result<()>) -> Result<()> {
        if result.is_err() {
            self.end().await;
        }
        result
    }

    async fn end(&mut self) {
        self.in_flight.shutdown().await;
        self.buffer = BytesMut::new();
        if let Some(starting) = &mut self.starting {
            let started = timeout(ABORT_DEADLINE, starting).await;
            if let Ok(Ok(Ok(upload))) = started {
                delete_parts(&self.store, &self.key, &upload).await;
            }
            self.starting = None;
        }
        // Left in place until the parts are deleted, so that a drop meanwhile still sees to them.
        if let State::Started { upload, .. } = &self.state {
            delete_parts(&self.store, &self.key, upload).await;
        }
        self.state = State::Ended;
    }

    fn error(&self, kind: ErrorKind) -> Error {
        Error::new(Operation::Put, self.store.object_url(&self.key), kind)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let starting = self.starting.take();
        let started = match mem::replace(&mut self.state, State::Ended) {
            State::Started { upload, .. } => Some(upload),
            State::Buffered | State::Ended => None,
        };
        if starting.is_none() && started.is_none() {
            return;
        }
        let (store, key) = (self.store.clone(), self.key.clone());
        let mut in_flight = mem::take(&mut self.in_flight);
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                in_flight.shutdown().await;
                let started = match (started, starting) {
                    (None, Some(starting)) => starting.await.ok().and_then(Result::ok),
                    (started, _) => started,
                };
                if let Some(upload) = started {
                    delete_parts(&store, &key, &upload).await;
                }
            });
        }
    }
}

/// More was written than the store takes in one object.
#[derive(Debug, thiserror::Error)]
#[error(
    "the object is longer than {max_parts} parts of {part_size_bytes} bytes; \
     hint: set a larger part size"
)]
struct TooManyParts {
    max_parts: u32,
    part_size_bytes: usize,
}

/// Fewer bytes reached the store than were written.
#[derive(Debug, thiserror::Error)]
#[error("{sent_bytes} of {written_bytes} bytes reached the store; a write was given up halfway")]
struct BytesMissing {
    sent_bytes: u64,
    written_bytes: u64,
}

/// An upload was used after it failed.
#[derive(Debug, thiserror::Error)]
#[error("the upload has failed before and takes no more")]
struct UploadEnded;

async fn start(
    store: &Store,
    key: &ObjectKey,
    mode: PutMode,
    token: &PutToken,
) -> Result<UploadId> {
    let _permit = permit(&store.inner.uploads).await;
    let mut retries = store.retries();
    loop {
        let request = store.inner.store.start_upload(key, mode, token);
        match retries
            .attempt(Operation::Put, || store.object_url(key), request)
            .await
        {
            Ok(upload) => return Ok(upload),
            Err(error) => retries.wait_after(error).await?,
        }
    }
}

async fn put_part(
    store: &Store,
    key: &ObjectKey,
    upload: &UploadId,
    at: PartAt,
    body: Bytes,
) -> Result<PartReceipt> {
    let mut permit = None;
    let mut retries = store.retries().sending(body.len());
    loop {
        store
            .may_send(key, body.len(), &mut permit, &mut retries)
            .await?;
        let request = store.inner.store.put_part(key, upload, at, body.clone());
        match retries
            .attempt(Operation::Put, || store.object_url(key), request)
            .await
        {
            Ok(receipt) => return Ok(receipt),
            Err(error) => retries.wait_after(error).await?,
        }
    }
}

/// See [`Store::start_and_abort`].
pub(super) async fn start_and_abort(store: &Store, key: &ObjectKey) -> Result<()> {
    let upload = start(store, key, PutMode::Create, &PutToken::random()).await?;
    abort(store, key, &upload).await
}

/// Deletes the parts of an upload. What stays behind costs space but is never read: a rule of the
/// bucket's life cycle can clear it.
async fn delete_parts(store: &Store, key: &ObjectKey, upload: &UploadId) {
    if let Err(error) = abort(store, key, upload).await {
        tracing::warn!(%error, "could not delete the parts of an upload that failed");
    }
}

async fn abort(store: &Store, key: &ObjectKey, upload: &UploadId) -> Result<()> {
    let mut retries = store.retries().within(ABORT_DEADLINE);
    loop {
        let request = store.inner.store.abort_upload(key, upload);
        match retries
            .attempt(Operation::Put, || store.object_url(key), request)
            .await
        {
            Ok(()) => return Ok(()),
            Err(error) => retries.wait_after(error).await?,
        }
    }
}
