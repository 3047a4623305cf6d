//! The GCS store: `gs://bucket/prefix`, by the JSON API of Google Cloud Storage.
//!
//! ```text
//! put ───────────────▶ one multipart request ─┐  ifGenerationMatch=0 on creates,
//! start, parts, end ─▶ a resumable session ───┴─ CRC-32C checked by the server and in its answer
//! ```
//!
//! Credentials are Google's own library's; requests are made here, one for each call, so that the only retries are
//! those of [`transfer`](crate::transfer) (`docs/decisions/0010-gcs-by-its-json-api.md`).
//!
//! "Not there" is taken from an answer that names the object, as GCS gives it, or from a listing of the bucket that
//! does not have it. Any other 404 could as well mean the bucket, or a proxy on the way.
//!
//! Nothing is compressed on the way: objects are stored without a content encoding, and the client offers none, so
//! that the bytes, ranges and checksums are those of the object.

mod client;
mod credentials;
mod failure;
mod resource;
mod session;

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use google_cloud_auth::credentials::{Credentials, anonymous};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, RANGE};
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode};

use crate::endpoint::{endpoint, http_client};
use crate::http::{byte_range, content_range, delete_each, is_settled};
use crate::location::Location;
use crate::transfer::{GcsSettings, StoreSettings};
use crate::{
    Download, Error, ErrorKind, Limits, ListPage, ListRequest, ObjectInfo, ObjectKey, ObjectStore,
    Operation, PartReceipt, PutMode, PutToken, Result, Right, UploadId,
};
use client::{Client, escape, json};
use credentials::Access;
use failure::{Failure, Unexpected, WrongChecksum};
use resource::{
    LISTING_FIELDS, Listing, NewResource, RESOURCE_FIELDS, Resource, TOKEN_METADATA, checksum,
    stored_checksum,
};
use session::{PART_SIZE_BYTES, Sessions};

const GOOGLE: &str = "https://storage.googleapis.com";

/// Names another server, as for Google's own libraries; no credentials are looked for then.
const EMULATOR_VARIABLE: &str = "STORAGE_EMULATOR_HOST";

/// As many as there are in the longest object that GCS takes.
const MAX_PARTS: u32 = 327_680;
const _: () = assert!(MAX_PARTS as u64 * PART_SIZE_BYTES as u64 == 5 << 40);

/// Most keys of a page, which is also the most that GCS gives.
const PAGE_KEYS: &str = "1000";

const CONTENT: &str = "application/octet-stream";

/// Objects in a bucket, below a prefix.
pub struct GcsStore {
    client: Client,
    location: Location,
    url: String,
    settings: GcsSettings,
    sessions: Sessions,
}

impl GcsStore {
    /// The store at `location`, with application default credentials: the file that `GOOGLE_APPLICATION_CREDENTIALS`
    /// names, gcloud's, or the metadata server. With `STORAGE_EMULATOR_HOST`, that server, without credentials.
    ///
    /// No request is made yet; credentials are looked for with the first.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a `STORAGE_EMULATOR_HOST` without `http://` or `https://`, or a file of certificates
    /// that is none.
    pub async fn connect(location: Location, settings: &StoreSettings) -> Result<Self> {
        let emulator = std::env::var(EMULATOR_VARIABLE).ok();
        let (endpoint, access) = match emulator.filter(|url| !url.is_empty()) {
            Some(url) => (
                endpoint(EMULATOR_VARIABLE, &url)?.to_owned(),
                Access::given(anonymous::Builder::new().build()),
            ),
            None => (GOOGLE.to_owned(), Access::of_environment()),
        };
        // Reads the system's certificates.
        let ca_file = settings.ca_file.clone();
        let built = tokio::task::spawn_blocking(move || http_client(ca_file.as_deref())).await;
        let http = built.unwrap_or_else(|join| {
            let error = Error::new(Operation::Open, location.url(), ErrorKind::Other);
            Err(error.with_source(join))
        })?;
        let client = Client::new(http, endpoint, access);
        Ok(Self::new(client, location, settings))
    }

