//! The directory store: `file:///path`.
//!
//! ```text
//! put or parts: .random.tmp ─▶ write ─▶ fsync ─▶ link (create) or rename (overwrite) ─▶ fsync directory, for all who wait
//! grow: its name ─▶ fsync directory ─▶ zeros ─▶ write over them ─▶ fdatasync, again and again
//! ```
//!
//! From its begin to its fsync a file is written through one descriptor: what NFS finds out later than the write is told
//! there, and at no descriptor that was opened after it.
//!
//! Names that begin with `.` are this store's own and never show. A process that dies leaves at
//! most its temporary files behind, never part of an object, unless that was one that grows.
//!
//! "Not there" is said only while the root directory exists: an archive whose file system is not
//! mounted is not an empty archive. Reads therefore never create the root; the first write does.

mod denied;
mod grouped;
mod growing;
mod listing;
mod names;
mod publish;

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, stream};
use rustix::fs::OFlags;
use url::Url;

use crate::{
    Download, Error, ErrorKind, GrowingObject, Limits, ListPage, ListRequest, ListingCost,
    ObjectInfo, ObjectKey, ObjectStore, Operation, PageToken, PartAt, PartReceipt, PutMode,
    PutToken, Result, Right, UnfinishedUpload, UploadId, UploadsPage,
};
use denied::Denied;
use growing::Growing;
use publish::{Directories, Durability, TempFile};

const PART_SIZE_BYTES: usize = 1 << 20;
const CHUNK_BYTES: u64 = 1 << 20;
/// Bytes that are written at a time. For longer writes ext4 takes large folios, whose memory is cold: 8 MiB at once cost seven
/// times the CPU of 8 MiB in pieces (Linux 6.18, virtual machine).
const WRITTEN_BYTES: usize = 1 << 18;
const PAGE_KEYS: usize = 10_000;

/// Objects as files below one directory, created with mode 0600 in directories of mode 0700. What root creates belongs to
/// the owner of the directory that it is in, so that it does not lock out the user whose store it is.
///
/// A key and a longer key below it (`a` and `a/b`) cannot both be stored: one is a file, the other
/// needs a directory of that name. The second put is [`ErrorKind::Invalid`].
#[derive(Clone, Debug)]
pub struct FsStore {
    inner: Arc<Inner>,
}

#[derive(Clone, Debug)]
struct Inner {
    url: String,
    directories: Directories,
    page_keys: usize,
    durability: Durability,
    /// Those that were begun, by the names of their files.
    uploads: Arc<Mutex<HashMap<UploadId, Arc<TempFile>>>>,
}

impl FsStore {
    /// The store in the directory `root`, an absolute path; the first write creates the directory
    /// when only its last component is missing.
    ///
    /// # Errors
    /// [`ErrorKind::StoreMissing`] when neither the directory nor its parent exists, and
    /// [`ErrorKind::Invalid`] when the path is relative or no directory.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        Self::with_page_keys(root, PAGE_KEYS)
    }

    /// As [`FsStore::open`], on a thread that may wait.
    ///
    /// # Errors
    /// As [`FsStore::open`].
    pub(crate) async fn open_later(root: PathBuf) -> Result<Self> {
        let shown = root.display().to_string();
        let opened = tokio::task::spawn_blocking(move || Self::open(root)).await;
        opened.unwrap_or_else(|join| {
            Err(Error::new(Operation::Open, shown, ErrorKind::Other).with_source(join))
        })
    }

    /// What each directory can take.
    pub(crate) const LIMITS: Limits = Limits {
        part_size_bytes: PART_SIZE_BYTES,
        max_parts: u32::MAX,
        parallel_parts: true,
        times_out: false,
        cheap_parts: true,
        listings: ListingCost::Folder,
    };

    /// What a right is called in each directory.
    pub(crate) fn right_of(right: Right) -> &'static str {
        match right {
            Right::Create | Right::AbortUpload => "write permission on the directory",
            Right::Read => "read permission on the files",
            Right::List => "read and search permission on the directory",
            Right::Delete => "write permission on the directories of the files",
        }
    }

    /// The same store with another length of a listing's page.
    ///
    /// # Errors
    /// As [`FsStore::open`].
    pub fn with_page_keys(root: impl Into<PathBuf>, page_keys: usize) -> Result<Self> {
        let root = root.into();
        let invalid = || {
            Error::new(
                Operation::Open,
                root.display().to_string(),
                ErrorKind::Invalid,
            )
        };
        let url = Url::from_file_path(&root).map_err(|()| invalid().with_source(RelativePath))?;
        let url = String::from(url).trim_end_matches('/').to_owned();
        check_root(&root, &url)?;
        let directories = Directories::new(root);
        Ok(Self {
            inner: Arc::new(Inner {
                url,
                directories,
                page_keys: page_keys.max(1),
                durability: Durability::Full,
                uploads: Arc::default(),
            }),
        })
    }

    /// Runs `work` on a thread where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: Operation,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        let task = tokio::task::spawn_blocking(move || work(&inner));
        task.await.unwrap_or_else(|join| {
            Err(Error::new(operation, &self.inner.url, ErrorKind::Other).with_source(join))
        })
    }
}

