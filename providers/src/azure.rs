//! The Azure store: block blobs at `az://container/prefix`.
//!
//! ```text
//! SDK's clients (put, blocks, head, delete) ─┐                       ┌ account key
//! raw requests (get, list) ──────────────────┴─▶ checksum ─▶ signed by SAS    ─▶ reqwest
//!                                                                    └ token of Entra ID
//! ```
//!
//! Creates carry `If-None-Match: *`, on single puts and on the block lists that end uploads. Every
//! body carries a CRC-64 that Azure checks. The whole object's CRC-64 is kept in its metadata
//! (`walhalla_crc64`), put together from the parts' where it came in parts, and a whole object read
//! back is checked against it; of a range nothing is checked but its length.
//!
//! Azure knows no uploads, only blocks that are staged under a blob's name until a block list names
//! them. A commit by one writer drops what others have staged; blocks that nobody commits go after a week.
//!
//! "Not there" is taken from an answer that names the blob (`BlobNotFound`, also in the header of a
//! HEAD's answer): any other 404 may mean the container, or a proxy on the way.

mod account;
mod answer;
mod checksum;
mod entra;
mod failure;
mod listing;
mod shared_key;
mod uploads;

use std::collections::HashMap;
use std::fmt;
use std::num::NonZero;
use std::sync::Arc;

use async_trait::async_trait;
use azure_core::credentials::Secret;
use azure_core::error::CheckSuccessOptions;
use azure_core::http::headers::{HeaderName, Headers};
use azure_core::http::policies::{Policy, PolicyResult};
use azure_core::http::{
    AsyncRawResponse, ClientOptions, Context, Etag, Method, Pipeline, PipelineSendOptions,
    PipelineStreamOptions, Request, RetryOptions, Transport, Url,
};
use azure_storage_blob::models::{
    AccessTier, BlockBlobClientCommitBlockListOptions, BlockBlobClientUploadOptions,
    BlockLookupList,
};
use azure_storage_blob::{BlobClient, BlobContainerClient, BlobContainerClientOptions};
use bytes::Bytes;
use futures_util::TryStreamExt;

use crate::endpoint::place;
use crate::http::{byte_range, content_range, delete_each, is_settled};
use crate::location::Location;
use crate::transfer::StoreSettings;
use crate::{
    Download, Error, ErrorKind, Limits, ListPage, ListRequest, ListingCost, ObjectInfo, ObjectKey,
    ObjectStore, ObjectVersion, Operation, PageToken, PartAt, PartReceipt, PutMode, PutToken,
    Result, Retained, Right, UploadId, Versioning, VersionsPage, VersionsRequest,
};
use account::{Account, Credential};
use answer::{BoundedClient, OriginPolicy};
use checksum::{ChecksumPolicy, Crc64, verified};
use entra::EntraPolicy;
use failure::{Failure, Unexpected};
use listing::{BlobPage, timestamp};
use shared_key::SharedKeyPolicy;
use uploads::{Uploads, block_id};

const PART_SIZE_BYTES: usize = 8 << 20;
const MAX_PARTS: u32 = 50_000;
/// How many pages are looked at for a blob that has a version: 100,000 blobs.
const MOST_PAGES_WITHOUT_VERSIONS: usize = 20;

/// Names of metadata are identifiers of C#, so without hyphens.
const TOKEN_METADATA: &str = "walhalla_token";
const CHECKSUM_METADATA: &str = "walhalla_crc64";

/// Of blobs in accounts with versioning, and of those that nobody may delete (`Get Blob Properties`).
const VERSION_HEADER: HeaderName = HeaderName::from_static("x-ms-version-id");
const IMMUTABLE_HEADER: HeaderName = HeaderName::from_static("x-ms-immutability-policy-until-date");

const TOKEN_HEADER: HeaderName = HeaderName::from_static("x-ms-meta-walhalla_token");
const CHECKSUM_HEADER: HeaderName = HeaderName::from_static("x-ms-meta-walhalla_crc64");
const CONTENT_LENGTH: HeaderName = HeaderName::from_static("content-length");
const CONTENT_RANGE: HeaderName = HeaderName::from_static("content-range");
const ETAG: HeaderName = HeaderName::from_static("etag");
const LAST_MODIFIED: HeaderName = HeaderName::from_static("last-modified");

