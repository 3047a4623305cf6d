//! A store that fails when told to.

use std::collections::{HashMap, HashSet};
use std::future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};

use crate::{
    Download, Error, ErrorKind, Limits, ListPage, ListRequest, ObjectInfo, ObjectKey, ObjectStore,
    Operation, PartAt, PartReceipt, PutMode, PutToken, Result, Right, UploadId,
};

/// A method of [`ObjectStore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // named as the methods
pub enum Call {
    Put,
    StartUpload,
    PutPart,
    CompleteUpload,
    AbortUpload,
    Get,
    Head,
    List,
    Delete,
}

/// What happens instead of the answer.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The call is not made and fails.
    Fail(ErrorKind),
    /// The call is made, and its answer replaced by [`ErrorKind::Unavailable`].
    LoseAnswer,
    /// The call is not made and never answered.
    Hang,
    /// The call is made after so long.
    Delay(Duration),
    /// Each chunk of a body comes after so long.
    DelayChunks(Duration),
    /// A body comes whole, and its end says [`ErrorKind::Corrupted`].
    FailAtEnd,
    /// A body fails with [`ErrorKind::Unavailable`] after so many bytes.
    DropConnection {
        /// Bytes that still come.
        after_bytes: usize,
    },
    /// A body ends after so many bytes, as if they were all.
    EndBody {
        /// Bytes that still come.
        after_bytes: usize,
    },
}

/// A store whose n-th call of a method fails; clones share their faults and counts.
#[derive(Clone, Debug)]
pub struct FaultyStore {
    store: Arc<dyn ObjectStore>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    calls: HashMap<Call, u32>,
    faults: HashMap<(Call, u32), Fault>,
    always: HashMap<Call, Fault>,
    kept: HashSet<ObjectKey>,
    /// Of all methods.
    made: u32,
    stops_after: Option<u32>,
}

