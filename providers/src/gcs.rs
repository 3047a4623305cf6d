//! The GCS store: `gs://bucket/prefix`.
//!
//! ```text
//! put, get ─────────▶ bodies:  Google's crate, one request a call ─┐
//! start, parts, end ▶ uploads: a resumable session, by JSON ───────┼─ ifGenerationMatch=0 on creates,
//! head, list, delete ▶ json:   the JSON API ───────────────────────┘  CRC-32C compared by both sides
//! ```
//!
//! Credentials are Google's own library's in all three. Nothing but [`transfer`](crate::transfer) retries
//! (`docs/decisions/0049-gcs-through-googles-crate.md`).
//!
//! "Not there" is taken from an answer that names the object, as GCS gives it, or from a listing of the bucket that
//! does not have it. Any other 404 could as well mean the bucket, or a proxy on the way.
//!
//! Nothing is compressed on the way: objects are stored without a content encoding, so that the bytes, ranges and
//! checksums are those of the object.

mod bodies;
mod credentials;
mod failure;
mod json;
mod uploads;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, stream};
use google_cloud_auth::credentials::{Credentials, anonymous};
use google_cloud_storage::model_ext::{ObjectHighlights, ReadRange};
use google_cloud_storage::read_object::ReadObjectResponse;

use crate::endpoint::{endpoint, http_client, place};
use crate::http::{delete_each, is_settled, last_byte};
use crate::location::Location;
use crate::transfer::{GcsSettings, StoreSettings};
use crate::{
    Download, Error, ErrorKind, Limits, ListPage, ListRequest, ListingCost, ObjectInfo, ObjectKey,
    ObjectStore, ObjectVersion, Operation, PageToken, PartAt, PartReceipt, PutMode, PutToken,
    Result, Retained, Right, UploadId, Versioning, VersionsPage, VersionsRequest,
};
use bodies::Bodies;
use credentials::Access;
use failure::{Failure, Unexpected};
use json::{Json, Listing, NewObject, TOKEN_METADATA};
use uploads::{PART_SIZE_BYTES, Uploads};

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
    bodies: Bodies,
    json: Json,
    uploads: Uploads,
    location: Location,
    url: String,
    place: Arc<str>,
    settings: GcsSettings,
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
        Ok(Self::new(http, &endpoint, access, location, settings))
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
        Ok(Self::new(http, &url, access, location, settings))
    }

    fn new(
        http: reqwest::Client,
        endpoint: &str,
        access: Access,
        location: Location,
        settings: &StoreSettings,
    ) -> Self {
        let (bucket, access) = (location.bucket(), Arc::new(access));
        Self {
            bodies: Bodies::new(endpoint.to_owned(), bucket, Arc::clone(&access)),
            json: Json::new(http, endpoint.to_owned(), bucket, access),
            uploads: Uploads::default(),
            url: location.url(),
            place: place(endpoint),
            location,
            settings: settings.gcs.clone(),
        }
    }

    fn object_url(&self, key: &ObjectKey) -> String {
        format!("{}/{key}", self.url)
    }

    fn failed(&self, operation: Operation, key: &ObjectKey, failure: Failure) -> Error {
        failure.on(operation, self.object_url(key))
    }

    fn name(&self, key: &ObjectKey) -> String {
        self.location.full(key.as_str())
    }

    /// What an object of this name is to be.
    fn new_object<'a>(&'a self, name: &'a str, token: &'a PutToken) -> NewObject<'a> {
        NewObject {
            name,
            content_type: CONTENT,
            metadata: HashMap::from([(TOKEN_METADATA, token.as_str())]),
            storage_class: self.settings.storage_class.as_deref(),
            kms_key: self.settings.kms_key.as_deref(),
        }
    }

    /// The error of a request on an object, which is "not found" only when that is proven.
    async fn refused(&self, operation: Operation, key: &ObjectKey, failure: Failure) -> Error {
        let name = self.name(key);
        if failure.denies(self.location.bucket(), &name) {
            return self.failed(operation, key, failure.with_kind(ErrorKind::NotFound));
        }
        if failure.status() != Some(404) || failure.kind() == ErrorKind::StoreMissing {
            return self.failed(operation, key, failure);
        }
        let query = [("prefix", name.as_str()), ("maxResults", "1")];
        let failure = match self.json.list(&query).await {
            Ok(page) if page.denies(&name) => failure.with_kind(ErrorKind::NotFound),
            // It is there now, or the page does not say.
            Ok(_) => failure.with_kind(ErrorKind::Conflict),
            Err(of_listing) => of_listing,
        };
        self.failed(operation, key, failure)
    }

    /// Takes the key whole: with a borrowed one the future would not fit into a stream of them.
    async fn delete_one(&self, key: ObjectKey) -> (ObjectKey, Result<()>) {
        let deleted = match self.json.delete(&self.name(&key)).await {
            Ok(()) => Ok(()),
            Err(failure) => Err(self.refused(Operation::Delete, &key, failure).await),
        };
        (key, deleted)
    }

    async fn download(
        &self,
        key: &ObjectKey,
        offset: u64,
        length: Option<u64>,
        response: ReadObjectResponse,
    ) -> std::result::Result<Download, Failure> {
        let object = response.object();
        check_encoding(&object.content_encoding)?;
        let is_whole = offset == 0 && last_byte(offset, length).is_none();
        if is_whole && crc32c(&object).is_none() {
            return Err(unexpected(Unexpected::MissingField));
        }
        let size = self.size(key, &object).await?;
        let rest = size.saturating_sub(offset);
        let expected = length.map_or(rest, |length| length.min(rest));
        Ok(Download {
            object_size_bytes: size,
            version: Some(object.generation.to_string()),
            body: Box::pin(chunks(response, expected, self.object_url(key))),
        })
    }

    /// Length of the object whose bytes come.
    ///
    /// Google's crate reads it from `x-goog-stored-content-length` and nowhere else (`parse_http_response.rs`,
    /// `object_highlights`), and has 0 where a server does not send it, as fake-gcs-server does not.
    async fn size(
        &self,
        key: &ObjectKey,
        object: &ObjectHighlights,
    ) -> std::result::Result<u64, Failure> {
        // The CRC-32C of nothing is 0.
        let is_said = object.size != 0 || crc32c(object) == Some(0);
        if is_said && let Ok(size) = u64::try_from(object.size) {
            return Ok(size);
        }
        let generation = Some(object.generation);
        let resource = self.json.head(&self.name(key), generation).await?;
        let size = resource.size_of(object.generation);
        size.ok_or_else(|| Failure::new(ErrorKind::Conflict, Unexpected::OtherGeneration))
    }

    /// The bytes of an object, or of a generation of it.
    async fn get_one(
        &self,
        key: &ObjectKey,
        generation: Option<i64>,
        offset: u64,
        length: Option<u64>,
    ) -> Result<Download> {
        let name = self.name(key);
        let whole = range(offset, length);
        let mut answer = self.bodies.read(&name, generation, whole).await;
        // No range lies in an empty object, not even the first byte.
        let is_outside = |failure: &Failure| failure.status() == Some(416);
        if offset == 0 && answer.as_ref().is_err_and(is_outside) {
            answer = self.bodies.read(&name, generation, ReadRange::all()).await;
        }
        match answer {
            Ok(response) => self
                .download(key, offset, length, response)
                .await
                .map_err(|failure| self.failed(Operation::Get, key, failure)),
            Err(failure) => Err(self.refused(Operation::Get, key, failure).await),
        }
    }

    async fn list_versions(
        &self,
        request: &VersionsRequest,
    ) -> std::result::Result<VersionsPage, Failure> {
        let prefix = self.location.full(&request.prefix);
        let start = request.start_after.as_ref();
        let start = start.map(|key| self.location.full(key));
        let most = request.most.map(|most| most.to_string());
        let most = most.as_deref().unwrap_or(PAGE_KEYS);
        let mut query = vec![("prefix", prefix.as_str()), ("maxResults", most)];
        query.extend(start.as_deref().map(|start| ("startOffset", start)));
        query.extend(request.fold.then_some(("delimiter", "/")));
        let page = request.page.as_ref();
        query.extend(page.map(|page| ("pageToken", page.as_str())));
        let listing = self.json.list_versions(&query).await?;
        let mut page = VersionsPage {
            next: listing.next_page_token.map(PageToken::from),
            ..VersionsPage::default()
        };
        for item in listing.items {
            let name = item.name.as_ref();
            let name = name.ok_or_else(|| unexpected(Unexpected::MissingField))?;
            // As in other listings, the name itself is included.
            let key = self.location.key(name);
            let key = key.filter(|key| request.start_after.as_deref() != Some(key.as_str()));
            if let Some(key) = key {
                page.versions.push(item.version(key)?);
            }
        }
        let folders = listing.prefixes.iter();
        page.folders = folders
            .filter_map(|folder| Some(self.location.below(folder)?.to_owned()))
            .collect();
        Ok(page)
    }

    fn list_page(
        &self,
        request: &ListRequest,
        listing: Listing,
    ) -> std::result::Result<ListPage, Failure> {
        let mut page = ListPage {
            next: listing.next_page_token.map(PageToken::from),
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

    fn place(&self) -> Option<Arc<str>> {
        Some(Arc::clone(&self.place))
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
        let name = self.name(key);
        let object = self.new_object(&name, token);
        let stored = self.bodies.write(&object, body, mode).await;
        stored.map_err(|failure| self.failed(Operation::Put, key, failure.on_bucket()))
    }

    async fn start_upload(
        &self,
        key: &ObjectKey,
        mode: PutMode,
        token: &PutToken,
    ) -> Result<UploadId> {
        let name = self.name(key);
        let object = self.new_object(&name, token);
        let begun = self.uploads.begin(&self.json, &object, mode).await;
        begun.map_err(|failure| self.failed(Operation::Put, key, failure))
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        at: PartAt,
        body: Bytes,
    ) -> Result<PartReceipt> {
        let put = async {
            let session = self.uploads.find(upload)?;
            let mut session = session.lock().await;
            session.put_part(&self.json, at.number, body).await
        };
        put.await
            .map_err(|failure| self.failed(Operation::Put, key, failure))
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        _: PutMode,
    ) -> Result<()> {
        let complete = async {
            let session = self.uploads.find(upload)?;
            let mut session = session.lock().await;
            let completed = session.complete(&self.json, parts).await;
            if completed
                .as_ref()
                .err()
                .is_none_or(|failure| is_settled(failure.kind()))
            {
                self.uploads.forget(upload);
            }
            completed
        };
        complete
            .await
            .map_err(|failure| self.failed(Operation::Put, key, failure))
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        let ended = self.uploads.end(&self.json, upload).await;
        ended.map_err(|failure| self.failed(Operation::Put, key, failure))
    }

    async fn get(&self, key: &ObjectKey, offset: u64, length: Option<u64>) -> Result<Download> {
        self.get_one(key, None, offset, length).await
    }

    async fn versioning(&self) -> Result<Versioning> {
        match self.json.keeps_versions().await {
            Ok(true) => Ok(Versioning::Kept),
            // Older versions may be there all the same: nothing tells.
            Ok(false) => Ok(Versioning::Never),
            // A right of its own, which who lists objects need not have.
            Err(failure) if failure.kind() == ErrorKind::PermissionDenied => {
                Ok(Versioning::Unknown)
            }
            Err(failure) => Err(failure.on(Operation::List, self.url.clone())),
        }
    }

    async fn retained(&self, key: &ObjectKey) -> Result<Retained> {
        let versioning = self.versioning().await?;
        match self.json.head(&self.name(key), None).await {
            Ok(resource) => Ok(Retained {
                versioning,
                until: resource.retained_until(),
            }),
            Err(failure) => Err(self.refused(Operation::Head, key, failure).await),
        }
    }

    async fn versions(&self, request: &VersionsRequest) -> Result<VersionsPage> {
        let page = self.list_versions(request).await;
        page.map_err(|failure| {
            failure.on(Operation::List, format!("{}/{}", self.url, request.prefix))
        })
    }

    async fn get_version(
        &self,
        version: &ObjectVersion,
        offset: u64,
        length: Option<u64>,
    ) -> Result<Download> {
        let generation = version.id.parse().map_err(|_| {
            let failure = unexpected(Unexpected::MissingField);
            self.failed(Operation::Get, &version.key, failure)
        });
        self.get_one(&version.key, Some(generation?), offset, length)
            .await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectInfo> {
        match self.json.head(&self.name(key), None).await {
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
        // The key after which the listing begins comes with it.
        let most = request
            .most_keys
            .map(|most| (u32::from(most) + 1).to_string());
        let most = most.as_deref().unwrap_or(PAGE_KEYS);
        let mut query = vec![("prefix", prefix.as_str()), ("maxResults", most)];
        query.extend(start.as_deref().map(|start| ("startOffset", start)));
        query.extend(request.fold.then_some(("delimiter", "/")));
        query.extend(
            request
                .page
                .as_ref()
                .map(|page| ("pageToken", page.as_str())),
        );
        let listing = self.json.list(&query).await;
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

/// The range as Google's crate takes it; open where it reaches past what any object has.
fn range(offset: u64, length: Option<u64>) -> ReadRange {
    match last_byte(offset, length) {
        Some(last) => ReadRange::segment(offset, last - offset + 1),
        None => ReadRange::offset(offset),
    }
}

/// Refuses an object that somebody stored with a content encoding: its bytes are not what was put.
fn check_encoding(encoding: &str) -> std::result::Result<(), Failure> {
    match encoding {
        "" | "identity" => Ok(()),
        encoding => Err(unexpected(Unexpected::Encoded {
            encoding: crate::refusal::text(Some(encoding)),
        })),
    }
}

fn crc32c(object: &ObjectHighlights) -> Option<u32> {
    object.checksums.as_ref()?.crc32c
}

fn unexpected(answer: Unexpected) -> Failure {
    Failure::new(ErrorKind::Other, answer)
}

/// The body's bytes, as many as were `expected`. Those of a whole object are compared with its checksum at the end,
/// by Google's crate.
///
/// The crate takes whatever range comes for the one that was asked for (`read_object/resumable.rs`, `response_range`).
fn chunks(
    response: ReadObjectResponse,
    expected: u64,
    object: String,
) -> impl Stream<Item = Result<Bytes>> + Send {
    stream::try_unfold((response, expected), move |(mut response, left)| {
        let object = object.clone();
        async move {
            let failure = match response.next().await {
                Some(Ok(chunk)) => match left.checked_sub(chunk.len() as u64) {
                    Some(left) => return Ok(Some((chunk, (response, left)))),
                    None => unexpected(Unexpected::IgnoredRange),
                },
                Some(Err(error)) => Failure::of_google(error),
                None if left == 0 => return Ok(None),
                None => unexpected(Unexpected::IgnoredRange),
            };
            Err(failure.on(Operation::Get, object))
        }
    })
}
