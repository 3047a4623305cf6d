//! A store as it was at a time: what was deleted or replaced since then is there again, and what came since then is not.
//!
//! ```text
//! versions of a key: ──●────────●──────×────●──▶        ● an object  × its deletion
//!                              ▲ the one that counts at the time
//! ```
//!
//! The store keeps the versions; nothing is changed in it.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use tokio::sync::OnceCell;

use crate::{
    Download, Error, ErrorKind, Limits, ListPage, ListRequest, ObjectInfo, ObjectKey, ObjectStore,
    ObjectVersion, Operation, PageToken, PartAt, PartReceipt, PutMode, PutToken, Result, Right,
    UploadId, VersionKind, Versioning, VersionsRequest,
};

/// Folders of which it is asked at a time whether anything in them was there.
const FOLDERS_AT_A_TIME: usize = 16;
/// Versions that are asked for where the first of them mostly tells.
const FEW_VERSIONS: u16 = 50;
/// Pages of a folder that are looked at: one in which so much was deleted since, or came later, is shown as it is.
const MOST_PAGES: usize = 8;

/// A store as it was at a time. It can be read, and nothing else.
#[derive(Debug)]
pub struct AsOfStore {
    store: Arc<dyn ObjectStore>,
    time: Timestamp,
    is_checked: OnceCell<()>,
}

/// What was read of a listing before its page ended: the versions of the last key, of which there may be more.
#[derive(Debug)]
struct Pending(Vec<ObjectVersion>);

impl AsOfStore {
    /// `store` as it was at `time`, by its own clock.
    pub fn new(store: Arc<dyn ObjectStore>, time: Timestamp) -> Self {
        Self {
            store,
            time,
            is_checked: OnceCell::new(),
        }
    }

    /// That the store keeps versions.
    async fn check(&self) -> Result<()> {
        let refused = |kind| Error::new(Operation::List, self.url(), kind);
        let check = async || match self.store.versioning().await? {
            Versioning::Kept => Ok(()),
            Versioning::Ended => {
                let url = self.url();
                tracing::warn!(
                    "{url} keeps no versions any more: of what was stored since then, deleted objects are lost"
                );
                Ok(())
            }
            Versioning::Never => Err(refused(ErrorKind::Unsupported).with_source(NoVersions)),
            Versioning::Unknown => {
                Err(refused(ErrorKind::PermissionDenied).with_source(UnknownVersioning))
            }
        };
        self.is_checked.get_or_try_init(check).await.copied()
    }

