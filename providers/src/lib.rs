//! Object stores: keys and bytes, never PostgreSQL.
//!
//! ```text
//! caller ─▶ transfer::Store (retry, multipart, concurrency) ─▶ dyn ObjectStore ─▶ fs | s3 | gcs | azure
//! ```
//!
//! An [`ObjectStore`] makes one request per call and never retries; [`transfer::Store`] is the
//! only caller of it outside tests and the only place that retries.

#[cfg(feature = "azure")]
pub mod azure;
#[cfg(any(feature = "azure", feature = "gcs", feature = "s3"))]
mod endpoint;
mod error;
pub mod fs;
#[cfg(feature = "gcs")]
pub mod gcs;
#[cfg(any(feature = "azure", feature = "gcs", feature = "s3"))]
mod http;
mod key;
mod location;
#[cfg(any(feature = "azure", feature = "gcs", feature = "s3"))]
mod refusal;
#[cfg(feature = "s3")]
pub mod s3;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transfer;
#[cfg(any(feature = "azure", feature = "gcs", feature = "s3"))]
mod unreached;

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;

pub use error::{Distrust, Error, ErrorKind, Operation, Result};
pub use key::ObjectKey;
pub use location::Location;

/// Whether a put may replace an object that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutMode {
    /// Fails with [`ErrorKind::AlreadyExists`] when the key is taken; under a race exactly one writer wins.
    Create,
    /// Replaces what is there, atomically for readers.
    Overwrite,
}

/// A random mark stored with an object, by which a writer whose response was lost knows its own put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutToken(String);

/// What a store keeps of a multipart upload between its calls; for some stores the right to write to it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct UploadId(pub String);

/// The store's receipt for one part of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartReceipt {
    /// Counted from 1.
    pub number: u32,
    /// The store's own tag for the part (S3: the `ETag`).
    pub tag: String,
    /// The part's checksum as the store spells it, where completion asks for it again.
    pub checksum: Option<String>,
    /// Length of the part.
    pub size_bytes: u64,
}

/// One object as listings and heads show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// The key below the store's URL.
    pub key: ObjectKey,
    /// Length of the stored bytes.
    pub size_bytes: u64,
    /// When the store received it, by the store's clock.
    pub modified: jiff::Timestamp,
    /// The mark its writer left; heads only, and only where the store keeps one.
    pub token: Option<PutToken>,
}

/// Which keys a listing returns.
#[derive(Clone, Debug, Default)]
pub struct ListRequest {
    /// Only keys that begin with this text (no separator is implied).
    pub prefix: String,
    /// Only keys greater than this one, in byte order.
    pub start_after: Option<String>,
    /// Fold keys with a further `/` after the prefix into [`ListPage::folders`].
    pub fold: bool,
    /// Most keys of a page that are of use; a store may give more.
    pub most_keys: Option<u16>,
    /// The [`ListPage::next`] of the page before.
    pub page: Option<PageToken>,
}

/// One page of a listing, in byte order of the keys.
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// Objects on this page.
    pub objects: Vec<ObjectInfo>,
    /// Folded prefixes on this page, each ending in `/`.
    pub folders: Vec<String>,
    /// Present when more pages follow.
    pub next: Option<PageToken>,
}

/// Where the next page of a listing begins, as the store spells it. A page that failed can be asked for again.
///
/// Next to the text a store may keep what it has read already, so that it need not read it for each page.
#[derive(Clone)]
pub struct PageToken {
    text: String,
    read: Option<Arc<dyn Any + Send + Sync>>,
}

/// A body on its way from the store.
pub struct Download {
    /// Length of the whole object, whatever range was asked for.
    pub object_size_bytes: u64,
    /// Identifies the object's content, so that a resumed read does not continue another object.
    pub version: Option<String>,
    /// The bytes; an `Err` ends the stream.
    pub body: Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>,
}

