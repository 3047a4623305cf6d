//! The S3 store: `s3://bucket/prefix`, on AWS and on servers that speak its protocol.
//!
//! Creates carry `If-None-Match: *`, on single puts and on completions. The body of a put
//! and of a part carries a CRC-32 that the server checks, in a header that is signed. Over TLS such a body is not in the signature
//! itself: that takes a SHA-256 of it. An object that was stored in one request is compared with its own when it is read as a
//! whole; one of several parts has a checksum of checksums, which the SDK does not compare.
//!
//! "Not there" is taken from an answer that names the key (`NoSuchKey`), which S3 gives to a GET
//! only: a HEAD's 404 has no body, and could as well mean the bucket, or a proxy on the way. A HEAD
//! that is refused is therefore followed by a GET.
//!
//! Some servers answer 200 to a second conditional create and overwrite in silence: `probe.rs` finds them out.

mod failure;
mod headers;
mod probe;
mod probe_memory;
mod session;
mod versions;

use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::list_multipart_uploads::ListMultipartUploadsOutput;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{
    ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart, Delete, MultipartUpload, Object,
    ObjectIdentifier, RequestPayer,
};

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use jiff::Timestamp;
use tokio::sync::OnceCell;

use crate::http::{byte_range, content_range};
use crate::transfer::{ConditionalWrites, S3Settings, StoreSettings};
use crate::{
    Download, Error, ErrorKind, Limits, ListPage, ListRequest, ListingCost, Location, ObjectInfo,
    ObjectKey, ObjectStore, ObjectVersion, Operation, PageToken, PartAt, PartReceipt, PutMode,
    PutToken, Result, Retained, Right, UnfinishedUpload, UploadId, UploadsPage, Versioning,
    VersionsPage, VersionsRequest,
};
use failure::{Failure, Unexpected};
use headers::as_the_settings_say;
use probe_memory::ProbeMemory;
use session::{Session, Sessions};

const DEFAULT_PART_SIZE_BYTES: usize = 8 << 20;
const SMALLEST_PART_BYTES: usize = 5 << 20;
const LARGEST_PART_BYTES: usize = 5 << 30;
const MAX_PARTS: u32 = 10_000;

/// `x-amz-meta-walhalla-token` in the protocol.
const TOKEN_METADATA: &str = "walhalla-token";

/// Objects in a bucket, below a prefix.
pub struct S3Store {
    sessions: Sessions,
    location: Location,
    url: String,
    settings: S3Settings,
    part_size_bytes: usize,
    creates: Creates,
    /// Set once the server has refused to create an object a second time.
    probed: OnceCell<()>,
    /// Where that is remembered for the next process.
    memory: Option<ProbeMemory>,
}

/// How an object is created that must not replace another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Creates {
    /// By a condition, after the server was seen to keep it.
    Probed,
    /// By a condition.
    Trusted,
    /// By looking first; of two writers at the same moment the second replaces the first one's object.
    LookFirst,
}

/// A request whose body goes into the signature, or does not.
macro_rules! signed_as {
    ($request:expr, $session:expr) => {{
        let request = $request.customize();
        if $session.signs_bodies {
            request
        } else {
            request.disable_payload_signing()
        }
    }};
}

impl S3Store {
    /// The store at `location`, with the AWS settings and credentials of the environment, the
    /// profile files, a container, an instance or whatever else the AWS chain finds.
    ///
    /// No request goes to the store yet; credentials are fetched with the first.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when no region is set, for an endpoint without a protocol, a part
    /// size that S3 does not take, or certificates that cannot be used.
    pub async fn connect(location: Location, settings: &StoreSettings) -> Result<Self> {
        let sessions = Sessions::connect(&location, settings).await?;
        let creates = if sessions.current().endpoint.is_some() {
            Creates::Probed
        } else {
            Creates::Trusted
        };
        Self::new(sessions, location, &settings.s3, creates)
    }

