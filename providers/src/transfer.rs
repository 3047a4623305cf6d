//! Retry, multipart and concurrency over any [`ObjectStore`]: the only place that retries.
//!
//! ```text
//! write ─▶ part buffer ─▶ ≤ 4 parts in flight ─┐
//! put ─────────────────────────────────────────┼─▶ rates of the process, permits of the store ─▶ attempts ─▶ dyn ObjectStore
//! read ────────────────────────────────────────┘   (up, down)             (up, down)             until the deadline
//! ```
//!
//! Retried are [`Error::is_retryable`] failures and, two times, a body that arrived damaged; nothing
//! else. Peak memory of a [`Store`]:
//! `uploads × part size × (1 + parts in flight of an upload)`, see [`Upload`], and one chunk a reader.

mod as_of;
mod either;
mod late;
mod listing;
mod open;
mod rate;
mod reader;
mod retry;
mod upload;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::{
    Error, ErrorKind, GrowingObject, ListRequest, ListingCost, MAX_DELETE_KEYS, ObjectInfo,
    ObjectKey, ObjectStore, Operation, PutMode, PutToken, Result, Retained, Right,
    UnfinishedUpload,
};
pub use as_of::AsOfStore;
pub use either::EitherStore;
pub use listing::Listing;
pub use open::{
    AzureSettings, ConditionalWrites, GcsSettings, ObjectLock, S3Settings, StoreSettings,
    directory_of, open, open_beside, shown,
};
use rate::Limiter;
pub use rate::{MOST_SAVED, Priority, Rate, RateClock, Rates};
pub use reader::Reader;
pub use retry::{Patience, RetryPolicy};
use retry::{Retries, Told};
pub use upload::Upload;

/// An error with its causes, in one line.
fn in_words(error: &Error) -> String {
    let mut words = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(reason) = source {
        words = format!("{words}: {reason}");
        source = reason.source();
    }
    words
}

/// How long nobody waits for what is only told.
const RETAINED_DEADLINE: Duration = Duration::from_secs(10);

/// Most keys of one listing.
pub const MAX_LISTED_KEYS: usize = 10_000_000;

/// How often [`Store::get`] reads an object that arrives damaged: a bit may turn on the way.
const MOST_DAMAGED_READS: u32 = 3;

/// Most objects that [`Store::get`] reads at one time, over all uses of one [`Store`]. They are short, so that what they take
/// is one answer of the store each: whoever needs many asks for many at a time, however few bodies `download_concurrency`
/// lets flow.
const MOST_SHORT: usize = 32;

/// How a [`Store`] uses its store.
#[derive(Clone, Debug)]
pub struct Options {
    /// When a failed request is sent again.
    pub retry: RetryPolicy,
    /// Most puts and parts on their way at one time, over all uses of one [`Store`]; at least 1.
    pub upload_concurrency: usize,
    /// Most bodies, and most pieces of bodies, being read at one time, over all uses of one [`Store`]; at least 1. Objects that
    /// [`Store::get`] reads do not count.
    pub download_concurrency: usize,
    /// How many bytes a second go up and come down, over all stores with clones of these rates.
    pub rates: Rates,
}

/// What a body is read for. Each use has permits of its own: who reads a whole object, for as long as it takes, may wait for
/// a piece of another one meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyUse {
    /// From its begin, as slowly as its reader likes.
    Whole,
    /// A few bytes, which its reader takes at once and asks for nothing else before.
    Piece,
    /// A whole object that fits in memory, which [`Store::get`] takes at once.
    Short,
}

/// A store with retries, uploads in parts, bounded concurrency and rates; clones share their permits and rates.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Clone)]
struct Inner {
    store: Arc<dyn ObjectStore>,
    options: Options,
    priority: Priority,
    uploads: Arc<Semaphore>,
    whole_bodies: Arc<Semaphore>,
    pieces: Arc<Semaphore>,
    short: Arc<Semaphore>,
    patience: Option<Patience>,
    told: Told,
}