/// What a store can take in one request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Length of each part of an upload but the last.
    pub part_size_bytes: usize,
    /// Most parts in one upload.
    pub max_parts: u32,
    /// Whether parts of one upload may be sent at the same time and in any order.
    pub parallel_parts: bool,
    /// Whether a request without an answer may be given up and sent again.
    ///
    /// A file system's may not: it goes on in its thread and could still create the object.
    pub times_out: bool,
    /// Whether an upload in parts, of any length, costs no more than a put and keeps [`PutMode::Create`] as well: nothing is
    /// gained by holding bytes in memory until there are more of them.
    pub cheap_parts: bool,
    /// What a listing costs.
    pub listings: ListingCost,
}

/// An upload that was begun and neither completed nor dropped: of a process that goes on with it, or that died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnfinishedUpload {
    /// The key for which it was begun; in a directory, that of the file that holds its parts.
    pub key: String,
    /// The store's name of it.
    pub id: UploadId,
    /// When it was begun, by the store's clock; in a directory, when it was written last.
    pub modified: jiff::Timestamp,
}

/// One page of unfinished uploads.
#[derive(Clone, Debug, Default)]
pub struct UploadsPage {
    /// The uploads.
    pub uploads: Vec<UnfinishedUpload>,
    /// Present when more pages follow.
    pub next: Option<PageToken>,
}

/// A version of an object, or its absence, as a store with versioning keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectVersion {
    /// The key below the store's URL.
    pub key: ObjectKey,
    /// The store's name of the version.
    pub id: String,
    /// What it is.
    pub kind: VersionKind,
    /// Length of the stored bytes.
    pub size_bytes: u64,
    /// Since when it was what the key names, by the store's clock.
    pub since: jiff::Timestamp,
    /// Until when, where the store says so with the version itself.
    pub until: Option<jiff::Timestamp>,
}

/// What a version is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionKind {
    /// An object.
    Object,
    /// That the object was deleted.
    Deletion,
}

/// Which versions a listing returns.
#[derive(Clone, Debug, Default)]
pub struct VersionsRequest {
    /// Only those of keys that begin with this text.
    pub prefix: String,
    /// Only those of keys greater than this one, in byte order.
    pub start_after: Option<String>,
    /// Fold keys with a further `/` after the prefix into [`VersionsPage::folders`].
    pub fold: bool,
    /// Most versions of a page that are of use; a store may give more.
    pub most: Option<u16>,
    /// The [`VersionsPage::next`] of the page before.
    pub page: Option<PageToken>,
}

/// One page of versions, in byte order of the keys; those of one key stand together, in any order.
#[derive(Clone, Debug, Default)]
pub struct VersionsPage {
    /// Versions on this page.
    pub versions: Vec<ObjectVersion>,
    /// Folded prefixes on this page, each ending in `/`.
    pub folders: Vec<String>,
    /// Present when more pages follow.
    pub next: Option<PageToken>,
}

/// Whether a store keeps what is deleted or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versioning {
    /// Every version.
    Kept,
    /// Versions of what was stored until somebody ended it.
    Ended,
    /// Nothing.
    Never,
    /// Nobody here may ask.
    Unknown,
}

/// What a store keeps of an object that is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retained {
    /// Whether it is only hidden.
    pub versioning: Versioning,
    /// Until when nobody can delete it for good, by a lock, a policy or whatever the store calls it.
    pub until: Option<jiff::Timestamp>,
}

/// Where a part stands in its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartAt {
    /// From 1.
    pub number: u32,
    /// Bytes before it.
    pub offset: u64,
}

impl PartAt {
    /// The object's first part.
    pub const FIRST: Self = Self {
        number: 1,
        offset: 0,
    };
}

/// What a store reads for a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListingCost {
    /// All names of a folder: a head of each of some keys tells sooner which of them are there.
    Folder,
    /// The keys that begin with the prefix: one listing tells which forms of a name are there.
    Prefix,
    /// The keys that it shows, wherever it begins.
    Shown,
}

