//! A store that could not be opened, in the place of one: each request says why.

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    Download, Error, ErrorKind, Limits, ListPage, ListRequest, ListingCost, ObjectInfo, ObjectKey,
    ObjectStore, Operation, PartAt, PartReceipt, PutMode, PutToken, Result, Right, UploadId,
};

/// A store that could not be opened.
#[derive(Debug)]
pub struct ClosedStore {
    url: String,
    reason: String,
}

/// Why each request fails.
#[derive(Debug, thiserror::Error)]
#[error("the store could not be opened: {0}")]
struct Closed(String);

impl ClosedStore {
    /// The store at `url`, which could not be opened because of `error`.
    pub fn new(url: &str, error: &Error) -> Self {
        Self {
            url: super::shown(url).trim_end_matches('/').to_owned(),
            reason: super::in_words(error),
        }
    }

    fn fail<T>(&self, operation: Operation, object: &str) -> Result<T> {
        let object = format!("{}/{object}", self.url);
        let error = Error::new(operation, object, ErrorKind::Other);
        Err(error.with_source(Closed(self.reason.clone())))
    }
}

#[async_trait]
impl ObjectStore for ClosedStore {
    fn url(&self) -> &str {
        &self.url
    }

    fn right(&self, _right: Right) -> &'static str {
        "access"
    }

    fn limits(&self) -> Limits {
        Limits {
            part_size_bytes: 8 << 20,
            max_parts: 1,
            parallel_parts: false,
            times_out: true,
            cheap_parts: false,
            listings: ListingCost::Shown,
        }
    }

    async fn put(
        &self,
        key: &ObjectKey,
        _body: Bytes,
        _mode: PutMode,
        _token: &PutToken,
    ) -> Result<()> {
        self.fail(Operation::Put, key.as_str())
    }

    async fn start_upload(
        &self,
        key: &ObjectKey,
        _mode: PutMode,
        _token: &PutToken,
    ) -> Result<UploadId> {
        self.fail(Operation::Put, key.as_str())
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        _upload: &UploadId,
        _at: PartAt,
        _body: Bytes,
    ) -> Result<PartReceipt> {
        self.fail(Operation::Put, key.as_str())
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        _upload: &UploadId,
        _parts: &[PartReceipt],
        _mode: PutMode,
    ) -> Result<()> {
        self.fail(Operation::Put, key.as_str())
    }

    async fn abort_upload(&self, _key: &ObjectKey, _upload: &UploadId) -> Result<()> {
        Ok(())
    }

    async fn get(&self, key: &ObjectKey, _offset: u64, _length: Option<u64>) -> Result<Download> {
        self.fail(Operation::Get, key.as_str())
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectInfo> {
        self.fail(Operation::Head, key.as_str())
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        self.fail(Operation::List, &request.prefix)
    }

    async fn delete(&self, _keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, Error)>> {
        self.fail(Operation::Delete, "")
    }
}