impl Store {
    /// `store`, used as `options` say.
    pub fn new(store: Arc<dyn ObjectStore>, options: Options) -> Self {
        let permits =
            |count: usize| Arc::new(Semaphore::new(count.clamp(1, Semaphore::MAX_PERMITS)));
        let uploads = permits(options.upload_concurrency);
        let whole_bodies = permits(options.download_concurrency);
        let pieces = permits(options.download_concurrency);
        Self {
            inner: Arc::new(Inner {
                store,
                options,
                priority: Priority::Ordinary,
                uploads,
                whole_bodies,
                pieces,
                short: permits(MOST_SHORT),
                patience: None,
                told: Told::default(),
            }),
        }
    }

    /// The same store, whose requests together may go on failing only as long as `patience` lasts.
    #[must_use]
    pub fn patient(&self, patience: &Patience) -> Self {
        self.with(|inner| inner.patience = Some(patience.clone()))
    }

    /// The same store for what goes before all else where there is a rate.
    #[must_use]
    pub fn urgent(&self) -> Self {
        self.with(|inner| inner.priority = Priority::Urgent)
    }

    /// The same store for objects that can be made anew, see [`ObjectStore::for_derived`]. They are not urgent.
    #[must_use]
    pub fn for_derived(&self) -> Self {
        self.with(|inner| {
            inner.priority = Priority::Ordinary;
            if let Some(store) = inner.store.for_derived() {
                inner.store = store;
            }
        })
    }

    /// The same store, with another time for which failed requests are sent again.
    #[must_use]
    pub fn within(&self, deadline: Duration) -> Self {
        self.with(|inner| inner.options.retry.deadline = deadline)
    }

    fn with(&self, change: impl FnOnce(&mut Inner)) -> Self {
        let mut inner = Inner::clone(&self.inner);
        change(&mut inner);
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Whether something that is as urgent as what this store sends waits for the rate now.
    pub fn is_held_back(&self) -> bool {
        let rate = self.inner.options.rates.up.as_ref();
        rate.is_some_and(|rate| rate.is_waited_for(self.inner.priority))
    }

    /// The store's URL, without secrets and without a trailing slash.
    pub fn url(&self) -> &str {
        self.inner.store.url()
    }

    /// What the store's administrator calls a right.
    pub fn right(&self, right: Right) -> &'static str {
        self.inner.store.right(right)
    }

    /// Finds out what the first [`PutMode::Create`] has to know of the store. What goes wrong comes again at that put, which
    /// waits for an answer that is on its way.
    pub async fn prepare_creates(&self) {
        if let Err(error) = self.inner.store.prepare_creates().await {
            tracing::debug!(%error, "creates could not be prepared");
        }
    }

    /// What the store was found not to do although it is relied on, see [`ObjectStore::shortcomings`].
    pub async fn shortcomings(&self) -> Result<Vec<String>> {
        let mut retries = self.retries();
        loop {
            let request = self.inner.store.shortcomings();
            let url = || self.url().to_owned();
            match retries.attempt(Operation::Put, url, request).await {
                Ok(found) => return Ok(found),
                Err(error) => retries.wait_after(error).await?,
            }
        }
    }

    /// [`ObjectStore::retained`]
    ///
    /// # Errors
    /// The store's; nothing is tried again, and no answer is waited for long.
    pub async fn retained(&self, key: &ObjectKey) -> Result<Retained> {
        let asked = tokio::time::timeout(RETAINED_DEADLINE, self.inner.store.retained(key)).await;
        asked.unwrap_or_else(|_| {
            let object = self.object_url(key);
            Err(Error::new(
                Operation::Head,
                object,
                ErrorKind::DeadlineExceeded,
            ))
        })
    }

    /// [`ObjectStore::as_of`]
    pub fn as_of(&self) -> Option<jiff::Timestamp> {
        self.inner.store.as_of()
    }

    /// [`ObjectStore::left_out`]
    pub fn left_out(&self) -> Option<&str> {
        self.inner.store.left_out()
    }

    /// The object's URL, for messages.
    pub fn object_url(&self, key: &ObjectKey) -> String {
        format!("{}/{key}", self.url())
    }