/// What a store's administrator can grant or refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// To create objects.
    Create,
    /// To read objects.
    Read,
    /// To list objects; on most clouds also to be told that one is not there.
    List,
    /// To delete objects.
    Delete,
    /// To drop the parts of an upload that is not completed.
    AbortUpload,
}

/// Most keys in one [`ObjectStore::delete`]: what S3 takes.
pub const MAX_DELETE_KEYS: usize = 1000;

/// One store, below one URL. Each call is one request: no retries, no caching.
#[async_trait]
pub trait ObjectStore: Send + Sync + fmt::Debug {
    /// The store's URL as the user wrote it, without secrets and without a trailing slash.
    fn url(&self) -> &str;

    /// What the store's administrator calls a right, as policies spell it.
    fn right(&self, right: Right) -> &'static str;

    /// Endpoint, region, profile and proxy, as errors name them; no secrets. `None` where the URL says all.
    fn place(&self) -> Option<Arc<str>> {
        None
    }

    /// The store's limits.
    fn limits(&self) -> Limits;

    /// The time as of which it is looked at, if it is not as it is now; nothing in it can be changed then.
    fn as_of(&self) -> Option<jiff::Timestamp> {
        None
    }

    /// The URL of a store that had no part in some answer, where two are read as one: what is not there may be in that one.
    fn left_out(&self) -> Option<&str> {
        None
    }