#[async_trait]
impl ObjectStore for FsStore {
    fn url(&self) -> &str {
        &self.inner.url
    }

    fn right(&self, right: Right) -> &'static str {
        Self::right_of(right)
    }

    fn limits(&self) -> Limits {
        Self::LIMITS
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        mode: PutMode,
        _token: &PutToken,
    ) -> Result<()> {
        let key = key.clone();
        self.blocking(Operation::Put, move |inner| inner.put(&key, &body, mode))
            .await
    }

    async fn start_upload(
        &self,
        key: &ObjectKey,
        _mode: PutMode,
        _token: &PutToken,
    ) -> Result<UploadId> {
        let key = key.clone();
        self.blocking(Operation::Put, move |inner| {
            let temp = inner.temp_file(&key)?;
            let upload = UploadId(temp.name());
            inner.uploads().insert(upload.clone(), Arc::new(temp));
            Ok(upload)
        })
        .await
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        at: PartAt,
        body: Bytes,
    ) -> Result<PartReceipt> {
        let (key, upload) = (key.clone(), upload.clone());
        self.blocking(Operation::Put, move |inner| {
            inner.put_part(&key, &upload, at, &body)
        })
        .await
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        mode: PutMode,
    ) -> Result<()> {
        let (key, upload, parts) = (key.clone(), upload.clone(), parts.to_vec());
        self.blocking(Operation::Put, move |inner| {
            inner.complete(&key, &upload, &parts, mode)
        })
        .await
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        let (key, upload) = (key.clone(), upload.clone());
        self.blocking(Operation::Put, move |inner| {
            // A part may still be on its way in another thread: the file goes nevertheless, and what is written is nobody's.
            let temp = inner.uploads().remove(&upload);
            let removed = temp.map_or(Ok(()), |temp| temp.remove());
            removed.map_err(|error| inner.failed(Operation::Put, &key, error))
        })
        .await
    }

    async fn unfinished_uploads(
        &self,
        prefix: &str,
        _page: Option<&PageToken>,
    ) -> Result<UploadsPage> {
        let prefix = prefix.to_owned();
        self.blocking(Operation::List, move |inner| {
            let found = listing::temporary(inner.directories.root(), &prefix);
            let uploads = found.map_err(|error| inner.store_error(Operation::List, error))?;
            Ok(UploadsPage {
                uploads,
                next: None,
            })
        })
        .await
    }

    async fn drop_unfinished(&self, upload: &UnfinishedUpload) -> Result<()> {
        let path = self.inner.directories.root().join(&upload.key);
        self.blocking(Operation::Delete, move |inner| {
            match fs::remove_file(&path) {
                Err(error) if !is_absence(&error) => {
                    Err(inner.store_error(Operation::Delete, error))
                }
                Ok(()) | Err(_) => Ok(()),
            }
        })
        .await
    }

    async fn get(&self, key: &ObjectKey, offset: u64, length: Option<u64>) -> Result<Download> {
        let key = key.clone();
        self.blocking(Operation::Get, move |inner| inner.get(&key, offset, length))
            .await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectInfo> {
        let key = key.clone();
        self.blocking(Operation::Head, move |inner| {
            let metadata = fs::metadata(inner.path(&key))
                .map_err(|error| inner.missing(Operation::Head, &key, error))?;
            inner.object(Operation::Head, &key, &metadata)
        })
        .await
    }

    fn for_derived(&self) -> Option<Arc<dyn ObjectStore>> {
        let inner = Inner {
            durability: Durability::Later,
            ..(*self.inner).clone()
        };
        Some(Arc::new(Self {
            inner: Arc::new(inner),
        }))
    }

    async fn grow(&self, key: &ObjectKey) -> Result<Option<Box<dyn GrowingObject>>> {
        let key = key.clone();
        self.blocking(Operation::Put, move |inner| {
            let created = inner.directories.create_file(&inner.path(&key));
            let file = created.map_err(|error| inner.error(Operation::Put, &key, error))?;
            let growing = Growing::new(file, inner.object_url(&key));
            Ok(Some(Box::new(growing) as Box<dyn GrowingObject>))
        })
        .await
    }

    async fn settle(&self, key: &ObjectKey) -> Result<()> {
        let key = key.clone();
        self.blocking(Operation::Put, move |inner| {
            publish::sync_parent(&inner.path(&key))
                .map_err(|error| inner.missing(Operation::Put, &key, error))
        })
        .await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let request = request.clone();
        self.blocking(Operation::List, move |inner| {
            let page = listing::page(inner.directories.root(), &request, inner.page_keys)
                .map_err(|error| inner.store_error(Operation::List, error))?;
            if page.objects.is_empty() && page.folders.is_empty() {
                inner.root_exists(Operation::List)?;
            }
            Ok(page)
        })
        .await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, Error)>> {
        let keys = keys.to_vec();
        self.blocking(Operation::Delete, move |inner| inner.delete(keys))
            .await
    }
}