    /// The store at `location` on the server at `url`, with credentials of the caller's, or else application default ones.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a URL without `http://` or `https://`, or a file of certificates that is none.
    pub fn with_endpoint(
        location: Location,
        settings: &StoreSettings,
        url: &str,
        credentials: Option<Credentials>,
    ) -> Result<Self> {
        let url = endpoint("the endpoint", url)?.to_owned();
        let http = http_client(settings.ca_file.as_deref())?;
        let access = credentials.map_or_else(Access::of_environment, Access::given);
        let client = Client::new(http, url, access);
        Ok(Self::new(client, location, settings))
    }

    fn new(client: Client, location: Location, settings: &StoreSettings) -> Self {
        Self {
            client,
            url: location.url(),
            location,
            settings: settings.gcs.clone(),
            sessions: Sessions::default(),
        }
    }

    fn object_url(&self, key: &ObjectKey) -> String {
        format!("{}/{key}", self.url)
    }

    fn failed(&self, operation: Operation, key: &ObjectKey, failure: Failure) -> Error {
        failure.on(operation, self.object_url(key))
    }

    fn bucket_path(&self) -> String {
        format!("/storage/v1/b/{}/o", escape(self.location.bucket()))
    }

    fn object_path(&self, key: &ObjectKey) -> String {
        let name = self.location.full(key.as_str());
        format!("{}/{}", self.bucket_path(), escape(&name))
    }

    /// A request that makes an object, in the way that `upload_type` names.
    ///
    /// The name is in the resource that follows, too; here it shows in the logs of servers and proxies.
    fn insert(&self, upload_type: &'static str, key: &ObjectKey, mode: PutMode) -> RequestBuilder {
        let path = format!("/upload{}", self.bucket_path());
        let name = self.location.full(key.as_str());
        let mut query = vec![("uploadType", upload_type), ("name", &name)];
        if mode == PutMode::Create {
            query.push(("ifGenerationMatch", "0"));
        }
        if let Some(key) = &self.settings.kms_key {
            query.push(("kmsKeyName", key));
        }
        self.client.request(Method::POST, &path).query(&query)
    }

    /// What an object is to be, as JSON.
    fn new_resource(&self, key: &ObjectKey, token: &PutToken, crc32c: Option<u32>) -> String {
        let resource = NewResource {
            name: &self.location.full(key.as_str()),
            content_type: CONTENT,
            metadata: HashMap::from([(TOKEN_METADATA, token.as_str())]),
            storage_class: self.settings.storage_class.as_deref(),
            crc32c: crc32c.map(checksum),
        };
        serde_json::to_string(&resource).expect("text is always JSON")
    }

    async fn put_whole(
        &self,
        key: &ObjectKey,
        body: Bytes,
        mode: PutMode,
        token: &PutToken,
    ) -> std::result::Result<(), Failure> {
        let (crc32c, size_bytes) = (crc32c::crc32c(&body), body.len() as u64);
        let resource = self.new_resource(key, token, Some(crc32c));
        let request = multipart(self.insert("multipart", key, mode), &resource, body);
        let response = self
            .client
            .send(request)
            .await
            .map_err(Failure::on_bucket)?;
        json::<Resource>(response).await?.check(crc32c, size_bytes)
    }

    async fn begin_session(
        &self,
        key: &ObjectKey,
        mode: PutMode,
        token: &PutToken,
    ) -> std::result::Result<UploadId, Failure> {
        let request = self
            .insert("resumable", key, mode)
            .header(CONTENT_TYPE, "application/json; charset=UTF-8")
            .header("x-upload-content-type", CONTENT)
            .body(self.new_resource(key, token, None));
        let response = self
            .client
            .send(request)
            .await
            .map_err(Failure::on_bucket)?;
        let address = self.client.session_address(&response)?;
        Ok(self.sessions.begin(address, mode))
    }

