//! What Google's crate does by gRPC only, which no emulator serves: heads, listings and deletes, by the JSON API.
//!
//! The uploads in parts send their requests from here, too.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::credentials::Access;
use super::failure::{Failure, StoredOtherBytes, Unexpected};
use crate::{ErrorKind, ObjectInfo, ObjectKey, ObjectVersion, PutToken, VersionKind};

/// In the metadata of an object.
pub(super) const TOKEN_METADATA: &str = "walhalla-token";

/// `fields` of a head: no access lists, which need a right of their own.
const RESOURCE_FIELDS: &str =
    "name,size,timeCreated,generation,metadata,crc32c,retentionExpirationTime";

/// `fields` of a listing.
const LISTING_FIELDS: &str = "kind,nextPageToken,prefixes,items(name,size,timeCreated)";

/// The same with versions.
const VERSION_FIELDS: &str =
    "kind,nextPageToken,prefixes,items(name,size,timeCreated,generation,timeDeleted)";

const LISTING_KIND: &str = "storage#objects";

/// Longest JSON answer that is read: some ten times a page of a thousand objects with all their fields.
const MAX_JSON_BYTES: usize = 16 << 20;

/// What stands in a path or query for something else.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// One bucket of a server, and the right to ask for it. Sends each request once.
pub(super) struct Json {
    http: reqwest::Client,
    endpoint: String,
    bucket: String,
    access: Arc<Access>,
}

/// An object that is there.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Resource {
    pub(super) name: Option<String>,
    size: Option<String>,
    time_created: Option<String>,
    pub(super) generation: Option<String>,
    /// When it was deleted or replaced.
    time_deleted: Option<String>,
    /// Until when it cannot be deleted.
    retention_expiration_time: Option<String>,
    metadata: Option<HashMap<String, String>>,
    crc32c: Option<String>,
}

/// A page of a listing.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Listing {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    pub(super) items: Vec<Resource>,
    #[serde(default)]
    pub(super) prefixes: Vec<String>,
    pub(super) next_page_token: Option<String>,
}

/// What a bucket's metadata say of versions.
#[derive(Deserialize)]
struct Bucket {
    versioning: Option<BucketVersioning>,
}

#[derive(Deserialize)]
struct BucketVersioning {
    #[serde(default)]
    enabled: bool,
}

/// An object that shall be.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewObject<'a> {
    pub(super) name: &'a str,
    pub(super) content_type: &'static str,
    pub(super) metadata: HashMap<&'static str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) storage_class: Option<&'a str>,
    /// In the query of a request, not in its resource.
    #[serde(skip)]
    pub(super) kms_key: Option<&'a str>,
}

impl Json {
    /// Requests for `bucket` to `endpoint`, which has no trailing slash.
    pub(super) fn new(
        http: reqwest::Client,
        endpoint: String,
        bucket: &str,
        access: Arc<Access>,
    ) -> Self {
        Self {
            http,
            endpoint,
            bucket: escape(bucket),
            access,
        }
    }

    /// The object of this name, or a generation of it.
    pub(super) async fn head(
        &self,
        name: &str,
        generation: Option<i64>,
    ) -> Result<Resource, Failure> {
        let generation = generation.map(|generation| ("generation", generation.to_string()));
        let request = self
            .request(Method::GET, &self.object_path(name))
            .query(&[("fields", RESOURCE_FIELDS)])
            .query(generation.as_slice());
        json(self.send(request).await?).await
    }

    /// A page of the bucket's listing, with all versions.
    pub(super) async fn list_versions(&self, query: &[(&str, &str)]) -> Result<Listing, Failure> {
        let request = self
            .request(Method::GET, &self.bucket_path())
            .query(query)
            .query(&[("versions", "true"), ("fields", VERSION_FIELDS)]);
        let response = self.send(request).await.map_err(Failure::on_bucket)?;
        json::<Listing>(response).await?.checked()
    }

    /// Whether the bucket keeps versions now.
    pub(super) async fn keeps_versions(&self) -> Result<bool, Failure> {
        let request = self
            .request(Method::GET, &format!("/storage/v1/b/{}", self.bucket))
            .query(&[("fields", "versioning")]);
        let response = self.send(request).await.map_err(Failure::on_bucket)?;
        let bucket: Bucket = json(response).await?;
        Ok(bucket
            .versioning
            .is_some_and(|versioning| versioning.enabled))
    }

    /// A page of the bucket's listing.
    pub(super) async fn list(&self, query: &[(&str, &str)]) -> Result<Listing, Failure> {
        let request = self
            .request(Method::GET, &self.bucket_path())
            .query(query)
            .query(&[("fields", LISTING_FIELDS)]);
        let response = self.send(request).await.map_err(Failure::on_bucket)?;
        json::<Listing>(response).await?.checked()
    }

