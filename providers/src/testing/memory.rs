//! A store in memory.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use jiff::Timestamp;

use crate::{
    Download, Error, ErrorKind, Limits, ListPage, ListRequest, ListingCost, ObjectInfo, ObjectKey,
    ObjectStore, Operation, PageToken, PartAt, PartReceipt, PutMode, PutToken, Result, Right,
    UploadId,
};

const CHUNK_BYTES: usize = 1000;
const PAGE_KEYS: usize = 1000;

/// A store in memory that behaves as S3 does, with small parts; its pages have 1,000 keys, its chunks 1,000 bytes.
#[derive(Debug)]
pub struct MemoryStore {
    part_size_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Parts>,
    changes: u64,
    cuts_bodies: bool,
}

#[derive(Clone, Debug)]
struct Object {
    body: Bytes,
    token: PutToken,
    modified: Timestamp,
    version: u64,
}

#[derive(Debug)]
struct Parts {
    token: PutToken,
    bodies: BTreeMap<u32, Bytes>,
}

impl MemoryStore {
    /// An empty store with parts of `part_size_bytes`.
    pub fn new(part_size_bytes: usize) -> Self {
        Self {
            part_size_bytes,
            state: Mutex::default(),
        }
    }

    /// Number of uploads neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.state().uploads.len()
    }

    /// Another store that holds the same objects, each received when it was here.
    #[must_use]
    pub fn copy(&self) -> Self {
        let state = self.state();
        let state = State {
            objects: state.objects.clone(),
            changes: state.changes,
            ..State::default()
        };
        Self {
            part_size_bytes: self.part_size_bytes,
            state: Mutex::new(state),
        }
    }

    /// Every key, in order.
    pub fn keys(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    /// Says of an object that the store received it at `time`.
    ///
    /// # Panics
    /// Where there is none.
    pub fn received(&self, key: &ObjectKey, time: Timestamp) {
        let mut state = self.state();
        let object = state.objects.get_mut(key.as_str());
        object.expect("an object of this key is there").modified = time;
    }

    /// From now on the last byte of every body is lost.
    pub fn cut_bodies(&self) {
        self.state().cuts_bodies = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn error(&self, operation: Operation, key: &ObjectKey, kind: ErrorKind) -> Error {
        Error::new(operation, format!("{}/{key}", self.url()), kind)
    }

    fn store(&self, key: &ObjectKey, body: &Bytes, mode: PutMode, token: PutToken) -> Result<()> {
        let mut state = self.state();
        if mode == PutMode::Create && state.objects.contains_key(key.as_str()) {
            return Err(self.error(Operation::Put, key, ErrorKind::AlreadyExists));
        }
        state.changes += 1;
        let kept = body.len() - usize::from(state.cuts_bodies);
        let body = body.slice(..kept);
        let object = Object {
            body,
            token,
            modified: Timestamp::now(),
            version: state.changes,
        };
        state.objects.insert(key.as_str().to_owned(), object);
        Ok(())
    }

    fn object(&self, operation: Operation, key: &ObjectKey) -> Result<Object> {
        let object = self.state().objects.get(key.as_str()).cloned();
        object.ok_or_else(|| self.error(operation, key, ErrorKind::NotFound))
    }

    fn upload_gone(&self, key: &ObjectKey) -> Error {
        self.error(Operation::Put, key, ErrorKind::NotFound)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new(64 << 10)
    }
}

/// The end of the keys below a folder: `0` is the byte after `/`.
fn after_folder(folder: &str) -> String {
    format!("{}0", folder.trim_end_matches('/'))
}

#[async_trait]
impl ObjectStore for MemoryStore {
    fn url(&self) -> &'static str {
        "memory:"
    }

    fn right(&self, right: Right) -> &'static str {
        match right {
            Right::Create => "memory:create",
            Right::Read => "memory:read",
            Right::List => "memory:list",
            Right::Delete => "memory:delete",
            Right::AbortUpload => "memory:abort",
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            part_size_bytes: self.part_size_bytes,
            max_parts: 10_000,
            parallel_parts: true,
            times_out: true,
            cheap_parts: false,
            listings: ListingCost::Shown,
        }
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        mode: PutMode,
        token: &PutToken,
    ) -> Result<()> {
        self.store(key, &body, mode, token.clone())
    }

    async fn start_upload(
        &self,
        _key: &ObjectKey,
        _mode: PutMode,
        token: &PutToken,
    ) -> Result<UploadId> {
        let id = PutToken::random().as_str().to_owned();
        let parts = Parts {
            token: token.clone(),
            bodies: BTreeMap::new(),
        };
        self.state().uploads.insert(id.clone(), parts);
        Ok(UploadId(id))
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        at: PartAt,
        body: Bytes,
    ) -> Result<PartReceipt> {
        let size_bytes = body.len() as u64;
        let mut state = self.state();
        let parts = state
            .uploads
            .get_mut(&upload.0)
            .ok_or_else(|| self.upload_gone(key))?;
        parts.bodies.insert(at.number, body);
        Ok(PartReceipt {
            number: at.number,
            tag: at.number.to_string(),
            checksum: None,
            size_bytes,
        })
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        mode: PutMode,
    ) -> Result<()> {
        let mut body = BytesMut::new();
        let token = {
            let state = self.state();
            let stored = state
                .uploads
                .get(&upload.0)
                .ok_or_else(|| self.upload_gone(key))?;
            for (index, part) in parts.iter().enumerate() {
                assert_eq!(
                    part.number as usize,
                    index + 1,
                    "parts are completed in order"
                );
                let is_last = index + 1 == parts.len();
                let part = &stored.bodies[&part.number];
                assert!(
                    is_last || part.len() == self.part_size_bytes,
                    "all parts but the last are full"
                );
                body.extend_from_slice(part);
            }
            stored.token.clone()
        };
        self.store(key, &body.freeze(), mode, token)?;
        self.state().uploads.remove(&upload.0);
        Ok(())
    }

    async fn abort_upload(&self, _key: &ObjectKey, upload: &UploadId) -> Result<()> {
        self.state().uploads.remove(&upload.0);
        Ok(())
    }

    async fn get(&self, key: &ObjectKey, offset: u64, length: Option<u64>) -> Result<Download> {
        let object = self.object(Operation::Get, key)?;
        let size = object.body.len() as u64;
        if offset > 0 && offset >= size {
            return Err(self.error(Operation::Get, key, ErrorKind::Invalid));
        }
        let end = offset.saturating_add(length.unwrap_or(size)).min(size);
        let range = usize::try_from(offset).unwrap()..usize::try_from(end).unwrap();
        let body = object.body.slice(range);
        let chunks: Vec<_> = body
            .chunks(CHUNK_BYTES)
            .map(|chunk| Ok(body.slice_ref(chunk)))
            .collect();
        Ok(Download {
            object_size_bytes: size,
            version: Some(object.version.to_string()),
            body: Box::pin(stream::iter(chunks)),
        })
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectInfo> {
        let object = self.object(Operation::Head, key)?;
        Ok(ObjectInfo {
            key: key.clone(),
            size_bytes: object.body.len() as u64,
            modified: object.modified,
            token: Some(object.token),
        })
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let page = request.page.as_ref().map(PageToken::as_str);
        let after = page.or(request.start_after.as_deref());
        let mut lower = match after {
            Some(folder) if page.is_some() && folder.ends_with('/') => {
                Bound::Included(after_folder(folder))
            }
            Some(after) if after >= request.prefix.as_str() => Bound::Excluded(after.to_owned()),
            _ => Bound::Included(request.prefix.clone()),
        };
        let mut page = ListPage::default();
        let mut last = None;
        let state = self.state();
        let next = |lower: &Bound<String>| {
            let range = (lower.as_ref(), Bound::Unbounded);
            let (key, object) = state.objects.range::<String, _>(range).next()?;
            Some((key, key.strip_prefix(&request.prefix)?, object))
        };
        while let Some((key, rest, object)) = next(&lower) {
            if page.objects.len() + page.folders.len() == PAGE_KEYS {
                page.next = last.map(PageToken::from);
                break;
            }
            let folder = rest.find('/').filter(|_| request.fold);
            if let Some(slash) = folder {
                let folder = &key[..=request.prefix.len() + slash];
                lower = Bound::Included(after_folder(folder));
                page.folders.push(folder.to_owned());
                last = Some(folder.to_owned());
                continue;
            }
            page.objects.push(ObjectInfo {
                key: ObjectKey::new(key.clone())?,
                size_bytes: object.body.len() as u64,
                modified: object.modified,
                token: None,
            });
            last = Some(key.clone());
            lower = Bound::Excluded(key.clone());
        }
        Ok(page)
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, Error)>> {
        assert!(
            keys.len() <= crate::MAX_DELETE_KEYS,
            "too many keys in one delete"
        );
        let mut state = self.state();
        for key in keys {
            state.objects.remove(key.as_str());
        }
        Ok(Vec::new())
    }
}