impl Inner {
    fn path(&self, key: &ObjectKey) -> PathBuf {
        self.directories.root().join(key.as_str())
    }

    /// The directory that holds the key's file.
    fn directory(&self, key: &ObjectKey) -> PathBuf {
        let parent = key
            .as_str()
            .rsplit_once('/')
            .map_or("", |(parent, _)| parent);
        self.directories.root().join(parent)
    }

    fn put(&self, key: &ObjectKey, body: &[u8], mode: PutMode) -> Result<()> {
        let temp = self.temp_file(key)?;
        let fail = |error| self.error(Operation::Put, key, error);
        write_at(temp.file(), body, 0).map_err(fail)?;
        temp.publish(&self.path(key), mode, self.durability, &self.directories)
            .map_err(fail)
    }

    fn temp_file(&self, key: &ObjectKey) -> Result<TempFile> {
        self.directories
            .temp_file(&self.directory(key))
            .map_err(|error| self.error(Operation::Put, key, error))
    }

    fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        at: PartAt,
        body: &[u8],
    ) -> Result<PartReceipt> {
        let temp = self.uploads().get(upload).map(Arc::clone);
        let temp = temp.ok_or_else(|| self.upload_gone(key))?;
        let written = write_at(temp.file(), body, at.offset);
        written.map_err(|error| self.error(Operation::Put, key, error))?;
        Ok(PartReceipt {
            number: at.number,
            tag: String::new(),
            checksum: None,
            size_bytes: body.len() as u64,
        })
    }

    fn complete(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        mode: PutMode,
    ) -> Result<()> {
        let temp = self.uploads().remove(upload);
        // Nobody else has it: a part that is still being written keeps its file from becoming the object.
        let temp = temp.and_then(Arc::into_inner);
        let temp = temp.ok_or_else(|| self.upload_gone(key))?;
        let fail = |error| self.error(Operation::Put, key, error);
        let stored = temp.file().metadata().map_err(fail)?.len();
        let sent = parts.iter().map(|part| part.size_bytes).sum::<u64>();
        if stored == sent {
            temp.publish(&self.path(key), mode, self.durability, &self.directories)
                .map_err(fail)
        } else {
            let source = LengthDiffers { stored, sent };
            Err(self
                .new_error(Operation::Put, key, ErrorKind::Corrupted)
                .with_source(source))
        }
    }

    fn uploads(&self) -> MutexGuard<'_, HashMap<UploadId, Arc<TempFile>>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn upload_gone(&self, key: &ObjectKey) -> Error {
        self.new_error(Operation::Put, key, ErrorKind::NotFound)
            .with_source(UploadGone)
    }

    fn get(&self, key: &ObjectKey, offset: u64, length: Option<u64>) -> Result<Download> {
        // A pipe in the place of an object would be waited for without end.
        let opened = File::options()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(self.path(key));
        let mut file = opened.map_err(|error| self.missing(Operation::Get, key, error))?;
        let fail = |error| self.error(Operation::Get, key, error);
        let metadata = file.metadata().map_err(fail)?;
        let size = self.object(Operation::Get, key, &metadata)?.size_bytes;
        if offset > 0 && offset >= size {
            return Err(self.new_error(Operation::Get, key, ErrorKind::Invalid));
        }
        file.seek(SeekFrom::Start(offset)).map_err(fail)?;
        let remaining = length.unwrap_or(u64::MAX).min(size - offset);
        let object = self.object_url(key);
        Ok(Download {
            object_size_bytes: size,
            version: Some(version(&metadata)),
            body: Box::pin(chunks(file, remaining, object)),
        })
    }

    fn object(
        &self,
        operation: Operation,
        key: &ObjectKey,
        metadata: &Metadata,
    ) -> Result<ObjectInfo> {
        if metadata.is_dir() {
            return Err(self.new_error(operation, key, ErrorKind::NotFound));
        }
        if !metadata.is_file() {
            let error = self.new_error(operation, key, ErrorKind::Invalid);
            return Err(error.with_source(NotAFile));
        }
        listing::object_info(key.clone(), metadata)
            .map_err(|error| self.error(operation, key, error))
    }

    fn delete(&self, keys: Vec<ObjectKey>) -> Result<Vec<(ObjectKey, Error)>> {
        self.root_exists(Operation::Delete)?;
        let mut refused = Vec::new();
        let mut touched = Vec::new();
        for key in keys {
            match fs::remove_file(self.path(&key)) {
                Ok(()) => touched.push(self.directory(&key)),
                Err(error) if is_absence(&error) || error.kind() == io::ErrorKind::IsADirectory => {
                }
                Err(error) => {
                    let error = self.error(Operation::Delete, &key, error);
                    refused.push((key, error));
                }
            }
        }
        touched.sort_unstable();
        touched.dedup();
        for directory in touched {
            self.directories
                .prune(&directory)
                .map_err(|error| self.store_error(Operation::Delete, error))?;
        }
        Ok(refused)
    }

    fn object_url(&self, key: &ObjectKey) -> String {
        format!("{}/{key}", self.url)
    }

    fn new_error(&self, operation: Operation, key: &ObjectKey, kind: ErrorKind) -> Error {
        Error::new(operation, self.object_url(key), kind)
    }

    /// A failed write: an absence is the root's when the root is missing, else the upload's.
    fn error(&self, operation: Operation, key: &ObjectKey, error: io::Error) -> Error {
        if error.kind() == io::ErrorKind::NotFound {
            return self.missing(operation, key, error);
        }
        self.failed(operation, key, error)
    }

    /// A failure that is no absence.
    fn failed(&self, operation: Operation, key: &ObjectKey, error: io::Error) -> Error {
        let failed = self.new_error(operation, key, kind_of(&error));
        if error.kind() != io::ErrorKind::PermissionDenied {
            return failed.with_source(error);
        }
        match Denied::at(&self.path(key), error) {
            Ok(denied) => failed.with_source(denied),
            Err(error) => failed.with_source(error),
        }
    }

    fn store_error(&self, operation: Operation, error: io::Error) -> Error {
        let failed = Error::new(operation, &self.url, kind_of(&error));
        if error.kind() != io::ErrorKind::PermissionDenied {
            return failed.with_source(error);
        }
        match Denied::below(self.directories.root(), error) {
            Ok(denied) => failed.with_source(denied),
            Err(error) => failed.with_source(error),
        }
    }

    /// A failed read: an absence counts as proven only while the root is there.
    fn missing(&self, operation: Operation, key: &ObjectKey, error: io::Error) -> Error {
        if !is_absence(&error) {
            return self.failed(operation, key, error);
        }
        if let Some(link) = self.dangling(&self.path(key)) {
            let error = self.new_error(operation, key, ErrorKind::Other);
            return error.with_source(DanglingLink(link));
        }
        match self.root_exists(operation) {
            Ok(()) => self
                .new_error(operation, key, ErrorKind::NotFound)
                .with_source(error),
            Err(missing) => Error {
                object: self.new_error(operation, key, missing.kind).object,
                ..missing
            },
        }
    }

    /// A link on the way to `path` that leads nowhere: what it leads to may be on a disk that is away, so that nothing is
    /// known of what is there.
    fn dangling(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(self.directories.root()).ok()?;
        let mut way = self.directories.root().to_owned();
        below.iter().find_map(|part| {
            way.push(part);
            let is_link = fs::symlink_metadata(&way).is_ok_and(|it| it.is_symlink());
            (is_link && fs::metadata(&way).is_err()).then(|| way.clone())
        })
    }

    fn root_exists(&self, operation: Operation) -> Result<()> {
        match fs::metadata(self.directories.root()) {
            Ok(metadata) if metadata.is_dir() => Ok(()),
            Ok(_) => Err(Error::new(operation, &self.url, ErrorKind::StoreMissing)),
            Err(error) if is_absence(&error) => {
                Err(Error::new(operation, &self.url, ErrorKind::StoreMissing).with_source(error))
            }
            Err(error) => Err(self.store_error(operation, error)),
        }
    }
}