    /// The store at `location` through a client set up by the caller, whose retries should be off.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a part size that S3 does not take.
    pub fn with_client(
        client: Client,
        location: Location,
        settings: &StoreSettings,
    ) -> Result<Self> {
        let checksums = settings.s3.checksums.unwrap_or(true);
        let signs_bodies = settings.s3.sign_bodies.unwrap_or(true);
        let sessions = Sessions::of_client(client, checksums, signs_bodies);
        Self::new(sessions, location, &settings.s3, Creates::Trusted)
    }

    fn new(
        sessions: Sessions,
        location: Location,
        settings: &S3Settings,
        creates: Creates,
    ) -> Result<Self> {
        let url = location.url();
        let part_size_bytes = settings.part_size_bytes.unwrap_or(DEFAULT_PART_SIZE_BYTES);
        if !(SMALLEST_PART_BYTES..=LARGEST_PART_BYTES).contains(&part_size_bytes) {
            let error = Error::new(Operation::Open, url, ErrorKind::Invalid);
            return Err(error.with_source(BadPartSize { part_size_bytes }));
        }
        let creates = match settings.conditional_writes {
            None => creates,
            Some(ConditionalWrites::Probe) => Creates::Probed,
            Some(ConditionalWrites::Trust) => Creates::Trusted,
            Some(ConditionalWrites::Off) => Creates::LookFirst,
        };
        let endpoint = sessions.current().endpoint.clone();
        let directory = settings.probe_memory.as_deref().zip(endpoint.as_deref());
        let memory =
            directory.map(|(directory, endpoint)| ProbeMemory::new(directory, endpoint, &url));
        Ok(Self {
            sessions,
            location,
            url,
            settings: settings.clone(),
            part_size_bytes,
            creates,
            probed: OnceCell::new(),
            memory,
        })
    }

    fn payer(&self) -> Option<RequestPayer> {
        self.settings
            .requester_pays
            .then_some(RequestPayer::Requester)
    }

    fn object_url(&self, key: &ObjectKey) -> String {
        format!("{}/{key}", self.url)
    }

    fn bucket(&self) -> &str {
        self.location.bucket()
    }

    /// The key as the bucket spells it.
    fn full(&self, key: &str) -> String {
        self.location.full(key)
    }

    /// The error of a request that `session` made for `key`.
    async fn failed(
        &self,
        session: &Arc<Session>,
        operation: Operation,
        key: &ObjectKey,
        failure: impl Into<Failure>,
    ) -> Error {
        let failure = self.renewed_after(session, failure.into()).await;
        failure.on(operation, self.object_url(key))
    }

    /// The failure; one that may pass when it was about credentials that are now loaded anew.
    async fn renewed_after(&self, session: &Arc<Session>, failure: Failure) -> Failure {
        if failure.is_expiry() && self.sessions.renew(session).await {
            failure.into_passing()
        } else {
            failure
        }
    }

    fn unexpected(&self, operation: Operation, key: &ObjectKey, answer: Unexpected) -> Error {
        Error::new(operation, self.object_url(key), ErrorKind::Other).with_source(answer)
    }

    /// An object is stored when the answer carries its tag. A page with status 200 that some proxy sends seldom does.
    fn stored(&self, key: &ObjectKey, tag: Option<&String>) -> Result<()> {
        match tag {
            Some(_) => Ok(()),
            None => Err(self.unexpected(Operation::Put, key, Unexpected::MissingField)),
        }
    }

    async fn get_range(
        &self,
        session: &Session,
        key: &ObjectKey,
        version: Option<&str>,
        range: Option<String>,
    ) -> std::result::Result<GetObjectOutput, Failure> {
        let request = session
            .client
            .get_object()
            .bucket(self.bucket())
            .key(self.full(key.as_str()))
            .set_version_id(version.map(str::to_owned))
            .set_request_payer(self.payer())
            .set_range(range);
        request.send().await.map_err(Failure::from)
    }

