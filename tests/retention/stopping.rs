//! A store whose process is killed after so many steps: what was done stays, and nothing is done or answered any more. Its clock
//! may be late, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::SignedDuration;
use walhalla_providers::testing::MemoryStore;
use walhalla_providers::{
    Download, Error, ErrorKind, Limits, ListPage, ListRequest, ObjectInfo, ObjectKey, ObjectStore,
    Operation, PartAt, PartReceipt, PutMode, PutToken, Result, Right, UploadId,
};

/// Each object that is created or removed is a step.
#[derive(Debug)]
pub struct StoppingStore {
    store: Arc<MemoryStore>,
    steps_left: AtomicU32,
    late: SignedDuration,
}

impl StoppingStore {
    pub fn after(store: Arc<MemoryStore>, steps: u32) -> Self {
        Self {
            store,
            steps_left: AtomicU32::new(steps),
            late: SignedDuration::ZERO,
        }
    }

    /// One that does not stop, and whose clock is late.
    pub fn late(store: Arc<MemoryStore>, late: SignedDuration) -> Self {
        Self {
            late,
            ..Self::after(store, u32::MAX)
        }
    }

    fn step(&self, operation: Operation) -> Result<()> {
        let take = |left: u32| left.checked_sub(1);
        let left = self
            .steps_left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        left.map(drop).map_err(|_| self.stopped(operation))
    }

    fn stopped(&self, operation: Operation) -> Error {
        Error::new(operation, self.store.url(), ErrorKind::Other)
    }
}

#[async_trait]
impl ObjectStore for StoppingStore {
    fn url(&self) -> &str {
        self.store.url()
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
        self.step(Operation::Put)?;
        self.store.put(key, body, mode, token).await
    }

    async fn start_upload(
        &self,
        key: &ObjectKey,
        mode: PutMode,
        token: &PutToken,
    ) -> Result<UploadId> {
        self.store.start_upload(key, mode, token).await
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        at: PartAt,
        body: Bytes,
    ) -> Result<PartReceipt> {
        self.store.put_part(key, upload, at, body).await
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        mode: PutMode,
    ) -> Result<()> {
        self.store.complete_upload(key, upload, parts, mode).await
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        self.store.abort_upload(key, upload).await
    }

    async fn get(&self, key: &ObjectKey, offset: u64, length: Option<u64>) -> Result<Download> {
        self.store.get(key, offset, length).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectInfo> {
        self.store.head(key).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        if self.steps_left.load(Ordering::SeqCst) == 0 {
            return Err(self.stopped(Operation::List));
        }
        let mut page = self.store.list(request).await?;
        for info in &mut page.objects {
            info.modified -= self.late;
        }
        Ok(page)
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, Error)>> {
        for key in keys {
            self.step(Operation::Delete)?;
            self.store.delete(std::slice::from_ref(key)).await?;
        }
        Ok(Vec::new())
    }
}