    /// Stores `body` under `key`. After `Ok` the object survives a crash, and no reader ever saw part of it.
    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        mode: PutMode,
        token: &PutToken,
    ) -> Result<()>;

    /// Begins an upload in parts; nothing is visible under `key` until it is completed.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] with [`PutMode::Create`] when the store looks already now whether the key is taken.
    async fn start_upload(
        &self,
        key: &ObjectKey,
        mode: PutMode,
        token: &PutToken,
    ) -> Result<UploadId>;

    /// Stores one part. All but the last have the store's part size, unless its parts are cheap.
    ///
    /// # Errors
    /// As [`ObjectStore::complete_upload`], where the store finds out already now.
    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        at: PartAt,
        body: Bytes,
    ) -> Result<PartReceipt>;

    /// Makes the parts, in order, the object under `key`; durable after `Ok`, atomic for readers.
    /// The mode is the one that the upload was begun with.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] with [`PutMode::Create`] when the key is taken, and
    /// [`ErrorKind::NotFound`] when the upload is gone, as after an earlier completion.
    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        mode: PutMode,
    ) -> Result<()>;

    /// Drops the parts of an upload that is not completed. An upload that is gone is no error.
    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()>;

    /// Uploads that were begun and neither completed nor dropped, for keys that begin with `prefix`. None where the store drops
    /// them by itself after some days.
    async fn unfinished_uploads(
        &self,
        _prefix: &str,
        _page: Option<&PageToken>,
    ) -> Result<UploadsPage> {
        Ok(UploadsPage::default())
    }

    /// Drops one of them. One that is gone is no error.
    async fn drop_unfinished(&self, upload: &UnfinishedUpload) -> Result<()> {
        let key = ObjectKey::new(&*upload.key)?;
        self.abort_upload(&key, &upload.id).await
    }

    /// The object's bytes from `offset` (`length` of them, at least 1, or to the end; never past the end).
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] only when the store proved that the key is not there;
    /// [`ErrorKind::Invalid`] when `offset` is not 0 and lies at or past the end.
    async fn get(&self, key: &ObjectKey, offset: u64, length: Option<u64>) -> Result<Download>;

    /// Whether the store keeps versions of its objects.
    ///
    /// # Errors
    /// The store's.
    async fn versioning(&self) -> Result<Versioning> {
        Ok(Versioning::Never)
    }

    /// Finds out what the first [`PutMode::Create`] has to know of the store, so that it need not wait for that.
    ///
    /// # Errors
    /// Those with which that put would fail.
    async fn prepare_creates(&self) -> Result<()> {
        Ok(())
    }

    /// What the store would keep of an object that is deleted, as far as the credentials may know.
    ///
    /// # Errors
    /// The store's.
    async fn retained(&self, _key: &ObjectKey) -> Result<Retained> {
        Ok(Retained {
            versioning: Versioning::Never,
            until: None,
        })
    }

    /// One page of the versions of objects.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where the store keeps none.
    async fn versions(&self, request: &VersionsRequest) -> Result<VersionsPage> {
        let object = format!("{}/{}", self.url(), request.prefix);
        Err(Error::new(Operation::List, object, ErrorKind::Unsupported))
    }

    /// As [`ObjectStore::get`], of one version.
    async fn get_version(
        &self,
        version: &ObjectVersion,
        _offset: u64,
        _length: Option<u64>,
    ) -> Result<Download> {
        let object = format!("{}/{}", self.url(), version.key);
        Err(Error::new(Operation::Get, object, ErrorKind::Unsupported))
    }

    /// The object's size, time and token.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] only when the store proved that the key is not there.
    async fn head(&self, key: &ObjectKey) -> Result<ObjectInfo>;

    /// One page of keys.
    async fn list(&self, request: &ListRequest) -> Result<ListPage>;

    /// Deletes `keys`, at most [`MAX_DELETE_KEYS`]; a key that is not there counts as deleted. Returns each key that was refused, with its reason.
    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, Error)>>;

    /// The same store for objects that can be made anew: they may be lost, or empty, when the machine fails soon after they were
    /// stored, and errors of writing them back go unseen. `None` where durability costs nothing.
    fn for_derived(&self) -> Option<Arc<dyn ObjectStore>> {
        None
    }

    /// Creates an object that grows at its end, in a store where that costs less than one more object; `None` where objects
    /// cannot grow.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] when the key is taken.
    async fn grow(&self, _key: &ObjectKey) -> Result<Option<Box<dyn GrowingObject>>> {
        Ok(None)
    }

    /// Makes sure that an object that is there stays there: its writer may have died just before it did so. What a server
    /// answered for is durable; a directory is not before it was synced.
    async fn settle(&self, _key: &ObjectKey) -> Result<()> {
        Ok(())
    }

    /// What the server was found not to do although it is relied on, each in a sentence with a hint; asked
    /// by `walhalla check`. Beyond what every request shows, most stores have nothing to find out.
    async fn shortcomings(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

/// An object that its one writer makes longer. It is visible from its begin. After its end there may be zeros, and where the
/// writer died, part of what was added last: what is added tells by itself where it ends and whether it is whole.
pub trait GrowingObject: Send + fmt::Debug {
    /// Adds `bytes`; blocks. After `Ok` they survive a crash.
    ///
    /// # Errors
    /// The store's. What became of the bytes is not known then, and nothing more can be added.
    fn append(&mut self, bytes: &[u8]) -> Result<()>;

    /// Takes the zeros at the end away, as far as that is possible.
    fn finish(self: Box<Self>);
}

impl PutToken {
    /// A new random token.
    pub fn random() -> Self {
        Self(format!("{:032x}", fastrand::u128(..)))
    }

    /// The token as stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl PageToken {
    /// A token with what the store has read already.
    pub(crate) fn with_read(text: String, read: Arc<dyn Any + Send + Sync>) -> Self {
        let read = Some(read);
        Self { text, read }
    }

    /// The store's text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What the store has read, if it is of this type.
    pub(crate) fn read<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.read.clone()?.downcast().ok()
    }
}

impl From<String> for PageToken {
    fn from(text: String) -> Self {
        Self { text, read: None }
    }
}

impl PartialEq for PageToken {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Debug for PageToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PageToken").field(&self.text).finish()
    }
}

/// Whoever has GCS's id of an upload may write to it, so none is shown.
impl fmt::Debug for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UploadId(…)")
    }
}

impl From<String> for PutToken {
    fn from(text: String) -> Self {
        Self(text)
    }
}