    /// The version that counted of some of one key.
    fn at_the_time<'a>(&self, versions: &'a [ObjectVersion]) -> Option<&'a ObjectVersion> {
        let begun = versions.iter().filter(|version| version.since <= self.time);
        // Where an object was deleted in the second in which it was stored, it is better to show it.
        let newest =
            begun.max_by_key(|version| (version.since, version.kind == VersionKind::Object))?;
        let is_there = newest.kind == VersionKind::Object
            && newest.until.is_none_or(|until| until > self.time);
        is_there.then_some(newest)
    }

    /// The version of a key that counted.
    async fn version(&self, operation: Operation, key: &ObjectKey) -> Result<ObjectVersion> {
        self.check().await?;
        let mut request = VersionsRequest {
            prefix: key.as_str().to_owned(),
            most: Some(FEW_VERSIONS),
            ..VersionsRequest::default()
        };
        let mut versions = Vec::new();
        loop {
            let page = self.store.versions(&request).await?;
            let is_past = page.versions.iter().any(|version| version.key > *key);
            let own = page.versions.into_iter();
            versions.extend(own.filter(|version| version.key == *key));
            request.page = page.next.filter(|_| !is_past);
            if request.page.is_none() {
                break;
            }
        }
        let found = self.at_the_time(&versions).cloned();
        found.ok_or_else(|| self.error(operation, key.as_str(), ErrorKind::NotFound))
    }

    /// Whether anything whose key begins with `prefix` was there, for all that can be told soon.
    async fn may_have_had_any(&self, prefix: &str) -> Result<bool> {
        let mut request = ListRequest {
            prefix: prefix.to_owned(),
            most_keys: Some(FEW_VERSIONS),
            ..ListRequest::default()
        };
        for _ in 0..MOST_PAGES {
            let page = self.list_flat(&request).await?;
            if !page.objects.is_empty() {
                return Ok(true);
            }
            request.page = page.next;
            if request.page.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A page of what was there. Whether the last key of a page was, may be known only on the next one.
    async fn list_flat(&self, request: &ListRequest) -> Result<ListPage> {
        let pending = request.page.as_ref().and_then(PageToken::read::<Pending>);
        let mut versions = pending.map_or_else(Vec::new, |pending| pending.0.clone());
        let page = self
            .store
            .versions(&VersionsRequest {
                prefix: request.prefix.clone(),
                start_after: request.start_after.clone(),
                fold: request.fold,
                // Where the first page did not tell, much has changed.
                most: request.most_keys.filter(|_| request.page.is_none()),
                page: request.page.clone(),
            })
            .await?;
        versions.extend(page.versions);
        let mut listed = ListPage::default();
        let mut rest = versions.as_slice();
        while let Some(first) = rest.first() {
            let count = rest.partition_point(|version| version.key == first.key);
            let (of_key, others) = rest.split_at(count);
            if others.is_empty() && page.next.is_some() {
                break;
            }
            listed.objects.extend(self.at_the_time(of_key).map(info));
            rest = others;
        }
        listed.folders = page.folders;
        listed.next = page.next.map(|next| {
            let pending = Arc::new(Pending(rest.to_vec()));
            PageToken::with_read(next.as_str().to_owned(), pending)
        });
        Ok(listed)
    }

    fn error(&self, operation: Operation, key: &str, kind: ErrorKind) -> Error {
        Error::new(operation, format!("{}/{key}", self.url()), kind)
    }

    /// What everyone gets who wants to change the past.
    fn is_past<T>(&self, operation: Operation, key: &str) -> Result<T> {
        let error = self.error(operation, key, ErrorKind::PermissionDenied);
        Err(error.with_source(Past(self.time)))
    }
}

fn info(version: &ObjectVersion) -> ObjectInfo {
    ObjectInfo {
        key: version.key.clone(),
        size_bytes: version.size_bytes,
        modified: version.since,
        token: None,
    }
}

#[async_trait]
impl ObjectStore for AsOfStore {
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

    fn as_of(&self) -> Option<Timestamp> {
        Some(self.time)
    }

    async fn put(
        &self,
        key: &ObjectKey,
        _body: Bytes,
        _mode: PutMode,
        _token: &PutToken,
    ) -> Result<()> {
        self.is_past(Operation::Put, key.as_str())
    }

    async fn start_upload(
        &self,
        key: &ObjectKey,
        _mode: PutMode,
        _token: &PutToken,
    ) -> Result<UploadId> {
        self.is_past(Operation::Put, key.as_str())
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        _upload: &UploadId,
        _at: PartAt,
        _body: Bytes,
    ) -> Result<PartReceipt> {
        self.is_past(Operation::Put, key.as_str())
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        _upload: &UploadId,
        _parts: &[PartReceipt],
        _mode: PutMode,
    ) -> Result<()> {
        self.is_past(Operation::Put, key.as_str())
    }

    async fn abort_upload(&self, key: &ObjectKey, _upload: &UploadId) -> Result<()> {
        self.is_past(Operation::Put, key.as_str())
    }

    async fn get(&self, key: &ObjectKey, offset: u64, length: Option<u64>) -> Result<Download> {
        let version = self.version(Operation::Get, key).await?;
        self.store.get_version(&version, offset, length).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectInfo> {
        let version = self.version(Operation::Head, key).await?;
        Ok(info(&version))
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        self.check().await?;
        let mut page = self.list_flat(request).await?;
        // The store names folders of all versions.
        let folders = std::mem::take(&mut page.folders).into_iter();
        let had = folders
            .map(async |folder| Ok::<_, Error>((self.may_have_had_any(&folder).await?, folder)));
        let had = stream::iter(had).buffered(FOLDERS_AT_A_TIME);
        let had: Vec<_> = had.try_collect().await?;
        let had = had.into_iter().filter(|(had_any, _)| *had_any);
        page.folders = had.map(|(_, folder)| folder).collect();
        Ok(page)
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, Error)>> {
        match keys.first() {
            Some(key) => self.is_past(Operation::Delete, key.as_str()),
            None => Ok(Vec::new()),
        }
    }
}

/// Somebody wants to change a store as it was.
#[derive(Debug, thiserror::Error)]
#[error("the store is looked at as it was at {0}, and nothing in it can be changed")]
struct Past(Timestamp);

/// Nothing that was deleted is there any more.
#[derive(Debug, thiserror::Error)]
#[error(
    "the store keeps no versions of its objects, so that it is not known how it was; \
     hint: for the next time, switch versioning on, or take snapshots of a directory"
)]
struct NoVersions;

/// What is there now could be taken for what was there.
#[derive(Debug, thiserror::Error)]
#[error(
    "whether the store keeps versions may not be asked, so that it is not known how it was; \
     hint: that takes the right s3:GetBucketVersioning, or storage.buckets.get"
)]
struct UnknownVersioning;