/// Block blobs in a container, below a prefix.
pub struct AzureStore {
    container: BlobContainerClient,
    /// For what the SDK's clients cannot ask.
    pipeline: Pipeline,
    version: String,
    location: Location,
    url: String,
    place: Arc<str>,
    tier: Option<AccessTier>,
    uploads: Uploads,
}

impl AzureStore {
    /// The store at `location`, in the account and with the credentials that the environment names.
    ///
    /// No request goes to the store yet; tokens are fetched with the first.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the environment names no account, or a setting cannot be;
    /// [`ErrorKind::NoCredentials`] when what an identity needs is not there.
    #[allow(clippy::unused_async)] // as the other stores', of which some must wait
    pub async fn connect(location: Location, settings: &StoreSettings) -> Result<Self> {
        Self::with_variables(location, settings, |name| std::env::var(name).ok())
    }

    /// The store at `location`, with settings from `variable` instead of the environment's.
    ///
    /// # Errors
    /// As [`AzureStore::connect`].
    pub fn with_variables(
        location: Location,
        settings: &StoreSettings,
        variable: impl Fn(&'static str) -> Option<String>,
    ) -> Result<Self> {
        let url = location.url();
        let tier = settings.azure.access_tier.as_deref();
        let tier = tier.map(access_tier).transpose().map_err(|fault| {
            Error::new(Operation::Open, url.clone(), ErrorKind::Invalid).with_source(fault)
        })?;
        let account = Account::from_variables(&url, variable)?;
        let options = client_options(settings, account.credential)
            .map_err(|failure| failure.on(Operation::Open, url.clone()))?;
        let pipeline = Pipeline::new(
            option_env!("CARGO_PKG_NAME"),
            option_env!("CARGO_PKG_VERSION"),
            options.clone(),
            Vec::new(),
            Vec::new(),
            None,
        );
        let options = BlobContainerClientOptions {
            client_options: options,
            ..BlobContainerClientOptions::default()
        };
        let version = options.version.clone();
        let place = place(account.endpoint.as_str());
        let address = container_url(account.endpoint, location.bucket());
        let container = BlobContainerClient::new(address, None, Some(options))
            .map_err(|error| Failure::from(error).on(Operation::Open, url.clone()))?;
        Ok(Self {
            container,
            pipeline,
            version,
            location,
            url,
            place,
            tier,
            uploads: Uploads::default(),
        })
    }

    /// Makes the container, as an account's owner would.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) async fn create_container(&self) -> Result<()> {
        let answer = self.container.create(None).await;
        answer.map_err(|error| Failure::from(error).on(Operation::Put, self.url.clone()))?;
        Ok(())
    }

    fn object_url(&self, key: &ObjectKey) -> String {
        format!("{}/{key}", self.url)
    }

    /// The client of one blob.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a name that Azure would take for another one.
    fn blob(&self, operation: Operation, key: &ObjectKey) -> Result<BlobClient> {
        let name = self.location.full(key.as_str());
        let is_changed = |part: &str| part.ends_with('.') || part.contains('\\');
        if name.split('/').any(is_changed) || name.contains(char::is_control) {
            let error = Error::new(operation, self.object_url(key), ErrorKind::Invalid);
            return Err(error.with_source(BadName));
        }
        Ok(self.container.blob_client(&name))
    }

    fn failed(&self, operation: Operation, key: &ObjectKey, failure: impl Into<Failure>) -> Error {
        failure.into().on(operation, self.object_url(key))
    }

    fn unexpected(&self, operation: Operation, key: &ObjectKey, answer: Unexpected) -> Error {
        Error::new(operation, self.object_url(key), ErrorKind::Other).with_source(answer)
    }

    fn upload_gone(&self, key: &ObjectKey) -> Error {
        Error::new(Operation::Put, self.object_url(key), ErrorKind::NotFound)
            .with_source(UploadGone)
    }

    fn request(&self, url: Url) -> Request {
        let mut request = Request::new(url, Method::Get);
        request.insert_header("x-ms-version", self.version.clone());
        request
    }