    /// Deletes the object of this name.
    pub(super) async fn delete(&self, name: &str) -> Result<(), Failure> {
        let request = self.request(Method::DELETE, &self.object_path(name));
        // GCS answers a delete with nothing but this status: any other success is a page of somebody else's.
        match self.send(request).await?.status() {
            StatusCode::NO_CONTENT => Ok(()),
            _ => Err(Failure::new(ErrorKind::Unavailable, Unexpected::NotDeleted)),
        }
    }

    /// A request that makes an object of the bucket.
    pub(super) fn insert(&self) -> RequestBuilder {
        self.request(Method::POST, &format!("/upload{}", self.bucket_path()))
    }

    /// A request on an upload's session, whose address the server gave.
    pub(super) fn session_request(&self, method: Method, session: &str) -> RequestBuilder {
        self.http.request(method, session)
    }

    /// The answer, which is a success.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = self.exchange(request).await?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(Failure::of_answer(response).await)
        }
    }

    /// The answer, whatever it is but a 401.
    pub(super) async fn exchange(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let mut request = request.build()?;
        let (headers, age) = self
            .access
            .headers()
            .await
            .map_err(|error| Failure::from(&error))?;
        // Should a server name another host for an upload: the session's address alone is enough to write to it.
        if self.is_own(request.url()) {
            request.headers_mut().extend(headers);
        }
        let response = self.http.execute(request).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        Err(self.access.judged(Failure::of_answer(response).await, age))
    }

    /// The address of an upload's session as the server gave it, if it may be used.
    pub(super) fn session_address(&self, response: &Response) -> Result<String, Failure> {
        let location = response.headers().get(http::header::LOCATION);
        let address = location
            .and_then(|value| value.to_str().ok())
            .ok_or_else(|| Failure::new(ErrorKind::Other, Unexpected::MissingField))?;
        if is_encrypted(&self.endpoint) && !is_encrypted(address) {
            return Err(Failure::new(ErrorKind::Other, Unexpected::SessionInClear));
        }
        Ok(address.to_owned())
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.endpoint))
    }

    fn bucket_path(&self) -> String {
        format!("/storage/v1/b/{}/o", self.bucket)
    }

    fn object_path(&self, name: &str) -> String {
        format!("{}/{}", self.bucket_path(), escape(name))
    }

    fn is_own(&self, url: &Url) -> bool {
        Url::parse(&self.endpoint).is_ok_and(|endpoint| endpoint.origin() == url.origin())
    }
}

impl Resource {
    pub(super) fn info(self, key: ObjectKey) -> Result<ObjectInfo, Failure> {
        let incomplete = || Failure::new(ErrorKind::Other, Unexpected::MissingField);
        Ok(ObjectInfo {
            key,
            size_bytes: self.size_bytes().ok_or_else(incomplete)?,
            modified: self.created().ok_or_else(incomplete)?,
            token: self
                .metadata
                .and_then(|mut metadata| metadata.remove(TOKEN_METADATA))
                .map(PutToken::from),
        })
    }

    /// What the server stored is what was sent.
    ///
    /// # Errors
    /// As [`check_stored`].
    pub(super) fn check(&self, crc32c: u32, size_bytes: u64) -> Result<(), Failure> {
        let theirs = self.crc32c.as_deref().and_then(read_checksum);
        check_stored((crc32c, size_bytes), theirs.zip(self.size_bytes()))
    }

    /// Length of the object, if it still has this generation.
    pub(super) fn size_of(&self, generation: i64) -> Option<u64> {
        let is_same = self.generation.as_ref()?.parse() == Ok(generation);
        self.size_bytes().filter(|_| is_same)
    }

    /// The object as one of its versions.
    pub(super) fn version(&self, key: ObjectKey) -> Result<ObjectVersion, Failure> {
        let incomplete = || Failure::new(ErrorKind::Other, Unexpected::MissingField);
        let deleted = self.time_deleted.as_ref().map(|time| time.parse());
        Ok(ObjectVersion {
            key,
            id: self.generation.clone().ok_or_else(incomplete)?,
            kind: VersionKind::Object,
            size_bytes: self.size_bytes().ok_or_else(incomplete)?,
            since: self.created().ok_or_else(incomplete)?,
            until: deleted.transpose().map_err(|_| incomplete())?,
        })
    }

    pub(super) fn retained_until(&self) -> Option<Timestamp> {
        self.retention_expiration_time.as_ref()?.parse().ok()
    }

    fn size_bytes(&self) -> Option<u64> {
        self.size.as_ref()?.parse().ok()
    }

    fn created(&self) -> Option<Timestamp> {
        self.time_created.as_ref()?.parse().ok()
    }
}