    async fn end_session(&self, upload: &UploadId) -> std::result::Result<(), Failure> {
        let request = self
            .client
            .session_request(Method::DELETE, &upload.0)
            .header(CONTENT_LENGTH, 0);
        let response = self.client.exchange(request).await?;
        match response.status().as_u16() {
            // 499 is how GCS says that the client gave the upload up.
            200..300 | 404 | 410 | 499 => Ok(()),
            _ => Err(Failure::of_answer(response).await),
        }
    }

    async fn get_range(
        &self,
        key: &ObjectKey,
        range: Option<String>,
    ) -> std::result::Result<Response, Failure> {
        let mut request = self
            .client
            .request(Method::GET, &self.object_path(key))
            .query(&[("alt", "media")]);
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        self.client.send(request).await
    }

    async fn resource(&self, key: &ObjectKey) -> std::result::Result<Resource, Failure> {
        let request = self
            .client
            .request(Method::GET, &self.object_path(key))
            .query(&[("fields", RESOURCE_FIELDS)]);
        json(self.client.send(request).await?).await
    }

    async fn page(&self, query: &[(&str, &str)]) -> std::result::Result<Listing, Failure> {
        let request = self
            .client
            .request(Method::GET, &self.bucket_path())
            .query(query)
            .query(&[("fields", LISTING_FIELDS)]);
        let response = self
            .client
            .send(request)
            .await
            .map_err(Failure::on_bucket)?;
        json::<Listing>(response).await?.checked()
    }

    /// The error of a request on an object, which is "not found" only when that is proven.
    async fn refused(&self, operation: Operation, key: &ObjectKey, failure: Failure) -> Error {
        let name = self.location.full(key.as_str());
        if failure.denies(self.location.bucket(), &name) {
            return self.failed(operation, key, failure.with_kind(ErrorKind::NotFound));
        }
        if failure.status() != Some(404) || failure.kind() == ErrorKind::StoreMissing {
            return self.failed(operation, key, failure);
        }
        let query = [("prefix", name.as_str()), ("maxResults", "1")];
        let failure = match self.page(&query).await {
            Ok(page) if page.denies(&name) => failure.with_kind(ErrorKind::NotFound),
            // It is there now, or the page does not say.
            Ok(_) => failure.with_kind(ErrorKind::Conflict),
            Err(of_listing) => of_listing,
        };
        self.failed(operation, key, failure)
    }

    /// Takes the key whole: with a borrowed one the future would not fit into a stream of them.
    async fn delete_one(&self, key: ObjectKey) -> (ObjectKey, Result<()>) {
        let request = self.client.request(Method::DELETE, &self.object_path(&key));
        let answer = self.client.send(request).await;
        let deleted = match answer.and_then(|answer| deleted(answer.status())) {
            Ok(()) => Ok(()),
            Err(failure) => Err(self.refused(Operation::Delete, &key, failure).await),
        };
        (key, deleted)
    }

    fn download(
        &self,
        key: &ObjectKey,
        offset: u64,
        response: Response,
    ) -> std::result::Result<Download, Failure> {
        let incomplete = || unexpected(Unexpected::MissingField);
        let headers = response.headers();
        check_encoding(headers)?;
        let length = text(headers, CONTENT_LENGTH.as_str()).and_then(|length| length.parse().ok());
        let size: u64 = match text(headers, CONTENT_RANGE.as_str()) {
            Some(range) => {
                content_range(range, offset).ok_or_else(|| unexpected(Unexpected::IgnoredRange))?
            }
            None if offset == 0 => length.ok_or_else(incomplete)?,
            None => return Err(unexpected(Unexpected::IgnoredRange)),
        };
        let version = text(headers, "x-goog-generation").ok_or_else(incomplete)?;
        // The checksum is that of the whole object, so it says nothing of a part. An answer to a range may lack
        // it even where the range is the whole object, as when a body is asked for again from its first byte.
        let crc32c = match (response.status().as_u16(), stored_checksum(headers)) {
            (200, None) => return Err(incomplete()),
            (_, crc32c) => crc32c.filter(|_| length == Some(size)),
        };
        Ok(Download {
            object_size_bytes: size,
            version: Some(version.to_owned()),
            body: Box::pin(chunks(response, crc32c, self.object_url(key))),
        })
    }