    async fn get_range(
        &self,
        blob: &BlobClient,
        version: Option<&str>,
        range: Option<String>,
    ) -> std::result::Result<AsyncRawResponse, Failure> {
        let mut url = blob.url().clone();
        if let Some(version) = version {
            url.query_pairs_mut().append_pair("versionid", version);
        }
        let mut request = self.request(url);
        if let Some(range) = range {
            request.insert_header("x-ms-range", range);
        }
        let options = PipelineStreamOptions {
            check_success: CheckSuccessOptions {
                success_codes: &[200, 206],
            },
            ..PipelineStreamOptions::default()
        };
        let context = Context::default();
        let answer = self.pipeline.stream(&context, &mut request, Some(options));
        answer.await.map_err(Failure::from)
    }

    fn object_info(&self, key: &ObjectKey, headers: &Headers) -> Result<ObjectInfo> {
        let incomplete = || self.unexpected(Operation::Head, key, Unexpected::MissingField);
        Ok(ObjectInfo {
            key: key.clone(),
            size_bytes: number(headers, &CONTENT_LENGTH).ok_or_else(incomplete)?,
            modified: headers
                .get_optional_str(&LAST_MODIFIED)
                .and_then(timestamp)
                .ok_or_else(incomplete)?,
            token: headers
                .get_optional_string(&TOKEN_HEADER)
                .map(PutToken::from),
        })
    }

    fn download(&self, key: &ObjectKey, offset: u64, answer: AsyncRawResponse) -> Result<Download> {
        let (_, headers, body) = answer.deconstruct();
        let length = number(&headers, &CONTENT_LENGTH);
        let incomplete = || self.unexpected(Operation::Get, key, Unexpected::MissingField);
        let elsewhere = || self.unexpected(Operation::Get, key, Unexpected::IgnoredRange);
        let object_size_bytes = match headers.get_optional_str(&CONTENT_RANGE) {
            Some(range) => content_range(range, offset).ok_or_else(elsewhere)?,
            None if offset == 0 => length.ok_or_else(incomplete)?,
            None => return Err(elsewhere()),
        };
        // Without it nobody knows whether what is read on later is the same object.
        let version = headers.get_optional_string(&ETAG).ok_or_else(incomplete)?;
        if offset != 0 && offset >= object_size_bytes {
            let error = Error::new(Operation::Get, self.object_url(key), ErrorKind::Invalid);
            return Err(error.with_source(Unexpected::PastTheEnd));
        }
        let object = self.object_url(key);
        let shown = object.clone();
        let body =
            body.map_err(move |error| Failure::from(error).on(Operation::Get, shown.clone()));
        let checksum = stored_checksum(&headers).map_err(|bad| {
            let error = Error::new(Operation::Get, object.clone(), ErrorKind::Corrupted);
            error.with_source(bad)
        })?;
        let checksum = checksum.filter(|_| length == Some(object_size_bytes));
        Ok(Download {
            object_size_bytes,
            version: Some(version),
            body: match checksum {
                Some(checksum) => Box::pin(verified(body, checksum, object)),
                None => Box::pin(body),
            },
        })
    }

    /// The bytes of a blob, or of a version of it.
    async fn get_one(
        &self,
        key: &ObjectKey,
        version: Option<&str>,
        offset: u64,
        length: Option<u64>,
    ) -> Result<Download> {
        let blob = self.blob(Operation::Get, key)?;
        let range = byte_range(offset, length);
        let mut answer = self.get_range(&blob, version, range).await;
        // No range lies in an empty object, not even the first byte.
        if offset == 0 && answer.as_ref().is_err_and(Failure::is_invalid_range) {
            answer = self.get_range(&blob, version, None).await;
        }
        let answer = answer.map_err(|failure| self.failed(Operation::Get, key, failure))?;
        self.download(key, offset, answer)
    }

    fn list_url(&self, prefix: &str, fold: bool, page: Option<&PageToken>) -> Url {
        let mut url = self.container.url().clone();
        url.query_pairs_mut()
            .append_pair("restype", "container")
            .append_pair("comp", "list")
            .append_pair("prefix", &self.location.full(prefix));
        if fold {
            url.query_pairs_mut().append_pair("delimiter", "/");
        }
        if let Some(marker) = page {
            url.query_pairs_mut().append_pair("marker", marker.as_str());
        }
        url
    }

