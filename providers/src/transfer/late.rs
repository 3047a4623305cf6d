//! A directory beside another store: it may not be mounted yet, or hang, and the other store goes on without it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::in_words;
use crate::fs::FsStore;
use crate::{
    Download, Error, ErrorKind, Limits, ListPage, ListRequest, ObjectInfo, ObjectKey, ObjectStore,
    Operation, PageToken, PartAt, PartReceipt, PutMode, PutToken, Result, Right, UnfinishedUpload,
    UploadId, UploadsPage,
};

/// How long it is waited for the directory to open.
const OPEN_TIME: Duration = Duration::from_secs(3);
/// How often it is tried to open it.
const OPENED_EACH: Duration = Duration::from_secs(10);

/// A directory that is opened by the first request, and by a later one where that failed. Requests to it may be given up.
#[derive(Debug)]
pub(super) struct LateStore {
    url: String,
    path: std::path::PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    store: Option<Arc<FsStore>>,
    /// When it could not be opened last, and why.
    failed: Option<(Instant, String)>,
}

/// Why each request fails.
#[derive(Debug, thiserror::Error)]
#[error("the directory cannot be opened: {0}")]
struct Closed(String);

impl LateStore {
    /// The directory at `path`.
    pub(super) fn new(path: std::path::PathBuf) -> Self {
        let url = url::Url::from_file_path(&path).map_or_else(
            |()| path.display().to_string(),
            |url| String::from(url).trim_end_matches('/').to_owned(),
        );
        Self {
            url,
            path,
            state: Mutex::default(),
        }
    }

    /// The directory, once it is there.
    async fn opened(&self, operation: Operation, object: &str) -> Result<Arc<FsStore>> {
        let mut state = self.state.lock().await;
        if let Some(store) = &state.store {
            return Ok(Arc::clone(store));
        }
        let failed = state.failed.take();
        let failed = failed.filter(|(time, _)| time.elapsed() < OPENED_EACH);
        let reason = match failed {
            Some(failed) => state.failed.insert(failed).1.clone(),
            None => match timeout(OPEN_TIME, FsStore::open_later(self.path.clone())).await {
                Ok(Ok(store)) => {
                    let store = Arc::new(store);
                    state.store = Some(Arc::clone(&store));
                    return Ok(store);
                }
                Ok(Err(error)) => in_words(&error),
                Err(_) => "it does not answer".to_owned(),
            },
        };
        if state.failed.is_none() {
            state.failed = Some((Instant::now(), reason.clone()));
        }
        drop(state);
        let object = format!("{}/{object}", self.url);
        Err(Error::new(operation, object, ErrorKind::Other).with_source(Closed(reason)))
    }
}

#[async_trait]
impl ObjectStore for LateStore {
    fn url(&self) -> &str {
        &self.url
    }

    fn right(&self, right: Right) -> &'static str {
        FsStore::right_of(right)
    }

    fn limits(&self) -> Limits {
        Limits {
            times_out: true,
            ..FsStore::LIMITS
        }
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        mode: PutMode,
        token: &PutToken,
    ) -> Result<()> {
        let store = self.opened(Operation::Put, key.as_str()).await?;
        store.put(key, body, mode, token).await
    }

    async fn start_upload(
        &self,
        key: &ObjectKey,
        mode: PutMode,
        token: &PutToken,
    ) -> Result<UploadId> {
        let store = self.opened(Operation::Put, key.as_str()).await?;
        store.start_upload(key, mode, token).await
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        at: PartAt,
        body: Bytes,
    ) -> Result<PartReceipt> {
        let store = self.opened(Operation::Put, key.as_str()).await?;
        store.put_part(key, upload, at, body).await
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        mode: PutMode,
    ) -> Result<()> {
        let store = self.opened(Operation::Put, key.as_str()).await?;
        store.complete_upload(key, upload, parts, mode).await
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        let store = self.opened(Operation::Put, key.as_str()).await?;
        store.abort_upload(key, upload).await
    }

    async fn unfinished_uploads(
        &self,
        prefix: &str,
        page: Option<&PageToken>,
    ) -> Result<UploadsPage> {
        let store = self.opened(Operation::List, prefix).await?;
        store.unfinished_uploads(prefix, page).await
    }

    async fn drop_unfinished(&self, upload: &UnfinishedUpload) -> Result<()> {
        let store = self.opened(Operation::Delete, &upload.key).await?;
        store.drop_unfinished(upload).await
    }

    async fn get(&self, key: &ObjectKey, offset: u64, length: Option<u64>) -> Result<Download> {
        let store = self.opened(Operation::Get, key.as_str()).await?;
        store.get(key, offset, length).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectInfo> {
        let store = self.opened(Operation::Head, key.as_str()).await?;
        store.head(key).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let store = self.opened(Operation::List, &request.prefix).await?;
        store.list(request).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, Error)>> {
        let store = self.opened(Operation::Delete, "").await?;
        store.delete(keys).await
    }

    async fn settle(&self, key: &ObjectKey) -> Result<()> {
        let store = self.opened(Operation::Put, key.as_str()).await?;
        store.settle(key).await
    }
}