    /// Stores `body` under `key` in one request. After `Ok` the object survives a crash, and no reader ever saw part of it.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] with [`PutMode::Create`] when the key is taken by another
    /// writer's object; an own earlier attempt whose answer was lost is success.
    pub async fn put(&self, key: &ObjectKey, body: Bytes, mode: PutMode) -> Result<()> {
        let token = PutToken::random();
        let mut permit = None;
        let mut retries = self.retries().sending(body.len());
        loop {
            self.may_send(key, body.len(), &mut permit, &mut retries)
                .await?;
            let request = self.inner.store.put(key, body.clone(), mode, &token);
            let Err(error) = retries
                .attempt(Operation::Put, || self.object_url(key), request)
                .await
            else {
                return Ok(());
            };
            // An overwrite that is forbidden stays so, whoever the object is of.
            let is_create = mode == PutMode::Create;
            if is_create && may_be_own(error.kind) && retries.is_repeated() {
                let sent_bytes = body.len() as u64;
                return self
                    .settle_lost_answer(key, &token, sent_bytes, error)
                    .await;
            }
            retries.wait_after(error).await?;
        }
    }

    /// Begins an object that grows, see [`ObjectStore::grow`].
    ///
    /// # Errors
    /// The store's; nothing is tried again.
    pub async fn grow(&self, key: &ObjectKey) -> Result<Option<Box<dyn GrowingObject>>> {
        self.inner.store.grow(key).await
    }

    /// Begins an object of unknown length. No request is sent before a part is full: a body that
    /// ends within the first part becomes one put.
    pub fn upload(&self, key: ObjectKey, mode: PutMode) -> Upload {
        Upload::new(self.clone(), key, mode)
    }

    /// Begins an upload and drops it, to see whether that is allowed.
    ///
    /// # Errors
    /// Of either request.
    pub async fn start_and_abort(&self, key: &ObjectKey) -> Result<()> {
        upload::start_and_abort(self, key).await
    }

    /// The object's bytes from `offset` (`length` of them, or to the end; never past the end).
    ///
    /// The reader holds one of the store's permits for whole bodies until it is read to its end or dropped: a task that
    /// holds one must not wait for another, unless there are more permits than such tasks.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] only when the store proved that the key is not there;
    /// [`ErrorKind::Invalid`] when `offset` is not 0 and lies at or past the end.
    pub async fn read(&self, key: &ObjectKey, offset: u64, length: Option<u64>) -> Result<Reader> {
        Reader::open(self.clone(), key.clone(), offset, length, BodyUse::Whole).await
    }