    /// The bytes of an object, or of a version of it.
    async fn get_one(
        &self,
        key: &ObjectKey,
        version: Option<&str>,
        offset: u64,
        length: Option<u64>,
    ) -> Result<Download> {
        let session = self.sessions.current();
        let mut answer = self
            .get_range(&session, key, version, byte_range(offset, length))
            .await;
        // No range lies in an empty object, not even the first byte.
        if offset == 0 && answer.as_ref().is_err_and(Failure::is_invalid_range) {
            answer = self.get_range(&session, key, version, None).await;
        }
        match answer {
            Ok(output) => self.download(key, offset, output),
            Err(failure) => Err(self.failed(&session, Operation::Get, key, failure).await),
        }
    }

    /// Asks by GET after a HEAD was refused, and so gets an answer with a reason.
    async fn head_by_get(&self, key: &ObjectKey) -> Result<ObjectInfo> {
        let session = self.sessions.current();
        let output = match self.get_range(&session, key, None, None).await {
            Ok(output) => output,
            Err(failure) => return Err(self.failed(&session, Operation::Head, key, failure).await),
        };
        let parts = (output.content_length, output.last_modified, output.metadata);
        self.object_info(key, parts)
    }

    fn object_info(
        &self,
        key: &ObjectKey,
        (length, modified, metadata): (
            Option<i64>,
            Option<DateTime>,
            Option<HashMap<String, String>>,
        ),
    ) -> Result<ObjectInfo> {
        let incomplete = || self.unexpected(Operation::Head, key, Unexpected::MissingField);
        Ok(ObjectInfo {
            key: key.clone(),
            size_bytes: length
                .and_then(|length| u64::try_from(length).ok())
                .ok_or_else(incomplete)?,
            modified: modified
                .as_ref()
                .and_then(timestamp)
                .ok_or_else(incomplete)?,
            token: metadata
                .and_then(|mut metadata| metadata.remove(TOKEN_METADATA))
                .map(PutToken::from),
        })
    }

    fn download(&self, key: &ObjectKey, offset: u64, output: GetObjectOutput) -> Result<Download> {
        let length = output
            .content_length
            .and_then(|length| u64::try_from(length).ok());
        let size = match (&output.content_range, length) {
            (Some(range), _) => content_range(range, offset),
            (None, length) if offset == 0 => length,
            (None, _) => {
                return Err(self.unexpected(Operation::Get, key, Unexpected::IgnoredRange));
            }
        };
        let incomplete = || self.unexpected(Operation::Get, key, Unexpected::MissingField);
        let tag = output.e_tag.ok_or_else(incomplete)?;
        Ok(Download {
            object_size_bytes: size.ok_or_else(incomplete)?,
            // Where versioning is suspended every version is called "null".
            version: Some(format!("{tag} {}", output.version_id.unwrap_or_default())),
            body: Box::pin(chunks(output.body, self.object_url(key))),
        })
    }

    fn uploads_page(&self, output: ListMultipartUploadsOutput) -> UploadsPage {
        let unfinished = |upload: MultipartUpload| {
            Some(UnfinishedUpload {
                key: upload.key?.strip_prefix(&self.full(""))?.to_owned(),
                id: UploadId(upload.upload_id?),
                modified: upload.initiated.as_ref().and_then(timestamp)?,
            })
        };
        let uploads = output.uploads.unwrap_or_default().into_iter();
        let next = output.next_key_marker.zip(output.next_upload_id_marker);
        let next = next.filter(|_| output.is_truncated == Some(true));
        UploadsPage {
            uploads: uploads.filter_map(unfinished).collect(),
            next: next.map(|(key, id)| PageToken::from(format!("{key}\n{id}"))),
        }
    }