    async fn blob_page(&self, url: Url) -> std::result::Result<BlobPage, Failure> {
        let mut request = self.request(url);
        let options = PipelineSendOptions {
            check_success: CheckSuccessOptions {
                success_codes: &[200],
            },
            ..PipelineSendOptions::default()
        };
        let context = Context::default();
        let answer = self.pipeline.send(&context, &mut request, Some(options));
        let answer = answer.await?;
        Ok(azure_core::xml::from_xml(answer.body())?)
    }

    async fn delete_one(&self, key: ObjectKey) -> (ObjectKey, Result<()>) {
        let deleted = match self.blob(Operation::Delete, &key) {
            Ok(blob) => match blob.delete(None).await {
                Ok(_) => Ok(()),
                Err(error) => Err(self.failed(Operation::Delete, &key, error)),
            },
            Err(error) => Err(error),
        };
        (key, deleted)
    }

    /// A blob is there when the answer carries its tag, and this one does not.
    fn not_stored(&self, key: &ObjectKey) -> Error {
        self.unexpected(Operation::Put, key, Unexpected::MissingField)
    }

    async fn put_whole(
        &self,
        key: &ObjectKey,
        body: Bytes,
        mode: PutMode,
        token: &PutToken,
    ) -> Result<()> {
        let options = BlockBlobClientUploadOptions {
            if_none_match: condition(mode),
            metadata: Some(metadata(token, Some(Crc64::of(&body)))),
            // Whatever its length, in one request.
            partition_size: Some(NonZero::<u64>::MAX),
            tier: self.tier.clone(),
            ..BlockBlobClientUploadOptions::default()
        };
        let blob = self.blob(Operation::Put, key)?;
        let answer = blob.upload(body.into(), Some(options)).await;
        let answer = answer.map_err(|error| self.failed(Operation::Put, key, error))?;
        match answer.etag {
            Some(_) => Ok(()),
            None => Err(self.not_stored(key)),
        }
    }

    /// Creates an object by way of a block: under a name with blocks that nobody has committed, no
    /// put creates anything (so Azurite), while a block list does.
    async fn put_as_block(&self, key: &ObjectKey, body: Bytes, token: &PutToken) -> Result<()> {
        let upload = uploads::new_id();
        let mut parts = Vec::new();
        if !body.is_empty() {
            parts.push(self.stage(key, &upload, 1, body).await?);
        }
        self.commit(key, &upload, &parts, PutMode::Create, token)
            .await
    }