impl FaultyStore {
    /// `store`, without faults yet.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self {
            store,
            state: Arc::default(),
        }
    }

    /// Lets the `nth` call (from 1, counted from the store's beginning) meet `fault`.
    pub fn on(&self, call: Call, nth: u32, fault: Fault) {
        self.state.lock().unwrap().faults.insert((call, nth), fault);
    }

    /// Lets every call from now on meet `fault`.
    pub fn always(&self, call: Call, fault: Fault) {
        self.state.lock().unwrap().always.insert(call, fault);
    }

    /// Lets deletes of `key` be refused, as by a lock that lies on it.
    pub fn keep(&self, key: &ObjectKey) {
        self.state.lock().unwrap().kept.insert(key.clone());
    }

    /// Lets every call fail after so many more, as if the process were killed then.
    pub fn stop_after(&self, calls: u32) {
        let mut state = self.state.lock().unwrap();
        state.stops_after = Some(state.made + calls);
    }

    /// Takes all faults away.
    pub fn heal(&self) {
        let mut state = self.state.lock().unwrap();
        state.faults.clear();
        state.always.clear();
        state.kept.clear();
        state.stops_after = None;
    }

    /// How often the method was called.
    pub fn calls(&self, call: Call) -> u32 {
        self.state
            .lock()
            .unwrap()
            .calls
            .get(&call)
            .copied()
            .unwrap_or(0)
    }

    fn next_fault(&self, call: Call) -> Option<Fault> {
        let mut state = self.state.lock().unwrap();
        state.made += 1;
        if state.stops_after.is_some_and(|last| state.made > last) {
            return Some(Fault::Fail(ErrorKind::Other));
        }
        let count = state.calls.entry(call).or_default();
        *count += 1;
        let nth = *count;
        let fault = state
            .faults
            .get(&(call, nth))
            .or_else(|| state.always.get(&call));
        fault.copied()
    }

    /// The answer of `request`, or what the fault makes of it.
    async fn meet<T>(
        &self,
        call: Call,
        key: Option<&ObjectKey>,
        request: impl Future<Output = Result<T>> + Send,
    ) -> (Result<T>, Option<Fault>) {
        let fault = self.next_fault(call);
        let object = key.map_or_else(
            || self.url().to_owned(),
            |key| format!("{}/{key}", self.url()),
        );
        let error = |kind| Error::new(operation(call), object, kind);
        let answer = match fault {
            Some(Fault::Fail(kind)) => Err(error(kind)),
            Some(Fault::Hang) => future::pending().await,
            Some(Fault::LoseAnswer) => request.await.and(Err(error(ErrorKind::Unavailable))),
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                request.await
            }
            None
            | Some(
                Fault::DropConnection { .. }
                | Fault::EndBody { .. }
                | Fault::DelayChunks(_)
                | Fault::FailAtEnd,
            ) => request.await,
        };
        (answer, fault)
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    fn url(&self) -> &str {
        self.store.url()
    }

    fn place(&self) -> Option<Arc<str>> {
        self.store.place()
    }

    fn right(&self, right: Right) -> &'static str {
        self.store.right(right)
    }

    fn limits(&self) -> Limits {
        self.store.limits()
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        mode: PutMode,
        token: &PutToken,
    ) -> Result<()> {
        self.meet(Call::Put, Some(key), self.store.put(key, body, mode, token))
            .await
            .0
    }

    async fn start_upload(
        &self,
        key: &ObjectKey,
        mode: PutMode,
        token: &PutToken,
    ) -> Result<UploadId> {
        self.meet(
            Call::StartUpload,
            Some(key),
            self.store.start_upload(key, mode, token),
        )
        .await
        .0
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        at: PartAt,
        body: Bytes,
    ) -> Result<PartReceipt> {
        self.meet(
            Call::PutPart,
            Some(key),
            self.store.put_part(key, upload, at, body),
        )
        .await
        .0
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        mode: PutMode,
    ) -> Result<()> {
        let request = self.store.complete_upload(key, upload, parts, mode);
        self.meet(Call::CompleteUpload, Some(key), request).await.0
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        self.meet(
            Call::AbortUpload,
            Some(key),
            self.store.abort_upload(key, upload),
        )
        .await
        .0
    }

    async fn get(&self, key: &ObjectKey, offset: u64, length: Option<u64>) -> Result<Download> {
        let (answer, fault) = self
            .meet(Call::Get, Some(key), self.store.get(key, offset, length))
            .await;
        let mut download = answer?;
        let object = format!("{}/{key}", self.url());
        let failed = |kind| stream::iter([Err(Error::new(Operation::Get, object, kind))]);
        download.body = match fault {
            Some(Fault::DropConnection { after_bytes }) => {
                let rest = failed(ErrorKind::Unavailable);
                Box::pin(cut(download.body, after_bytes).chain(rest))
            }
            Some(Fault::FailAtEnd) => Box::pin(download.body.chain(failed(ErrorKind::Corrupted))),
            Some(Fault::DelayChunks(time)) => {
                Box::pin(download.body.then(move |chunk| async move {
                    tokio::time::sleep(time).await;
                    chunk
                }))
            }
            Some(Fault::EndBody { after_bytes }) => Box::pin(cut(download.body, after_bytes)),
            _ => download.body,
        };
        Ok(download)
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectInfo> {
        self.meet(Call::Head, Some(key), self.store.head(key))
            .await
            .0
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        self.meet(Call::List, None, self.store.list(request))
            .await
            .0
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, Error)>> {
        let kept = self.state.lock().unwrap().kept.clone();
        let (kept, free): (Vec<_>, Vec<_>) =
            keys.iter().cloned().partition(|key| kept.contains(key));
        let deleted = self
            .meet(Call::Delete, None, self.store.delete(&free))
            .await
            .0;
        let refusal = |key: ObjectKey| {
            let object = format!("{}/{key}", self.url());
            let error = Error::new(Operation::Delete, object, ErrorKind::PermissionDenied);
            (key, error)
        };
        let mut refused = deleted?;
        refused.extend(kept.into_iter().map(refusal));
        Ok(refused)
    }
}

/// The stream's first `left` bytes.
fn cut(
    body: impl Stream<Item = Result<Bytes>> + Send,
    left: usize,
) -> impl Stream<Item = Result<Bytes>> + Send {
    body.scan(left, |left, chunk| {
        let chunk = chunk.map(|mut chunk| chunk.split_to(chunk.len().min(*left)));
        *left -= chunk.as_ref().map_or(0, Bytes::len);
        future::ready(
            chunk
                .as_ref()
                .map_or(true, |chunk| !chunk.is_empty())
                .then_some(chunk),
        )
    })
}

fn operation(call: Call) -> Operation {
    match call {
        Call::Put
        | Call::StartUpload
        | Call::PutPart
        | Call::CompleteUpload
        | Call::AbortUpload => Operation::Put,
        Call::Get => Operation::Get,
        Call::Head => Operation::Head,
        Call::List => Operation::List,
        Call::Delete => Operation::Delete,
    }
}