    fn list_page(
        &self,
        request: &ListRequest,
        listing: Listing,
    ) -> std::result::Result<ListPage, Failure> {
        let mut page = ListPage {
            next: listing.next_page_token,
            ..ListPage::default()
        };
        for item in listing.items {
            let incomplete = || unexpected(Unexpected::MissingField);
            let name = item.name.as_ref().ok_or_else(incomplete)?;
            // A name that is no key is not of this store.
            let Some(key) = self.location.key(name) else {
                continue;
            };
            // GCS lists from a name on, the name itself included.
            if request.start_after.as_deref() != Some(key.as_str()) {
                page.objects.push(item.info(key)?);
            }
        }
        let folders = listing.prefixes.iter();
        page.folders = folders
            .filter_map(|folder| Some(self.location.below(folder)?.to_owned()))
            .collect();
        Ok(page)
    }
}

#[async_trait]
impl ObjectStore for GcsStore {
    fn url(&self) -> &str {
        &self.url
    }

    fn right(&self, right: Right) -> &'static str {
        match right {
            // Whoever may begin an upload may drop it.
            Right::Create | Right::AbortUpload => "storage.objects.create",
            Right::Read => "storage.objects.get",
            Right::List => "storage.objects.list",
            Right::Delete => "storage.objects.delete",
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            part_size_bytes: PART_SIZE_BYTES,
            max_parts: MAX_PARTS,
            parallel_parts: false,
            times_out: true,
            lists_prefixes: true,
        }
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        mode: PutMode,
        token: &PutToken,
    ) -> Result<()> {
        let stored = self.put_whole(key, body, mode, token).await;
        stored.map_err(|failure| self.failed(Operation::Put, key, failure))
    }

    async fn start_upload(
        &self,
        key: &ObjectKey,
        mode: PutMode,
        token: &PutToken,
    ) -> Result<UploadId> {
        let begun = self.begin_session(key, mode, token).await;
        begun.map_err(|failure| self.failed(Operation::Put, key, failure))
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartReceipt> {
        let put = async {
            let session = self.sessions.find(upload)?;
            let mut session = session.lock().await;
            session.put_part(&self.client, number, body).await
        };
        put.await
            .map_err(|failure| self.failed(Operation::Put, key, failure))
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        mode: PutMode,
    ) -> Result<()> {
        let complete = async {
            let session = self.sessions.find(upload)?;
            let mut session = session.lock().await;
            let completed = session.complete(&self.client, parts, mode).await;
            if completed
                .as_ref()
                .err()
                .is_none_or(|failure| is_settled(failure.kind()))
            {
                self.sessions.end(upload);
            }
            completed
        };
        complete
            .await
            .map_err(|failure| self.failed(Operation::Put, key, failure))
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        self.sessions.end(upload);
        let ended = self.end_session(upload).await;
        ended.map_err(|failure| self.failed(Operation::Put, key, failure))
    }

    async fn get(&self, key: &ObjectKey, offset: u64, length: Option<u64>) -> Result<Download> {
        let mut answer = self.get_range(key, byte_range(offset, length)).await;
        // No range lies in an empty object, not even the first byte.
        let is_outside = |failure: &Failure| failure.status() == Some(416);
        if offset == 0 && answer.as_ref().is_err_and(is_outside) {
            answer = self.get_range(key, None).await;
        }
        match answer {
            Ok(response) => self
                .download(key, offset, response)
                .map_err(|failure| self.failed(Operation::Get, key, failure)),
            Err(failure) => Err(self.refused(Operation::Get, key, failure).await),
        }
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectInfo> {
        match self.resource(key).await {
            Ok(resource) => resource
                .info(key.clone())
                .map_err(|failure| self.failed(Operation::Head, key, failure)),
            Err(failure) => Err(self.refused(Operation::Head, key, failure).await),
        }
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let prefix = self.location.full(&request.prefix);
        let start = request
            .start_after
            .as_ref()
            .map(|key| self.location.full(key));
        let mut query = vec![("prefix", prefix.as_str()), ("maxResults", PAGE_KEYS)];
        query.extend(start.as_deref().map(|start| ("startOffset", start)));
        query.extend(request.fold.then_some(("delimiter", "/")));
        query.extend(request.page.as_deref().map(|page| ("pageToken", page)));
        let listing = self.page(&query).await;
        listing
            .and_then(|listing| self.list_page(request, listing))
            .map_err(|failure| {
                failure.on(Operation::List, format!("{}/{}", self.url, request.prefix))
            })
    }

    /// One request a key, as batches are not for objects of some size and number, and no emulator takes them.
    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, Error)>> {
        delete_each(keys, |key| self.delete_one(key)).await
    }
}

