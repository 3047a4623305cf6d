//! The S3 store: `s3://bucket/prefix`, on AWS and on servers that speak its protocol.
//!
//! Creates carry `If-None-Match: *`, on single puts and on completions. Every body carries a CRC-32
//! that the server checks, and a whole object read back is checked against the stored one.
//!
//! "Not there" is taken from an answer that names the key (`NoSuchKey`), which S3 gives to a GET
//! only: a HEAD's 404 has no body, and could as well mean the bucket, or a proxy on the way. A HEAD
//! that is refused is therefore followed by a GET.
//!
//! Some servers answer 200 to a second conditional create and overwrite in silence. A probe for
//! them belongs into [`S3Store::connect`], which every store opened by its URL passes through.

mod failure;

use aws_config::BehaviorVersion;
use aws_config::SdkConfig;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Region, RequestChecksumCalculation};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{
    ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart, Delete, Object, ObjectIdentifier,
};
use aws_types::service_config::ServiceConfigKey;

use std::collections::HashMap;
use std::fmt;

use async_trait::async_trait;

use bytes::Bytes;
use futures_util::stream;
use jiff::Timestamp;

use crate::endpoint::CONNECT_TIMEOUT;
use crate::location::Location;
use crate::transfer::StoreSettings;
use crate::{
    Download, Error, ErrorKind, Limits, ListPage, ListRequest, ObjectInfo, ObjectKey, ObjectStore,
    Operation, PartReceipt, PutMode, PutToken, Result, Right, UploadId,
};
use failure::{Failure, Unexpected};

const DEFAULT_PART_SIZE_BYTES: usize = 8 << 20;
const SMALLEST_PART_BYTES: usize = 5 << 20;
const LARGEST_PART_BYTES: usize = 5 << 30;
const MAX_PARTS: u32 = 10_000;
const MAX_OBJECT_BYTES: u64 = MAX_PARTS as u64 * LARGEST_PART_BYTES as u64;

/// The region that servers other than AWS expect in signatures when none is set.
const FALLBACK_REGION: &str = "us-east-1";

/// `x-amz-meta-walhalla-token` in the protocol.
const TOKEN_METADATA: &str = "walhalla-token";

/// Objects in a bucket, below a prefix.
#[derive(Clone)]
pub struct S3Store {
    client: Client,
    location: Location,
    url: String,
    part_size_bytes: usize,
    /// Whether parts carry checksums; off where the AWS settings say `when_required`.
    checksums: bool,
}