    async fn stage(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartReceipt> {
        let size_bytes = body.len() as u64;
        let checksum = Crc64::of(&body);
        let blob = self.blob(Operation::Put, key)?.block_blob_client();
        let block = block_id(upload, number);
        let answer = blob.stage_block(&block, size_bytes, body.into(), None);
        answer
            .await
            .map_err(|error| self.failed(Operation::Put, key, error))?;
        Ok(PartReceipt {
            number,
            tag: String::new(),
            checksum: Some(checksum.text()),
            size_bytes,
        })
    }

    /// Makes the blocks the object. Done again after it was done, it does no harm: the blocks are found where they are.
    async fn commit(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        mode: PutMode,
        token: &PutToken,
    ) -> Result<()> {
        let blocks = parts.iter().map(|part| block_id(upload, part.number));
        let list = BlockLookupList {
            latest: Some(blocks.collect()),
            ..BlockLookupList::default()
        };
        let options = BlockBlobClientCommitBlockListOptions {
            if_none_match: condition(mode),
            metadata: Some(metadata(token, Crc64::of_parts(parts))),
            tier: self.tier.clone(),
            ..BlockBlobClientCommitBlockListOptions::default()
        };
        let blob = self.blob(Operation::Put, key)?.block_blob_client();
        let list = list
            .try_into()
            .map_err(|error: azure_core::Error| self.failed(Operation::Put, key, error))?;
        let answer = blob.commit_block_list(list, Some(options)).await;
        match answer.map_err(Failure::from) {
            Ok(answer) if answer.headers().get_optional_str(&ETAG).is_some() => Ok(()),
            Ok(_) => Err(self.not_stored(key)),
            Err(failure) if failure.is_blocks_gone() => {
                Err(self.lost_blocks(key, mode, failure).await)
            }
            Err(failure) => Err(self.failed(Operation::Put, key, failure)),
        }
    }

    async fn is_absent(&self, key: &ObjectKey) -> Result<bool> {
        match self.head(key).await {
            Ok(_) => Ok(false),
            Err(error) if error.is_not_found() => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// What it means that another writer's commit dropped the upload's blocks.
    async fn lost_blocks(&self, key: &ObjectKey, mode: PutMode, failure: Failure) -> Error {
        let kind = match (mode, self.is_absent(key).await) {
            (_, Err(error)) => return error,
            (PutMode::Create, Ok(false)) => ErrorKind::AlreadyExists,
            (PutMode::Create, Ok(true)) | (PutMode::Overwrite, Ok(_)) => ErrorKind::NotFound,
        };
        self.failed(Operation::Put, key, failure.meaning(kind))
    }
}

#[async_trait]
impl ObjectStore for AzureStore {
    fn url(&self) -> &str {
        &self.url
    }

    fn place(&self) -> Option<Arc<str>> {
        Some(Arc::clone(&self.place))
    }

    fn right(&self, right: Right) -> &'static str {
        match right {
            Right::Create | Right::AbortUpload => {
                "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/write and blobs/add/action (SAS: cw)"
            }
            Right::Read => {
                "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read (SAS: r)"
            }
            Right::List => {
                "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read (SAS: l)"
            }
            Right::Delete => {
                "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/delete (SAS: d)"
            }
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            part_size_bytes: PART_SIZE_BYTES,
            max_parts: MAX_PARTS,
            parallel_parts: true,
            times_out: true,
            cheap_parts: false,
            listings: ListingCost::Prefix,
        }
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        mode: PutMode,
        token: &PutToken,
    ) -> Result<()> {
        let put = self.put_whole(key, body.clone(), mode, token).await;
        let is_taken = |error: &Error| error.kind == ErrorKind::AlreadyExists;
        if mode == PutMode::Create
            && put.as_ref().is_err_and(is_taken)
            && self.is_absent(key).await?
        {
            return self.put_as_block(key, body, token).await;
        }
        put
    }

    async fn start_upload(
        &self,
        key: &ObjectKey,
        _mode: PutMode,
        token: &PutToken,
    ) -> Result<UploadId> {
        self.blob(Operation::Put, key)?;
        self.uploads.start(token).ok_or_else(|| {
            Error::new(Operation::Put, self.object_url(key), ErrorKind::Other)
                .with_source(TooManyUploads)
        })
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        at: PartAt,
        body: Bytes,
    ) -> Result<PartReceipt> {
        if self.uploads.token(upload).is_none() {
            return Err(self.upload_gone(key));
        }
        self.stage(key, upload, at.number, body).await
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        mode: PutMode,
    ) -> Result<()> {
        let Some(token) = self.uploads.token(upload) else {
            return Err(self.upload_gone(key));
        };
        let committed = self.commit(key, upload, parts, mode, &token).await;
        if committed
            .as_ref()
            .err()
            .is_none_or(|error| is_settled(error.kind))
        {
            self.uploads.end(upload);
        }
        committed
    }

    /// Azure has no request for it: the blocks are dropped with the next commit of the key, or after a week.
    async fn abort_upload(&self, _: &ObjectKey, upload: &UploadId) -> Result<()> {
        self.uploads.end(upload);
        Ok(())
    }

    async fn get(&self, key: &ObjectKey, offset: u64, length: Option<u64>) -> Result<Download> {
        self.get_one(key, None, offset, length).await
    }

    /// Nothing tells but the blobs themselves: where versions are kept, those that were stored since then have ids.
    async fn versioning(&self) -> Result<Versioning> {
        let mut request = VersionsRequest::default();
        for _ in 0..MOST_PAGES_WITHOUT_VERSIONS {
            let page = self.versions(&request).await?;
            if page.versions.iter().any(|version| !version.id.is_empty()) {
                return Ok(Versioning::Kept);
            }
            request.page = page.next;
            if request.page.is_none() {
                break;
            }
        }
        Ok(Versioning::Never)
    }

    async fn retained(&self, key: &ObjectKey) -> Result<Retained> {
        let blob = self.blob(Operation::Head, key)?;
        let answer = blob.get_properties(None).await;
        let answer = answer.map_err(|error| self.failed(Operation::Head, key, error))?;
        let headers = answer.headers();
        Ok(Retained {
            versioning: match headers.get_optional_str(&VERSION_HEADER) {
                Some(_) => Versioning::Kept,
                None => Versioning::Never,
            },
            until: headers
                .get_optional_str(&IMMUTABLE_HEADER)
                .and_then(timestamp),
        })
    }

    async fn versions(&self, request: &VersionsRequest) -> Result<VersionsPage> {
        let object = || format!("{}/{}", self.url, request.prefix);
        let mut url = self.list_url(&request.prefix, request.fold, request.page.as_ref());
        url.query_pairs_mut().append_pair("include", "versions");
        let page = self.blob_page(url).await;
        let page = page.map_err(|failure| failure.on(Operation::List, object()))?;
        page.into_versions_page(request, &self.location)
            .map_err(|answer| {
                Error::new(Operation::List, object(), ErrorKind::Other).with_source(answer)
            })
    }

    async fn get_version(
        &self,
        version: &ObjectVersion,
        offset: u64,
        length: Option<u64>,
    ) -> Result<Download> {
        let id = Some(&*version.id).filter(|id| !id.is_empty());
        self.get_one(&version.key, id, offset, length).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectInfo> {
        let blob = self.blob(Operation::Head, key)?;
        let answer = blob.get_properties(None).await;
        let answer = answer.map_err(|error| self.failed(Operation::Head, key, error))?;
        self.object_info(key, answer.headers())
    }

    /// With a `start_after` the pages before it are read too, and come empty: Azure starts at the prefix.
    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let object = || format!("{}/{}", self.url, request.prefix);
        let url = self.list_url(&request.prefix, request.fold, request.page.as_ref());
        let page = self.blob_page(url).await;
        let page = page.map_err(|failure| failure.on(Operation::List, object()))?;
        page.into_page(request, &self.location).map_err(|answer| {
            Error::new(Operation::List, object(), ErrorKind::Other).with_source(answer)
        })
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, Error)>> {
        delete_each(keys, |key| self.delete_one(key)).await
    }
}

/// The client's options hold credentials, so none of them shows.
impl fmt::Debug for AzureStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AzureStore")
            .field("url", &self.url)
            .field("tier", &self.tier)
            .finish_non_exhaustive()
    }
}

