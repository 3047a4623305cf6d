//! The one door to the store: ordinary threads ask here, and have the answer when the call returns.
//!
//! ```text
//! ordinary threads ─▶ StoreSession ─▶ Network's threads ─▶ Store: permits, retries ─▶ S3, Google, Azure, directory
//! ```
//!
//! Only this file waits for the network's threads. A session serves a command that ends in milliseconds and a process that
//! lives for months: nothing in it ages, its clones share permits and connections, and the store renews its credentials.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use std::vec;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};
use walhalla_providers::transfer::{
    self, EitherStore, Listing, Options, Patience, Store, StoreSettings, Upload,
};
use walhalla_providers::{
    Error, GrowingObject, ObjectInfo, ObjectKey, PutMode, Result, Retained, UnfinishedUpload,
};

/// Batches of an object's bytes that wait for who reads it.
const QUEUED_BATCHES: usize = 2;
/// Bytes that go to the reader at once: to wake it costs as much as copying some ten thousand.
const BATCH_BYTES: usize = 256 << 10;

/// The threads on which requests run.
#[derive(Debug)]
pub struct Network(Runtime);

impl Network {
    /// Starts so many.
    ///
    /// # Errors
    /// The system's.
    pub fn start(threads: usize) -> io::Result<Self> {
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(threads).enable_all().build()?;
        Ok(Self(runtime))
    }

    /// Opens the store at `url`.
    ///
    /// # Errors
    /// What is wrong with the URL, the settings or the credentials.
    pub fn open(
        &self,
        url: &str,
        settings: &StoreSettings,
        options: Options,
    ) -> Result<StoreSession> {
        let store = self.0.block_on(transfer::open(url, settings))?;
        Ok(StoreSession::new(Store::new(store, options), self))
    }

    /// Opens a store beside another one, also where it is a directory that is not there now.
    ///
    /// # Errors
    /// As [`Network::open`].
    pub fn open_second(
        &self,
        url: &str,
        settings: &StoreSettings,
        options: Options,
    ) -> Result<StoreSession> {
        let store = self.0.block_on(transfer::open_beside(url, settings))?;
        Ok(StoreSession::new(Store::new(store, options), self))
    }

    /// Opens two stores that hold the same, for reading what either of them has: see [`EitherStore`].
    ///
    /// # Errors
    /// As [`Network::open`], of either.
    pub fn open_either(
        &self,
        first: (&str, &StoreSettings),
        second: (&str, &StoreSettings),
        options: Options,
    ) -> Result<StoreSession> {
        let open = |(url, settings)| self.0.block_on(transfer::open_beside(url, settings));
        let store = EitherStore::new(open(first)?, open(second)?);
        Ok(StoreSession::new(
            Store::new(Arc::new(store), options),
            self,
        ))
    }

    /// Calls `heard` with what stands beside each signal, whenever it comes. A signal that comes once this has returned is
    /// heard.
    ///
    /// # Errors
    /// The system's.
    pub fn on_signals<T: Copy + Send + 'static>(
        &self,
        signals: &[(SignalKind, T)],
        heard: impl Fn(T) + Clone + Send + 'static,
    ) -> io::Result<()> {
        let _runtime = self.0.enter();
        for &(kind, meaning) in signals {
            let (mut comes, heard) = (signal(kind)?, heard.clone());
            self.spawn(async move {
                while comes.recv().await.is_some() {
                    heard(meaning);
                }
            });
        }
        Ok(())
    }

    /// Sets something to work on them.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(work);
    }

    /// Ends them without waiting: a request to a file system that hangs cannot be ended.
    pub fn stop(self) {
        self.0.shutdown_background();
    }
}

/// An opened store, for ordinary threads.
#[derive(Clone)]
pub struct StoreSession {
    store: Store,
    network: Handle,
}

impl fmt::Debug for StoreSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StoreSession").field(&self.url()).finish()
    }
}

/// An object's stored bytes, which come in while they are read.
#[derive(Debug)]
pub struct Chunks {
    batches: mpsc::Receiver<Vec<Result<Bytes>>>,
    batch: vec::IntoIter<Result<Bytes>>,
}

impl Chunks {
    /// The next bytes, never empty; `None` after the last ones or an error.
    pub fn wait_for_next(&mut self) -> Option<Result<Bytes>> {
        if self.batch.len() == 0 {
            self.batch = self.batches.blocking_recv()?.into_iter();
        }
        self.batch.next()
    }
}