/// The credentials do not show.
impl fmt::Debug for GcsStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GcsStore")
            .field("url", &self.url)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// GCS answers a delete with nothing but this status: any other success is a page of somebody else's.
fn deleted(status: StatusCode) -> std::result::Result<(), Failure> {
    if status == StatusCode::NO_CONTENT {
        Ok(())
    } else {
        Err(Failure::new(ErrorKind::Unavailable, Unexpected::NotDeleted))
    }
}

/// A body of two parts: what the object is to be, and its bytes, which are not copied.
fn multipart(request: RequestBuilder, resource: &str, body: Bytes) -> RequestBuilder {
    // Random, so that no object can hold it.
    let boundary = format!("walhalla-{:032x}", fastrand::u128(..));
    let head = Bytes::from(format!(
        "--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{resource}\r\n\
         --{boundary}\r\nContent-Type: {CONTENT}\r\n\r\n"
    ));
    let end = Bytes::from(format!("\r\n--{boundary}--\r\n"));
    let length = head.len() + body.len() + end.len();
    let chunks = [head, body, end].map(Ok::<_, Infallible>);
    request
        .header(
            CONTENT_TYPE,
            format!("multipart/related; boundary={boundary}"),
        )
        .header(CONTENT_LENGTH, length)
        .body(Body::wrap_stream(stream::iter(chunks)))
}

/// Refuses an object that somebody stored with a content encoding: GCS gives it unpacked, and whole.
fn check_encoding(headers: &HeaderMap) -> std::result::Result<(), Failure> {
    match text(headers, "x-goog-stored-content-encoding") {
        None | Some("identity") => Ok(()),
        Some(encoding) => Err(unexpected(Unexpected::Encoded {
            encoding: crate::refusal::text(Some(encoding)),
        })),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn unexpected(answer: Unexpected) -> Failure {
    Failure::new(ErrorKind::Other, answer)
}

/// The body's bytes; at its end they are compared with the checksum.
fn chunks(
    response: Response,
    expected: Option<u32>,
    object: String,
) -> impl stream::Stream<Item = Result<Bytes>> + Send {
    stream::try_unfold((response, 0), move |(mut response, crc32c)| {
        let object = object.clone();
        async move {
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    let crc32c = crc32c::crc32c_append(crc32c, &chunk);
                    Ok(Some((chunk, (response, crc32c))))
                }
                Ok(None) => check_end(expected, crc32c)
                    .map(|()| None)
                    .map_err(|failure| failure.on(Operation::Get, object)),
                Err(error) => Err(Failure::from(error).on(Operation::Get, object)),
            }
        }
    })
}

fn check_end(expected: Option<u32>, crc32c: u32) -> std::result::Result<(), Failure> {
    match expected.filter(|expected| *expected != crc32c) {
        None => Ok(()),
        Some(expected) => {
            let wrong = WrongChecksum {
                ours: checksum(crc32c),
                theirs: checksum(expected),
            };
            Err(Failure::new(ErrorKind::Corrupted, wrong))
        }
    }
}