/// Adds the shared access signature on the way out, so that no URL before it holds one.
struct SasPolicy(Secret);

#[async_trait]
impl Policy for SasPolicy {
    async fn send(
        &self,
        ctx: &Context,
        request: &mut Request,
        next: &[Arc<dyn Policy>],
    ) -> PolicyResult {
        let sas = self.0.secret();
        let query = match request.url().query() {
            Some(query) if !query.is_empty() => format!("{query}&{sas}"),
            Some(_) | None => sas.to_owned(),
        };
        request.url_mut().set_query(Some(&query));
        forward(ctx, request, next).await
    }
}

impl fmt::Debug for SasPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SasPolicy")
    }
}

/// Gives the request to the next policy of a pipeline.
async fn forward(
    ctx: &Context<'_>,
    request: &mut Request,
    next: &[Arc<dyn Policy>],
) -> PolicyResult {
    match next.split_first() {
        Some((policy, rest)) => policy.send(ctx, request, rest).await,
        None => Err(azure_core::Error::with_message(
            azure_core::error::ErrorKind::Other,
            "the pipeline has no transport",
        )),
    }
}

/// An access tier that cannot be asked for.
#[derive(Debug, thiserror::Error)]
enum BadTier {
    #[error(
        "the access tier Archive (azure_access_tier) does not work: \
         a blob in it must be brought back, for hours, before it can be read; hint: take Cold"
    )]
    Archive,
    #[error("the access tier (azure_access_tier) `{tier}` is not one of Hot, Cool and Cold")]
    Unknown { tier: String },
}