/// Hands over what comes, until all came or an error did.
async fn pass_on(mut reader: transfer::Reader, batches: mpsc::Sender<Vec<Result<Bytes>>>) {
    let mut is_open = true;
    while is_open {
        let (mut batch, mut length) = (Vec::new(), 0);
        while is_open && length < BATCH_BYTES {
            let chunk = reader.next().await.transpose();
            is_open = matches!(chunk, Some(Ok(_)));
            length += chunk.iter().flatten().map(Bytes::len).sum::<usize>();
            batch.extend(chunk);
        }
        if !batch.is_empty() && batches.send(batch).await.is_err() {
            return;
        }
    }
}

impl StoreSession {
    /// A session with `store`.
    pub fn new(store: Store, network: &Network) -> Self {
        Self {
            store,
            network: network.0.handle().clone(),
        }
    }

    /// The store's URL, without secrets and without a trailing slash.
    pub fn url(&self) -> &str {
        self.store.url()
    }

    /// [`Store::retained`]
    ///
    /// # Errors
    /// The store's.
    pub fn retained(&self, key: &ObjectKey) -> Result<Retained> {
        self.wait(self.store.retained(key))
    }

    /// [`Store::as_of`]
    pub fn as_of(&self) -> Option<jiff::Timestamp> {
        self.store.as_of()
    }

    /// [`Store::left_out`]
    pub fn left_out(&self) -> Option<&str> {
        self.store.left_out()
    }

    /// An object's URL, for messages.
    pub fn object_url(&self, key: &ObjectKey) -> String {
        self.store.object_url(key)
    }

    /// The same session, with another time for which failed requests are sent again.
    #[must_use]
    pub fn within(&self, deadline: Duration) -> Self {
        Self {
            store: self.store.within(deadline),
            ..self.clone()
        }
    }

    /// The same session for objects that can be made anew: see [`Store::for_derived`].
    #[must_use]
    pub fn for_derived(&self) -> Self {
        Self {
            store: self.store.for_derived(),
            ..self.clone()
        }
    }

    /// The same session for what goes before all else: see [`Store::urgent`].
    #[must_use]
    pub fn urgent(&self) -> Self {
        Self {
            store: self.store.urgent(),
            ..self.clone()
        }
    }

    /// [`Store::is_held_back`]
    pub fn is_held_back(&self) -> bool {
        self.store.is_held_back()
    }

    /// The same session, whose requests together may go on failing only as long as `patience` lasts.
    #[must_use]
    pub fn patient(&self, patience: &Patience) -> Self {
        Self {
            store: self.store.patient(patience),
            ..self.clone()
        }
    }