/// Something else has the name of an object.
#[derive(Debug, thiserror::Error)]
#[error("it is not a regular file")]
struct NotAFile;

/// Nothing is known of what a link would lead to.
#[derive(Debug, thiserror::Error)]
#[error("{} is a link that leads nowhere: see whether the disk that it leads to is mounted", .0.display())]
struct DanglingLink(PathBuf);

/// The path of a store is not absolute.
#[derive(Debug, thiserror::Error)]
#[error("the path of a directory store must be absolute; write it as file:///path")]
struct RelativePath;

/// An upload is not there any more.
#[derive(Debug, thiserror::Error)]
#[error("the upload was completed or given up before, or an attempt to complete it failed")]
struct UploadGone;

/// The parts of an upload do not add up to its file.
#[derive(Debug, thiserror::Error)]
#[error("the parts sent have {sent} bytes, the file has {stored}")]
struct LengthDiffers {
    stored: u64,
    sent: u64,
}

fn check_root(root: &Path, url: &str) -> Result<()> {
    let fail = |kind| Error::new(Operation::Open, url, kind);
    match fs::metadata(root) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => {
            Err(fail(ErrorKind::Invalid).with_source(io::Error::from(io::ErrorKind::NotADirectory)))
        }
        Err(error) if !is_absence(&error) => Err(fail(kind_of(&error)).with_source(error)),
        Err(error) if root.parent().is_some_and(holds_anything) => {
            tracing::debug!(%url, %error, "the first write will create the store's directory");
            Ok(())
        }
        Err(error) => Err(fail(ErrorKind::StoreMissing).with_source(error)),
    }
}