/// A key that Azure would store under another name than this.
#[derive(Debug, thiserror::Error)]
#[error("Azure takes no names with backslashes, control characters or parts that end with a dot")]
struct BadName;

/// The metadata were changed by somebody: what the object was cannot be compared any more.
#[derive(Debug, thiserror::Error)]
#[error("the checksum in the blob's metadata ({CHECKSUM_METADATA}) is none")]
struct BadChecksum;

/// An upload that was completed, aborted or never begun.
#[derive(Debug, thiserror::Error)]
#[error("the upload is gone")]
struct UploadGone;

/// More uploads at one time than anybody needs.
#[derive(Debug, thiserror::Error)]
#[error("too many uploads are in progress")]
struct TooManyUploads;

/// How requests go out: checked, authorized, and only once, as the retries are `transfer`'s.
fn client_options(
    settings: &StoreSettings,
    credential: Credential,
) -> std::result::Result<ClientOptions, OpenFault> {
    let http = crate::endpoint::http_client(settings.ca_file.as_deref())?;
    let mut options = ClientOptions {
        retry: RetryOptions::none(),
        transport: Some(Transport::new(Arc::new(BoundedClient(http)))),
        ..ClientOptions::default()
    };
    let authorize: Arc<dyn Policy> = match credential {
        Credential::Key { account, key } => Arc::new(SharedKeyPolicy::new(account, key)),
        Credential::Sas(sas) => Arc::new(SasPolicy(sas)),
        Credential::Entra(identity) => Arc::new(EntraPolicy::new(identity, options.clone())?),
    };
    options.per_call_policies.push(Arc::new(ChecksumPolicy));
    options.per_try_policies.push(authorize);
    options.per_try_policies.push(Arc::new(OriginPolicy));
    Ok(options)
}

/// Why the client could not be set up.
enum OpenFault {
    Http(Error),
    Identity(azure_core::Error),
}

impl OpenFault {
    fn on(self, operation: Operation, object: String) -> Error {
        match self {
            Self::Http(error) => error,
            Self::Identity(error) => Failure::from(error).on(operation, object),
        }
    }
}

impl From<Error> for OpenFault {
    fn from(error: Error) -> Self {
        Self::Http(error)
    }
}

impl From<azure_core::Error> for OpenFault {
    fn from(error: azure_core::Error) -> Self {
        Self::Identity(error)
    }
}

fn container_url(mut endpoint: Url, container: &str) -> Url {
    endpoint
        .path_segments_mut()
        .expect("an http URL can be a base")
        .pop_if_empty()
        .push(container);
    endpoint
}

fn access_tier(text: &str) -> std::result::Result<AccessTier, BadTier> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "hot" => AccessTier::Hot,
        "cool" => AccessTier::Cool,
        "cold" => AccessTier::Cold,
        "archive" => return Err(BadTier::Archive),
        _ => {
            let tier = text.to_owned();
            return Err(BadTier::Unknown { tier });
        }
    })
}

fn metadata(token: &PutToken, checksum: Option<Crc64>) -> HashMap<String, String> {
    let token = (TOKEN_METADATA.to_owned(), token.as_str().to_owned());
    let checksum = checksum.map(|crc| (CHECKSUM_METADATA.to_owned(), crc.text()));
    [token].into_iter().chain(checksum).collect()
}

fn condition(mode: PutMode) -> Option<Etag> {
    match mode {
        PutMode::Create => Some(Etag::from("*")),
        PutMode::Overwrite => None,
    }
}

/// The checksum that the object's writer left, if it left one.
fn stored_checksum(headers: &Headers) -> std::result::Result<Option<Crc64>, BadChecksum> {
    let text = headers.get_optional_str(&CHECKSUM_HEADER);
    text.map(|text| Crc64::parse(text).ok_or(BadChecksum))
        .transpose()
}

fn number(headers: &Headers, name: &HeaderName) -> Option<u64> {
    headers.get_optional_str(name)?.parse().ok()
}