    /// Waits for something that runs on the network's threads.
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.network.block_on(work)
    }

    /// Waits for what `work` does with the store.
    pub fn with_store<T>(&self, work: impl AsyncFnOnce(&Store) -> T) -> T {
        self.wait(work(&self.store))
    }

    /// Finds out beside other requests what the first [`PutMode::Create`] has to know of the store. One that is looked at as
    /// it was takes none.
    pub fn prepare_creates(&self) {
        if self.as_of().is_none() {
            let store = self.store.clone();
            self.spawn(async move { store.prepare_creates().await });
        }
    }

    /// Sets something to work on the network's threads.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.network.spawn(work)
    }

    /// Waits for the end of what was set to work.
    ///
    /// # Errors
    /// It panicked or was ended.
    pub fn join<T>(&self, work: JoinHandle<T>) -> std::result::Result<T, JoinError> {
        self.wait(work)
    }

    /// [`Store::upload`]
    pub fn upload(&self, key: ObjectKey, mode: PutMode) -> Upload {
        self.store.upload(key, mode)
    }

    /// [`Store::put`]
    ///
    /// # Errors
    /// The store's.
    pub fn put(&self, key: &ObjectKey, body: Bytes, mode: PutMode) -> Result<()> {
        self.wait(self.store.put(key, body, mode))
    }

    /// [`Store::grow`]
    ///
    /// # Errors
    /// The store's.
    pub fn grow(&self, key: &ObjectKey) -> Result<Option<Box<dyn GrowingObject>>> {
        self.wait(self.store.grow(key))
    }

    /// [`Store::get`]
    ///
    /// # Errors
    /// The store's.
    pub fn get(&self, key: &ObjectKey, limit_bytes: u64) -> Result<Bytes> {
        self.wait(self.store.get(key, limit_bytes))
    }

    /// [`Store::get`] of many objects, of which `at_a_time` are read at the same time; the answers come in the order of `keys`.
    pub fn get_all(
        &self,
        keys: impl IntoIterator<Item = ObjectKey>,
        limit_bytes: u64,
        at_a_time: usize,
    ) -> Vec<Result<Bytes>> {
        let store = &self.store;
        let gets = { keys.into_iter() }.map(async |key| store.get(&key, limit_bytes).await);
        self.wait(stream::iter(gets).buffered(at_a_time).collect())
    }

    /// Begins to read an object from its begin to its end. The first bytes are on their way when this returns.
    ///
    /// # Errors
    /// The store's, `NotFound` among them.
    pub fn read(&self, key: &ObjectKey) -> Result<Chunks> {
        let reader = self.wait(self.store.read(key, 0, None))?;
        let (sender, batches) = mpsc::channel(QUEUED_BATCHES);
        self.spawn(pass_on(reader, sender));
        Ok(Chunks {
            batches,
            batch: Vec::new().into_iter(),
        })
    }

    /// The bytes in `range` of an object; fewer where it ends before. Whoever is reading a whole object may ask for them.
    ///
    /// # Errors
    /// The store's; `Invalid` where the object ends before the range begins.
    pub fn read_range(&self, key: &ObjectKey, range: &Range<u64>) -> Result<Bytes> {
        let length = range.end.saturating_sub(range.start);
        self.wait(async {
            let piece = self.store.read_piece(key, range.start, Some(length));
            let mut reader = piece.await?;
            let mut bytes = BytesMut::new();
            while let Some(chunk) = reader.next().await? {
                bytes.extend_from_slice(&chunk);
            }
            Ok(bytes.freeze())
        })
    }

    /// [`Store::settle`]
    ///
    /// # Errors
    /// The store's.
    pub fn settle(&self, key: &ObjectKey) -> Result<()> {
        self.wait(self.store.settle(key))
    }

    /// [`Store::present`]
    ///
    /// # Errors
    /// The store's.
    pub fn present(&self, prefix: &str, keys: &[ObjectKey]) -> Result<Vec<ObjectInfo>> {
        self.wait(self.store.present(prefix, keys))
    }

    /// [`Store::list`]
    ///
    /// # Errors
    /// The store's.
    pub fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<ObjectInfo>> {
        self.wait(self.store.list(prefix, start_after))
    }

    /// [`Store::pages`]; each next one is waited for with [`StoreSession::wait`].
    pub fn pages(&self, prefix: &str, start_after: Option<&str>) -> Listing {
        self.store.pages(prefix, start_after)
    }

    /// [`Store::level`]; each next page is waited for with [`StoreSession::wait`].
    pub fn level(&self, folder: &str) -> Listing {
        self.store.level(folder)
    }

    /// [`Store::lists_by_prefix`]
    pub fn lists_by_prefix(&self) -> bool {
        self.store.lists_by_prefix()
    }

    /// [`Store::begins_listings_anywhere`]
    pub fn begins_listings_anywhere(&self) -> bool {
        self.store.begins_listings_anywhere()
    }

    /// [`Store::find`]
    ///
    /// # Errors
    /// The store's.
    pub fn find<T>(
        &self,
        prefix: &str,
        start_after: &str,
        within: Option<u16>,
        wanted: impl FnMut(&ObjectInfo) -> Option<T>,
    ) -> Result<Option<T>> {
        self.wait(self.store.find(prefix, start_after, within, wanted))
    }

    /// [`Store::folders`]
    ///
    /// # Errors
    /// The store's.
    pub fn folders(&self, prefix: &str) -> Result<Vec<String>> {
        self.wait(self.store.folders(prefix))
    }

    /// [`Store::delete`]
    ///
    /// # Errors
    /// The store's; what is wrong with single objects is part of the answer.
    pub fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, Error)>> {
        self.wait(self.store.delete(keys))
    }

    /// [`Store::unfinished_uploads`]
    ///
    /// # Errors
    /// The store's.
    pub fn unfinished_uploads(&self, prefix: &str) -> Result<Vec<UnfinishedUpload>> {
        self.wait(self.store.unfinished_uploads(prefix))
    }

    /// [`Store::drop_unfinished`]
    ///
    /// # Errors
    /// The store's.
    pub fn drop_unfinished(&self, upload: &UnfinishedUpload) -> Result<()> {
        self.wait(self.store.drop_unfinished(upload))
    }
}