    fn page(&self, request: &ListRequest, output: ListObjectsV2Output) -> Result<ListPage> {
        let incomplete = || {
            let object = format!("{}/{}", self.url, request.prefix);
            let error = Error::new(Operation::List, object, ErrorKind::Other);
            error.with_source(Unexpected::MissingField)
        };
        // A page that does not say whether it is the last is none of S3's.
        let is_truncated = output.is_truncated.ok_or_else(incomplete)?;
        if is_truncated && output.next_continuation_token.is_none() {
            return Err(incomplete());
        }
        let mut page = ListPage {
            next: output
                .next_continuation_token
                .filter(|_| is_truncated)
                .map(PageToken::from),
            ..ListPage::default()
        };
        for object in output.contents.unwrap_or_default() {
            let full = object.key().ok_or_else(incomplete)?;
            // What is no key of a store was put there by somebody else.
            if let Some(key) = self.location.key(full) {
                let info = listed(key, &object).ok_or_else(incomplete)?;
                page.objects.push(info);
            }
        }
        for folder in output.common_prefixes.unwrap_or_default() {
            let full = folder.prefix.ok_or_else(incomplete)?;
            page.folders
                .extend(self.location.below(&full).map(str::to_owned));
        }
        Ok(page)
    }

    fn batch(&self, keys: &[ObjectKey]) -> std::result::Result<Delete, Failure> {
        let objects = keys
            .iter()
            .map(|key| {
                ObjectIdentifier::builder()
                    .key(self.full(key.as_str()))
                    .build()
            })
            .collect::<std::result::Result<_, _>>();
        Delete::builder()
            .quiet(true)
            .set_objects(Some(objects.map_err(Failure::construction)?))
            .build()
            .map_err(Failure::construction)
    }