/// Whether the directory holds anything: an empty one may be where nothing is mounted, and a store
/// that is made there would be hidden by the mount.
fn holds_anything(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some())
}

/// Writes all of `body` from `offset` on.
fn write_at(file: &File, body: &[u8], offset: u64) -> io::Result<()> {
    let mut at = offset;
    for piece in body.chunks(WRITTEN_BYTES) {
        file.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// Changes whenever the file is replaced: the inode, its length and both of its times.
fn version(metadata: &Metadata) -> String {
    format!(
        "{:x}-{:x}-{:x}.{:x}-{:x}.{:x}",
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec()
    )
}

fn chunks(file: File, remaining: u64, object: String) -> impl Stream<Item = Result<Bytes>> + Send {
    stream::try_unfold((file, remaining), move |(file, remaining)| {
        let object = object.clone();
        async move {
            if remaining == 0 {
                return Ok(None);
            }
            let read = tokio::task::spawn_blocking(move || read_chunk(file, remaining)).await;
            let fail = |kind| Error::new(Operation::Get, object, kind);
            let (file, chunk) = match read {
                Ok(Ok(read)) => read,
                Ok(Err(error)) => return Err(fail(kind_of(&error)).with_source(error)),
                Err(join) => return Err(fail(ErrorKind::Other).with_source(join)),
            };
            // A file that was cut under us ends the body early; the reader counts and sees it.
            let left = if chunk.is_empty() {
                0
            } else {
                remaining - chunk.len() as u64
            };
            Ok((!chunk.is_empty()).then_some((chunk, (file, left))))
        }
    })
}

fn read_chunk(mut file: File, remaining: u64) -> io::Result<(File, Bytes)> {
    let wanted = remaining.min(CHUNK_BYTES);
    let mut chunk = Vec::with_capacity(usize::try_from(wanted).unwrap_or(0));
    (&mut file).take(wanted).read_to_end(&mut chunk)?;
    Ok((file, Bytes::from(chunk)))
}

/// Whether the system says that the name, or a directory on its way, is not there.
fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn kind_of(error: &io::Error) -> ErrorKind {
    use io::ErrorKind as Io;
    match error.kind() {
        Io::NotFound => ErrorKind::NotFound,
        Io::AlreadyExists => ErrorKind::AlreadyExists,
        Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::PermissionDenied,
        Io::StorageFull | Io::QuotaExceeded => ErrorKind::NoSpace,
        Io::NotADirectory
        | Io::IsADirectory
        | Io::InvalidFilename
        | Io::InvalidInput
        | Io::FileTooLarge => ErrorKind::Invalid,
        Io::TimedOut => ErrorKind::TimedOut,
        // What a network file system says while its server is away.
        Io::StaleNetworkFileHandle
        | Io::HostUnreachable
        | Io::NetworkUnreachable
        | Io::NetworkDown => ErrorKind::Unavailable,
        _ => ErrorKind::Other,
    }
}