    /// The same for a few bytes that are taken at once. Tasks that hold a reader of a whole body may wait for it.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub async fn read_piece(
        &self,
        key: &ObjectKey,
        offset: u64,
        length: Option<u64>,
    ) -> Result<Reader> {
        Reader::open(self.clone(), key.clone(), offset, length, BodyUse::Piece).await
    }

    /// The whole object, in memory. One that arrives damaged is read again.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] only when the store proved that the key is not there;
    /// [`ErrorKind::Invalid`] when the object is longer than `limit_bytes`.
    pub async fn get(&self, key: &ObjectKey, limit_bytes: u64) -> Result<Bytes> {
        let mut reads = 1;
        loop {
            match self.get_once(key, limit_bytes).await {
                Err(error) if error.kind == ErrorKind::Corrupted && reads < MOST_DAMAGED_READS => {
                    tracing::debug!(%error, "the object arrived damaged and is read again");
                    reads += 1;
                }
                outcome => return outcome,
            }
        }
    }

    async fn get_once(&self, key: &ObjectKey, limit_bytes: u64) -> Result<Bytes> {
        let mut reader = Reader::open(self.clone(), key.clone(), 0, None, BodyUse::Short).await?;
        let size_bytes = reader.size_bytes();
        if size_bytes > limit_bytes {
            let error = Error::new(Operation::Get, self.object_url(key), ErrorKind::Invalid);
            return Err(error.with_source(ObjectTooLarge {
                size_bytes,
                limit_bytes,
            }));
        }
        let mut body = BytesMut::with_capacity(usize::try_from(size_bytes).unwrap_or(0));
        while let Some(chunk) = reader.next().await? {
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    /// The object's size and time.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] only when the store proved that the key is not there.
    pub async fn head(&self, key: &ObjectKey) -> Result<ObjectInfo> {
        let mut retries = self.retries();
        loop {
            let request = self.inner.store.head(key);
            match retries
                .attempt(Operation::Head, || self.object_url(key), request)
                .await
            {
                Ok(info) => return Ok(info),
                Err(error) => retries.wait_after(error).await?,
            }
        }
    }

    /// Those of `keys` that are there, of which all begin with `prefix`: by one listing, or a head of each, whatever the
    /// store does better.
    ///
    /// A key that is not among them is proven absent: listings of every store are as consistent as heads.
    pub async fn present(&self, prefix: &str, keys: &[ObjectKey]) -> Result<Vec<ObjectInfo>> {
        if self.lists_by_prefix() {
            let listed = self.list(prefix, None).await;
            let mut found = listed.map_err(|error| Error {
                object: format!("{}/{prefix}", self.url()),
                ..error
            })?;
            found.retain(|info| keys.contains(&info.key));
            return Ok(found);
        }
        // One after the other: in a directory each takes less time than a thread to ask on does.
        let mut found = Vec::new();
        for key in keys {
            match self.head(key).await {
                Err(error) if error.is_not_found() => {}
                head => found.push(head?),
            }
        }
        Ok(found)
    }

    /// Makes sure that an object that was found is durable, whoever wrote it.
    pub async fn settle(&self, key: &ObjectKey) -> Result<()> {
        self.inner.store.settle(key).await
    }

    /// The objects whose keys begin with `prefix` and are greater than `start_after`, page by page.
    pub fn pages(&self, prefix: &str, start_after: Option<&str>) -> Listing {
        Listing::of_objects(self.clone(), prefix, start_after)
    }

    /// All objects whose keys begin with `prefix` and are greater than `start_after`, in byte order; at most
    /// [`MAX_LISTED_KEYS`]. For prefixes of few keys: [`Store::pages`] does not hold all of them in memory.
    pub async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<ObjectInfo>> {
        let mut objects = Vec::new();
        let mut pages = self.pages(prefix, start_after);
        while let Some(page) = pages.next_page().await? {
            objects.extend(page.objects);
        }
        // SeaweedFS (4.48) sorts folders among files by their names without the slash.
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    /// Whether a listing of keys with one prefix costs no more than one request for one of them.
    pub fn lists_by_prefix(&self) -> bool {
        self.inner.store.limits().listings >= ListingCost::Prefix
    }

    /// Whether a listing that begins after a key costs no more than one that begins with the first key.
    pub fn begins_listings_anywhere(&self) -> bool {
        self.inner.store.limits().listings == ListingCost::Shown
    }

    /// What `wanted` makes of the first object that it takes, of those whose keys begin with `prefix` and are greater than
    /// `start_after`; no page is asked for after that. It is expected `within` so many keys.
    pub async fn find<T>(
        &self,
        prefix: &str,
        start_after: &str,
        within: Option<u16>,
        mut wanted: impl FnMut(&ObjectInfo) -> Option<T>,
    ) -> Result<Option<T>> {
        let pages = self.pages(prefix, Some(start_after));
        let mut pages = match within {
            Some(most_keys) => pages.of_first(most_keys),
            None => pages,
        };
        while let Some(page) = pages.next_page().await? {
            if let Some(found) = page.objects.iter().find_map(&mut wanted) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// What is directly below `folder` (which ends in `/` or is empty), page by page: objects, and the keys of folders.
    pub fn level(&self, folder: &str) -> Listing {
        Listing::of_folders(self.clone(), folder)
    }

    /// The names of the folders directly below `prefix` (which ends in `/` or is empty), each
    /// without the prefix and without a trailing slash, in byte order of the names with it.
    pub async fn folders(&self, prefix: &str) -> Result<Vec<String>> {
        let mut folders = Vec::new();
        let mut pages = self.level(prefix);
        while let Some(page) = pages.next_page().await? {
            folders.extend(page.folders);
        }
        folders.sort_unstable();
        let name = |folder: String| {
            let name = folder.strip_prefix(prefix).unwrap_or(&folder);
            name.strip_suffix('/').unwrap_or(name).to_owned()
        };
        Ok(folders.into_iter().map(name).collect())
    }

    /// Deletes `keys`; a key that is not there counts as deleted. Returns each key that was refused, with its reason.
    pub async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, Error)>> {
        let mut refused = Vec::new();
        for batch in keys.chunks(MAX_DELETE_KEYS) {
            refused.extend(self.delete_batch(batch.to_vec()).await?);
        }
        Ok(refused)
    }

    /// Deletes at most [`MAX_DELETE_KEYS`]; keys whose failure may pass are tried again.
    async fn delete_batch(&self, mut keys: Vec<ObjectKey>) -> Result<Vec<(ObjectKey, Error)>> {
        let mut retries = self.retries();
        let mut refused = Vec::new();
        loop {
            let request = self.inner.store.delete(&keys);
            let url = || self.url().to_owned();
            let error = match retries.attempt(Operation::Delete, url, request).await {
                Err(error) => error,
                Ok(failures) => {
                    let (again, lasting): (Vec<_>, Vec<_>) = failures
                        .into_iter()
                        .partition(|(_, error)| error.is_retryable());
                    refused.extend(lasting);
                    let (left, mut errors): (Vec<_>, Vec<_>) = again.into_iter().unzip();
                    keys = left;
                    let Some(error) = errors.pop() else {
                        return Ok(refused);
                    };
                    error
                }
            };
            retries.wait_after(error).await?;
        }
    }

    /// Uploads for keys that begin with `prefix` (empty, or ending in `/`) that were begun and neither completed nor dropped. A
    /// store that drops them by itself tells of none.
    ///
    /// # Errors
    /// The store's, as those of a listing.
    pub async fn unfinished_uploads(&self, prefix: &str) -> Result<Vec<UnfinishedUpload>> {
        let mut uploads = Vec::new();
        let mut page = None;
        loop {
            let mut retries = self.retries();
            let found = loop {
                let attempt = self.inner.store.unfinished_uploads(prefix, page.as_ref());
                match retries
                    .attempt(Operation::List, || self.url().to_owned(), attempt)
                    .await
                {
                    Ok(found) => break found,
                    Err(error) => retries.wait_after(error).await?,
                }
            };
            uploads.extend(found.uploads);
            if uploads.len() > MAX_LISTED_KEYS || (found.next.is_some() && found.next == page) {
                return Err(self.list_error(ErrorKind::Other));
            }
            page = found.next;
            if page.is_none() {
                return Ok(uploads);
            }
        }
    }

    /// Drops an unfinished upload.
    ///
    /// # Errors
    /// The store's.
    pub async fn drop_unfinished(&self, upload: &UnfinishedUpload) -> Result<()> {
        let mut retries = self.retries();
        loop {
            let attempt = self.inner.store.drop_unfinished(upload);
            match retries
                .attempt(Operation::Delete, || self.url().to_owned(), attempt)
                .await
            {
                Ok(()) => return Ok(()),
                Err(error) => retries.wait_after(error).await?,
            }
        }
    }

    async fn page(&self, request: &ListRequest) -> Result<crate::ListPage> {
        let mut retries = self.retries();
        loop {
            let attempt = self.inner.store.list(request);
            match retries
                .attempt(Operation::List, || self.url().to_owned(), attempt)
                .await
            {
                Ok(page) => return Ok(page),
                Err(error) => retries.wait_after(error).await?,
            }
        }
    }

    fn list_error(&self, kind: ErrorKind) -> Error {
        Error::new(Operation::List, self.url(), kind)
    }

    /// `Ok` when the object that a repeated create met carries its own token; `refusal` when it is another's.
    async fn settle_lost_answer(
        &self,
        key: &ObjectKey,
        token: &PutToken,
        sent_bytes: u64,
        refusal: Error,
    ) -> Result<()> {
        let object = self.object_url(key);
        match self.head(key).await {
            Ok(info) if info.token.as_ref() == Some(token) && info.size_bytes != sent_bytes => {
                let stored_bytes = info.size_bytes;
                let source = OtherSize {
                    stored_bytes,
                    sent_bytes,
                };
                Err(Error::new(Operation::Put, object, ErrorKind::Other).with_source(source))
            }
            Ok(info) if info.token.as_ref() == Some(token) => {
                tracing::debug!(%object, "an earlier attempt had stored the object; its answer was lost");
                Ok(())
            }
            Ok(_) => Err(Error {
                kind: ErrorKind::AlreadyExists,
                ..refusal
            }),
            Err(error) if error.is_not_found() || refusal.kind == ErrorKind::PermissionDenied => {
                Err(refusal)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns when a body of `bytes` may be sent, with a permit for it. No limit of `retries` counts the time. Whoever waits
    /// for the rate holds no permit meanwhile: a more urgent body needs one.
    ///
    /// # Errors
    /// The end of patience.
    async fn may_send(
        &self,
        key: &ObjectKey,
        bytes: usize,
        held: &mut Option<OwnedSemaphorePermit>,
        retries: &mut Retries,
    ) -> Result<()> {
        let begun = Instant::now();
        if let Some(rate) = &self.inner.options.rates.up {
            *held = None;
            let waited = self.wait_for_turn(rate, bytes).await;
            waited.map_err(|ended| {
                let object = self.object_url(key);
                Error::new(Operation::Put, object, ErrorKind::DeadlineExceeded).with_source(ended)
            })?;
        }
        if held.is_none() {
            *held = Some(permit(&self.inner.uploads).await);
        }
        retries.excuse(begun.elapsed());
        Ok(())
    }

    async fn wait_for_turn(
        &self,
        rate: &Limiter,
        bytes: usize,
    ) -> std::result::Result<(), TurnNotCome> {
        let turn = rate.wait_for_turn(self.inner.priority, bytes);
        match &self.inner.patience {
            None => turn.await,
            Some(patience) => patience.excused(turn).await.ok_or(TurnNotCome)?,
        }
        Ok(())
    }

    fn retries(&self) -> Retries {
        Retries::new(
            self.inner.options.retry.clone(),
            self.inner.store.limits().times_out,
            self.inner.patience.clone(),
            Arc::clone(&self.inner.told),
        )
        .at(self.inner.store.place())
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("url", &self.url())
            .field("options", &self.inner.options)
            .finish()
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            retry: RetryPolicy::default(),
            upload_concurrency: 8,
            download_concurrency: 8,
            rates: Rates::default(),
        }
    }
}

/// What a store keeps under a name is this process's own, and not what it sent.
#[derive(Debug, thiserror::Error)]
#[error(
    "the store keeps {stored_bytes} bytes of the {sent_bytes} that were sent; hint: delete the object and try again"
)]
struct OtherSize {
    stored_bytes: u64,
    sent_bytes: u64,
}

/// An object is longer than its reader takes.
#[derive(Debug, thiserror::Error)]
#[error("the object has {size_bytes} bytes, more than the {limit_bytes} that it may have")]
struct ObjectTooLarge {
    size_bytes: u64,
    limit_bytes: u64,
}

/// A transfer waited for the rate until nobody had time for it any more.
#[derive(Debug, thiserror::Error)]
#[error("the rate limit left no time for it before this process had to end")]
struct TurnNotCome;

/// Whether a repeated create that is refused so may have met the object of an earlier attempt. Stores that guard
/// what is there (retention, roles that may not replace) may say "forbidden" before they look at the condition.
fn may_be_own(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::AlreadyExists | ErrorKind::PermissionDenied)
}

impl Inner {
    async fn permit_to_read(&self, body: BodyUse) -> OwnedSemaphorePermit {
        permit(match body {
            BodyUse::Whole => &self.whole_bodies,
            BodyUse::Piece => &self.pieces,
            BodyUse::Short => &self.short,
        })
        .await
    }
}

async fn permit(semaphore: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(semaphore)
        .acquire_owned()
        .await
        .expect("the semaphore is never closed")
}