    /// The keys of a batch that the server refused, as [`ObjectStore::delete`] gives them.
    fn refused(&self, errors: Vec<aws_sdk_s3::types::Error>) -> Result<Vec<(ObjectKey, Error)>> {
        let mut refused = Vec::new();
        for error in errors {
            let failure = Failure::of_code(error.code(), error.message());
            if failure.kind() == ErrorKind::NotFound {
                continue;
            }
            let Some(key) = error.key().and_then(|full| self.location.key(full)) else {
                // Of which key it is, the server does not say.
                return Err(failure.on(Operation::Delete, self.url.clone()));
            };
            let error = failure.on(Operation::Delete, self.object_url(&key));
            refused.push((key, error));
        }
        Ok(refused)
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    fn url(&self) -> &str {
        &self.url
    }

    fn place(&self) -> Option<Arc<str>> {
        Some(Arc::clone(&self.sessions.current().place))
    }

    fn right(&self, right: Right) -> &'static str {
        match right {
            Right::Create => "s3:PutObject",
            Right::Read => "s3:GetObject",
            Right::List => "s3:ListBucket",
            Right::Delete => "s3:DeleteObject",
            Right::AbortUpload => "s3:AbortMultipartUpload",
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            part_size_bytes: self.part_size_bytes,
            max_parts: MAX_PARTS,
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
        let condition = self.condition(key, mode).await?;
        let session = self.sessions.current();
        let request = session
            .client
            .put_object()
            .bucket(self.bucket())
            .key(self.full(key.as_str()))
            .metadata(TOKEN_METADATA, token.as_str())
            .set_if_none_match(condition)
            .set_request_payer(self.payer())
            // Whatever the AWS settings say: the body may stay unsigned for it.
            .set_checksum_algorithm(session.checksums.then_some(ChecksumAlgorithm::Crc32))
            .body(ByteStream::from(body));
        let request = as_the_settings_say!(request, self.settings);
        match signed_as!(request, session).send().await {
            Ok(output) => self.stored(key, output.e_tag.as_ref()),
            Err(error) => Err(self.failed(&session, Operation::Put, key, error).await),
        }
    }

    async fn start_upload(
        &self,
        key: &ObjectKey,
        _mode: PutMode,
        token: &PutToken,
    ) -> Result<UploadId> {
        let session = self.sessions.current();
        let request = session
            .client
            .create_multipart_upload()
            .bucket(self.bucket())
            .key(self.full(key.as_str()))
            .metadata(TOKEN_METADATA, token.as_str())
            .set_request_payer(self.payer())
            // AWS refuses parts with a checksum of a kind that the upload did not announce.
            .set_checksum_algorithm(session.checksums.then_some(ChecksumAlgorithm::Crc32));
        match as_the_settings_say!(request, self.settings).send().await {
            Ok(output) => {
                let incomplete = || self.unexpected(Operation::Put, key, Unexpected::MissingField);
                output.upload_id.map(UploadId).ok_or_else(incomplete)
            }
            Err(error) => Err(self.failed(&session, Operation::Put, key, error).await),
        }
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        at: PartAt,
        body: Bytes,
    ) -> Result<PartReceipt> {
        let size_bytes = body.len() as u64;
        let session = self.sessions.current();
        let request = session
            .client
            .upload_part()
            .bucket(self.bucket())
            .key(self.full(key.as_str()))
            .upload_id(&upload.0)
            .part_number(part_number(at.number))
            .set_request_payer(self.payer())
            .set_checksum_algorithm(session.checksums.then_some(ChecksumAlgorithm::Crc32))
            .body(ByteStream::from(body));
        let output = match signed_as!(request, session).send().await {
            Ok(output) => output,
            Err(error) => return Err(self.failed(&session, Operation::Put, key, error).await),
        };
        let incomplete = || self.unexpected(Operation::Put, key, Unexpected::MissingField);
        Ok(PartReceipt {
            number: at.number,
            tag: output.e_tag.ok_or_else(incomplete)?,
            checksum: output.checksum_crc32,
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
        let condition = self.condition(key, mode).await?;
        let parts = parts.iter().map(completed_part).collect();
        let session = self.sessions.current();
        let request = session
            .client
            .complete_multipart_upload()
            .bucket(self.bucket())
            .key(self.full(key.as_str()))
            .upload_id(&upload.0)
            .multipart_upload(
                CompletedMultipartUpload::builder()
                    .set_parts(Some(parts))
                    .build(),
            )
            .set_request_payer(self.payer())
            .set_if_none_match(condition);
        match request.send().await {
            Ok(output) => self.stored(key, output.e_tag.as_ref()),
            Err(error) => Err(self.failed(&session, Operation::Put, key, error).await),
        }
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        let session = self.sessions.current();
        let request = session
            .client
            .abort_multipart_upload()
            .bucket(self.bucket())
            .key(self.full(key.as_str()))
            .upload_id(&upload.0)
            .set_request_payer(self.payer());
        match request.send().await.map_err(Failure::from) {
            Err(failure) if failure.kind() != ErrorKind::NotFound => {
                Err(self.failed(&session, Operation::Put, key, failure).await)
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    async fn unfinished_uploads(
        &self,
        prefix: &str,
        page: Option<&PageToken>,
    ) -> Result<UploadsPage> {
        let session = self.sessions.current();
        let (key_marker, id_marker) = page.and_then(|page| page.as_str().split_once('\n')).unzip();
        let call = session
            .client
            .list_multipart_uploads()
            .bucket(self.bucket())
            .prefix(self.full(prefix))
            .set_key_marker(key_marker.map(str::to_owned))
            .set_upload_id_marker(id_marker.map(str::to_owned))
            .set_request_payer(self.payer());
        match call.send().await {
            Ok(output) => Ok(self.uploads_page(output)),
            Err(error) => {
                let failure = self.renewed_after(&session, error.into()).await;
                Err(failure.on(Operation::List, format!("{}/{prefix}", self.url)))
            }
        }
    }

    async fn get(&self, key: &ObjectKey, offset: u64, length: Option<u64>) -> Result<Download> {
        self.get_one(key, None, offset, length).await
    }

    async fn versioning(&self) -> Result<Versioning> {
        self.bucket_versioning().await
    }

    async fn retained(&self, key: &ObjectKey) -> Result<Retained> {
        Ok(Retained {
            versioning: self.bucket_versioning().await?,
            until: self.locked_until(key).await?,
        })
    }

    async fn versions(&self, request: &VersionsRequest) -> Result<VersionsPage> {
        self.list_versions(request).await
    }

    async fn get_version(
        &self,
        version: &ObjectVersion,
        offset: u64,
        length: Option<u64>,
    ) -> Result<Download> {
        self.get_one(&version.key, Some(&version.id), offset, length)
            .await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectInfo> {
        let session = self.sessions.current();
        let request = session
            .client
            .head_object()
            .bucket(self.bucket())
            .key(self.full(key.as_str()))
            .set_request_payer(self.payer());
        match request.send().await.map_err(Failure::from) {
            Ok(output) => self.object_info(
                key,
                (output.content_length, output.last_modified, output.metadata),
            ),
            Err(failure) if failure.is_refusal() => self.head_by_get(key).await,
            Err(failure) => Err(self.failed(&session, Operation::Head, key, failure).await),
        }
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let session = self.sessions.current();
        let call = session
            .client
            .list_objects_v2()
            .bucket(self.bucket())
            .prefix(self.full(&request.prefix))
            .set_start_after(request.start_after.as_deref().map(|key| self.full(key)))
            .set_max_keys(request.most_keys.map(i32::from))
            .set_delimiter(request.fold.then(|| "/".to_owned()))
            .set_continuation_token(request.page.as_ref().map(|page| page.as_str().to_owned()))
            .set_request_payer(self.payer());
        match call.send().await {
            Ok(output) => self.page(request, output),
            Err(error) => {
                let failure = self.renewed_after(&session, error.into()).await;
                Err(failure.on(Operation::List, format!("{}/{}", self.url, request.prefix)))
            }
        }
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, Error)>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let batch = self
            .batch(keys)
            .map_err(|failure| failure.on(Operation::Delete, self.url.clone()))?;
        let session = self.sessions.current();
        let request = session
            .client
            .delete_objects()
            .bucket(self.bucket())
            .set_request_payer(self.payer())
            .delete(batch);
        match request.send().await {
            Ok(output) => self.refused(output.errors.unwrap_or_default()),
            Err(error) => {
                let failure = self.renewed_after(&session, error.into()).await;
                Err(failure.on(Operation::Delete, self.url.clone()))
            }
        }
    }

    async fn prepare_creates(&self) -> Result<()> {
        self.must_keep_conditions().await
    }

    async fn shortcomings(&self) -> Result<Vec<String>> {
        self.probe_shortcomings().await
    }
}

/// The client's configuration holds credentials, so none of it shows.
impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Store")
            .field("url", &self.url)
            .field("part_size_bytes", &self.part_size_bytes)
            .finish_non_exhaustive()
    }
}

/// A part size outside of what S3 takes.
#[derive(Debug, thiserror::Error)]
#[error("a part of {part_size_bytes} bytes is not between 5 MiB and 5 GiB")]
struct BadPartSize {
    part_size_bytes: usize,
}

fn part_number(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn completed_part(part: &PartReceipt) -> CompletedPart {
    CompletedPart::builder()
        .part_number(part_number(part.number))
        .e_tag(&part.tag)
        .set_checksum_crc32(part.checksum.clone())
        .build()
}

fn listed(key: ObjectKey, object: &Object) -> Option<ObjectInfo> {
    Some(ObjectInfo {
        key,
        size_bytes: u64::try_from(object.size()?).ok()?,
        modified: timestamp(object.last_modified()?)?,
        token: None,
    })
}

fn timestamp(time: &DateTime) -> Option<Timestamp> {
    Timestamp::new(time.secs(), i32::try_from(time.subsec_nanos()).ok()?).ok()
}

fn chunks(body: ByteStream, object: String) -> impl stream::Stream<Item = Result<Bytes>> + Send {
    stream::try_unfold(body, move |mut body| {
        let object = object.clone();
        async move {
            match body.next().await {
                None => Ok(None),
                Some(Ok(chunk)) => Ok(Some((chunk, body))),
                Some(Err(error)) => Err(Failure::of_body(error).on(Operation::Get, object)),
            }
        }
    })
}