impl S3Store {
    /// The store at `location`, with the AWS settings and credentials of the environment, the
    /// profile files, a container, an instance or whatever else the AWS chain finds.
    ///
    /// No request goes to the store yet; credentials are fetched with the first.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when no region is set, or a part size that S3 does not take.
    pub async fn connect(location: Location, settings: &StoreSettings) -> Result<Self> {
        let shared = load_settings().await;
        let has_endpoint = endpoint(&shared).is_some();
        let mut config = aws_sdk_s3::config::Builder::from(&shared)
            .force_path_style(settings.s3.force_path_style.unwrap_or(has_endpoint))
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_TIMEOUT)
                    .build(),
            );
        if shared.region().is_none() {
            if !has_endpoint {
                return Err(
                    Error::new(Operation::Open, location.url(), ErrorKind::Invalid)
                        .with_source(NoRegion),
                );
            }
            config = config.region(Region::new(FALLBACK_REGION));
        }
        let client = Client::from_conf(config.build());
        let mut store = Self::with_client(client, location, settings)?;
        store.checksums =
            shared.request_checksum_calculation() != Some(RequestChecksumCalculation::WhenRequired);
        Ok(store)
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
        let url = location.url();
        let part_size_bytes = settings
            .s3
            .part_size_bytes
            .unwrap_or(DEFAULT_PART_SIZE_BYTES);
        if !(SMALLEST_PART_BYTES..=LARGEST_PART_BYTES).contains(&part_size_bytes) {
            let error = Error::new(Operation::Open, url, ErrorKind::Invalid);
            return Err(error.with_source(BadPartSize { part_size_bytes }));
        }
        Ok(Self {
            client,
            location,
            url,
            part_size_bytes,
            checksums: true,
        })
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

    fn failed(&self, operation: Operation, key: &ObjectKey, failure: impl Into<Failure>) -> Error {
        failure.into().on(operation, self.object_url(key))
    }

    fn unexpected(&self, operation: Operation, key: &ObjectKey, answer: Unexpected) -> Error {
        Error::new(operation, self.object_url(key), ErrorKind::Other).with_source(answer)
    }

    async fn get_range(
        &self,
        key: &ObjectKey,
        range: Option<String>,
    ) -> std::result::Result<GetObjectOutput, Failure> {
        let request = self
            .client
            .get_object()
            .bucket(self.bucket())
            .key(self.full(key.as_str()));
        request.set_range(range).send().await.map_err(Failure::from)
    }

    /// Asks by GET after a HEAD was refused, and so gets an answer with a reason.
    async fn head_by_get(&self, key: &ObjectKey) -> Result<ObjectInfo> {
        let output = self
            .get_range(key, None)
            .await
            .map_err(|failure| self.failed(Operation::Head, key, failure))?;
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
            (Some(range), _) => size_in_range(range),
            (None, length) if offset == 0 => length,
            (None, _) => {
                return Err(self.unexpected(Operation::Get, key, Unexpected::IgnoredRange));
            }
        };
        let incomplete = || self.unexpected(Operation::Get, key, Unexpected::MissingField);
        Ok(Download {
            object_size_bytes: size.ok_or_else(incomplete)?,
            version: output.version_id.or(output.e_tag),
            body: Box::pin(chunks(output.body, self.object_url(key))),
        })
    }

    fn page(&self, request: &ListRequest, output: ListObjectsV2Output) -> Result<ListPage> {
        let truncated = output.is_truncated() == Some(true);
        if truncated && output.next_continuation_token.is_none() {
            let error = Error::new(
                Operation::List,
                format!("{}/{}", self.url, request.prefix),
                ErrorKind::Other,
            );
            return Err(error.with_source(Unexpected::MissingField));
        }
        let objects = output.contents.unwrap_or_default();
        let folders = output.common_prefixes.unwrap_or_default();
        Ok(ListPage {
            objects: objects
                .iter()
                .filter_map(|object| self.listed(object))
                .collect(),
            folders: folders
                .into_iter()
                .filter_map(|folder| Some(self.location.below(&folder.prefix?)?.to_owned()))
                .collect(),
            next: output.next_continuation_token.filter(|_| truncated),
        })
    }

    /// An object of a listing; none where its key is no [`ObjectKey`], and so not of this store.
    fn listed(&self, object: &Object) -> Option<ObjectInfo> {
        Some(ObjectInfo {
            key: self.location.key(object.key()?)?,
            size_bytes: u64::try_from(object.size()?).ok()?,
            modified: timestamp(object.last_modified()?)?,
            token: None,
        })
    }

    /// The keys of a batch that the server refused, as [`ObjectStore::delete`] gives them.
    fn refused(&self, errors: Vec<aws_sdk_s3::types::Error>) -> Vec<(ObjectKey, Error)> {
        let refused = errors.into_iter().filter_map(|error| {
            let key = self.location.key(error.key()?)?;
            let failure = Failure::of_code(error.code(), error.message());
            (failure.kind() != ErrorKind::NotFound).then(|| {
                let error = self.failed(Operation::Delete, &key, failure);
                (key, error)
            })
        });
        refused.collect()
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    fn url(&self) -> &str {
        &self.url
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
        }
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        mode: PutMode,
        token: &PutToken,
    ) -> Result<()> {
        let request = self
            .client
            .put_object()
            .bucket(self.bucket())
            .key(self.full(key.as_str()))
            .metadata(TOKEN_METADATA, token.as_str())
            .set_if_none_match(condition(mode))
            .body(ByteStream::from(body));
        request
            .send()
            .await
            .map_err(|error| self.failed(Operation::Put, key, error))?;
        Ok(())
    }

    async fn start_upload(
        &self,
        key: &ObjectKey,
        _mode: PutMode,
        token: &PutToken,
    ) -> Result<UploadId> {
        // AWS refuses parts with a checksum of a kind that the upload did not announce.
        let algorithm = self.checksums.then_some(ChecksumAlgorithm::Crc32);
        let request = self
            .client
            .create_multipart_upload()
            .bucket(self.bucket())
            .key(self.full(key.as_str()))
            .metadata(TOKEN_METADATA, token.as_str())
            .set_checksum_algorithm(algorithm);
        let output = request
            .send()
            .await
            .map_err(|error| self.failed(Operation::Put, key, error))?;
        let incomplete = || self.unexpected(Operation::Put, key, Unexpected::MissingField);
        output.upload_id.map(UploadId).ok_or_else(incomplete)
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartReceipt> {
        let size_bytes = body.len() as u64;
        let request = self
            .client
            .upload_part()
            .bucket(self.bucket())
            .key(self.full(key.as_str()))
            .upload_id(&upload.0)
            .part_number(part_number(number))
            .set_checksum_algorithm(self.checksums.then_some(ChecksumAlgorithm::Crc32))
            .body(ByteStream::from(body));
        let output = request
            .send()
            .await
            .map_err(|error| self.failed(Operation::Put, key, error))?;
        let incomplete = || self.unexpected(Operation::Put, key, Unexpected::MissingField);
        Ok(PartReceipt {
            number,
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
        let parts = parts.iter().map(completed_part).collect();
        let request = self
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
            .set_if_none_match(condition(mode));
        request
            .send()
            .await
            .map_err(|error| self.failed(Operation::Put, key, error))?;
        Ok(())
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        let request = self
            .client
            .abort_multipart_upload()
            .bucket(self.bucket())
            .key(self.full(key.as_str()))
            .upload_id(&upload.0);
        match request.send().await.map_err(Failure::from) {
            Err(failure) if failure.kind() != ErrorKind::NotFound => {
                Err(self.failed(Operation::Put, key, failure))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    async fn get(&self, key: &ObjectKey, offset: u64, length: Option<u64>) -> Result<Download> {
        let mut answer = self.get_range(key, range(offset, length)).await;
        // No range lies in an empty object, not even the first byte.
        if offset == 0 && answer.as_ref().is_err_and(Failure::is_invalid_range) {
            answer = self.get_range(key, None).await;
        }
        let output = answer.map_err(|failure| self.failed(Operation::Get, key, failure))?;
        self.download(key, offset, output)
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectInfo> {
        let request = self
            .client
            .head_object()
            .bucket(self.bucket())
            .key(self.full(key.as_str()));
        match request.send().await.map_err(Failure::from) {
            Ok(output) => self.object_info(
                key,
                (output.content_length, output.last_modified, output.metadata),
            ),
            Err(failure) if failure.is_refusal() => self.head_by_get(key).await,
            Err(failure) => Err(self.failed(Operation::Head, key, failure)),
        }
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let call = self
            .client
            .list_objects_v2()
            .bucket(self.bucket())
            .prefix(self.full(&request.prefix))
            .set_start_after(request.start_after.as_deref().map(|key| self.full(key)))
            .set_delimiter(request.fold.then(|| "/".to_owned()))
            .set_continuation_token(request.page.clone());
        let output = call.send().await.map_err(|error| {
            Failure::from(error).on(Operation::List, format!("{}/{}", self.url, request.prefix))
        })?;
        self.page(request, output)
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, Error)>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let failed = |failure: Failure| failure.on(Operation::Delete, self.url.clone());
        let mut batch = Delete::builder().quiet(true);
        for key in keys {
            let object = ObjectIdentifier::builder()
                .key(self.full(key.as_str()))
                .build();
            batch = batch.objects(object.map_err(|error| failed(Failure::construction(error)))?);
        }
        let batch = batch
            .build()
            .map_err(|error| failed(Failure::construction(error)))?;
        let request = self
            .client
            .delete_objects()
            .bucket(self.bucket())
            .delete(batch);
        let output = request
            .send()
            .await
            .map_err(|error| failed(Failure::from(error)))?;
        Ok(self.refused(output.errors.unwrap_or_default()))
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

/// Nothing says in which region the bucket lies.
#[derive(Debug, thiserror::Error)]
#[error("no region is set; hint: set AWS_REGION, or `region` in the AWS profile")]
struct NoRegion;

/// A part size outside of what S3 takes.
#[derive(Debug, thiserror::Error)]
#[error("a part of {part_size_bytes} bytes is not between 5 MiB and 5 GiB")]
struct BadPartSize {
    part_size_bytes: usize,
}

async fn load_settings() -> SdkConfig {
    let loader = aws_config::defaults(BehaviorVersion::latest());
    let variables = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
    if variables
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
    {
        // Beside an endpoint of its own nobody runs the instance service that the chain would ask
        // for a region, and wait for, last.
        let region = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
            .or_else(ProfileFileRegionProvider::new())
            .or_else(FALLBACK_REGION);
        return loader.region(region).load().await;
    }
    loader.load().await
}

/// The endpoint set in the environment or the profile, for S3 or for all services.
fn endpoint(shared: &SdkConfig) -> Option<String> {
    let key = ServiceConfigKey::builder()
        .service_id("S3")
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build();
    let for_s3 = shared
        .service_config()
        .zip(key.ok())
        .and_then(|(config, key)| config.load_config(key));
    for_s3.or_else(|| shared.endpoint_url().map(str::to_owned))
}

fn condition(mode: PutMode) -> Option<String> {
    match mode {
        PutMode::Create => Some("*".to_owned()),
        PutMode::Overwrite => None,
    }
}

/// The header of a range; open where it reaches past what any object has, as servers read no larger numbers.
fn range(offset: u64, length: Option<u64>) -> Option<String> {
    let last = length.map(|length| offset.saturating_add(length.saturating_sub(1)));
    match last.filter(|last| *last < MAX_OBJECT_BYTES) {
        None if offset == 0 => None,
        None => Some(format!("bytes={offset}-")),
        Some(last) => Some(format!("bytes={offset}-{last}")),
    }
}

/// The whole object's size in a `Content-Range: bytes 0-9/1234`.
fn size_in_range(content_range: &str) -> Option<u64> {
    content_range.rsplit_once('/')?.1.parse().ok()
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