impl Listing {
    /// The same, if it is one: an empty page decides that something is not there, so any JSON will not do.
    fn checked(self) -> Result<Self, Failure> {
        if self.kind == LISTING_KIND {
            Ok(self)
        } else {
            Err(Failure::new(ErrorKind::Other, Unexpected::NoListing))
        }
    }

    /// Whether it shows, as the first page of what begins with `name`, that no object has this name: the object
    /// itself would come first. An empty page after which others follow shows nothing.
    pub(super) fn denies(&self, name: &str) -> bool {
        match self.items.first() {
            Some(first) => first.name.as_deref().is_some_and(|first| first != name),
            None => self.next_page_token.is_none(),
        }
    }
}

/// The CRC-32C and the length that the server has are those that were sent.
///
/// # Errors
/// [`ErrorKind::Other`] when they are not. Not [`ErrorKind::Corrupted`], which is sent again: the damaged object would
/// refuse the second create and be taken for the first one's.
pub(super) fn check_stored(ours: (u32, u64), theirs: Option<(u32, u64)>) -> Result<(), Failure> {
    let words = |(crc32c, length)| format!("{} of {length} bytes", checksum(crc32c));
    match theirs {
        Some(theirs) if theirs == ours => Ok(()),
        Some(theirs) => {
            let (ours, theirs) = (words(ours), words(theirs));
            let wrong = StoredOtherBytes { ours, theirs };
            Err(Failure::new(ErrorKind::Other, wrong))
        }
        None => Err(Failure::new(ErrorKind::Other, Unexpected::MissingField)),
    }
}

/// A CRC-32C as GCS spells it: base64 of its bytes, the highest first.
pub(super) fn checksum(crc32c: u32) -> String {
    STANDARD.encode(crc32c.to_be_bytes())
}

fn read_checksum(text: &str) -> Option<u32> {
    let bytes = STANDARD.decode(text).ok()?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn is_encrypted(url: &str) -> bool {
    url.starts_with("https:")
}

/// A name as one component of a path.
fn escape(name: &str) -> String {
    utf8_percent_encode(name, ESCAPED).to_string()
}

/// The JSON in an answer.
pub(super) async fn json<T: DeserializeOwned>(response: Response) -> Result<T, Failure> {
    serde_json::from_slice(&body(response).await?).map_err(Failure::of_json)
}

async fn body(mut response: Response) -> Result<Bytes, Failure> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_JSON_BYTES {
            return Err(Failure::new(ErrorKind::Other, TooLong));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// An answer longer than any of GCS's.
#[derive(Debug, thiserror::Error)]
#[error("the server's answer is longer than {MAX_JSON_BYTES} bytes")]
struct TooLong;

#[cfg(test)]
mod tests {
    use google_cloud_auth::credentials::anonymous;

    use super::*;

    fn client(endpoint: &str) -> Json {
        let access = Access::given(anonymous::Builder::new().build());
        let http = reqwest::Client::new();
        Json::new(http, endpoint.to_owned(), "bucket", Arc::new(access))
    }

    #[test]
    fn an_upload_that_begins_encrypted_is_not_continued_in_clear() {
        let address = |endpoint: &str, location: &str| {
            let answer = http::Response::builder().header("location", location);
            let answer = Response::from(answer.body("").unwrap());
            client(endpoint).session_address(&answer).ok()
        };
        let (https, http) = ("https://host/upload?id=1", "http://host/upload?id=1");
        assert_eq!(address("https://host", https).as_deref(), Some(https));
        assert_eq!(address("https://host", http), None);
        assert_eq!(address("http://host", http).as_deref(), Some(http));
    }

    #[test]
    fn tokens_go_to_the_endpoint_only() {
        let client = client("https://host");
        let is_own = |url| client.is_own(&Url::parse(url).unwrap());
        assert!(is_own("https://host/upload?id=1"));
        assert!(is_own("https://host:443/"));
        for other in [
            "https://other/",
            "http://host/",
            "https://host:444/",
            "https://host.other/",
        ] {
            assert!(!is_own(other), "{other}");
        }
    }

    #[test]
    fn names_are_one_component_of_a_path() {
        assert_eq!(escape("a/b c+ü?#%~"), "a%2Fb%20c%2B%C3%BC%3F%23%25~");
    }

    #[test]
    fn checksums_are_spelt_as_gcs_does() {
        // The check value of CRC-32C in the catalogue of parametrised CRC algorithms.
        let crc = crc32c::crc32c(b"123456789");
        assert_eq!(crc, 0xE306_9283);
        assert_eq!(checksum(crc), "4waSgw==");
        assert_eq!(read_checksum("4waSgw=="), Some(crc));
        assert_eq!(read_checksum("4wa"), None);
    }
}
