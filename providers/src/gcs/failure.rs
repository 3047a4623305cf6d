//! What the answers of GCS mean.

use std::error::Error as StdError;
use std::time::Duration;

use bytes::Bytes;
use google_cloud_auth::errors::CredentialsError;
use google_cloud_gax::error::rpc::{Status, StatusDetails};
use google_cloud_storage::error::ReadError;
use reqwest::Response;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use crate::http::kind_of_status;
use crate::refusal::{Refusal, find, retry_after, text};
use crate::unreached::Unreached;
use crate::{Distrust, Error, ErrorKind, Operation};

type BoxError = Box<dyn StdError + Send + Sync>;

/// Most bytes of an error's body that are read.
const MAX_ERROR_BYTES: usize = 64 << 10;

/// A failed request, before it is known what it was about.
pub(super) struct Failure {
    kind: ErrorKind,
    source: Cause,
}

enum Cause {
    Answer { refusal: Refusal, is_of_gcs: bool },
    Other(BoxError),
}

/// A server's answer that the protocol does not foresee.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unexpected {
    #[error("the server's answer lacks a field or header that GCS always sends")]
    MissingField,
    #[error("the server ignored the range that was asked for, or gave another")]
    IgnoredRange,
    #[error(
        "the object has the content encoding {encoding}, so somebody else stored it: Walhalla's have none"
    )]
    Encoded { encoding: String },
    #[error("the server says that it has {persisted_bytes} bytes of the upload, which cannot be")]
    WrongProgress { persisted_bytes: u64 },
    #[error("the server kept nothing of what it was sent")]
    NoProgress,
    #[error("the server took a part of an upload for its end")]
    StoredEarly,
    #[error("the server gave an upload an address in clear, http://, beside its own https://")]
    SessionInClear,
    #[error("the answer to a delete is not GCS's; hint: check the endpoint's URL")]
    NotDeleted,
    #[error("the object was replaced while its length was asked for")]
    OtherGeneration,
    #[error("the server listed nothing that GCS lists; hint: check the endpoint's URL")]
    NoListing,
}

/// The object is there, with other bytes than were sent: to send them again would meet it, not mend it.
#[derive(Debug, thiserror::Error)]
#[error(
    "the server stored other bytes than were sent: it has the CRC-32C {theirs}, sent was {ours}; \
     hint: delete the object and push again"
)]
pub(super) struct StoredOtherBytes {
    pub(super) ours: String,
    pub(super) theirs: String,
}

/// Google's crate takes neither certificates nor a client of ours (`google-cloud-gax-internal`, `ReqwestClient::new`).
#[derive(Debug, thiserror::Error)]
#[error(
    "Google's library does not trust the server; hint: it does not read ca_file, \
     name a file of certificates in the variable SSL_CERT_FILE"
)]
struct Untrusted(#[source] Unreached);

impl Failure {
    /// A failure that is no answer of a server.
    pub(super) fn new(kind: ErrorKind, source: impl Into<BoxError>) -> Self {
        Self {
            kind,
            source: Cause::Other(source.into()),
        }
    }

    /// A body that is no JSON, or not the JSON that was to come: a proxy's page, or cut off.
    pub(super) fn of_json(error: serde_json::Error) -> Self {
        Self::new(ErrorKind::Unavailable, error)
    }

    /// The refusal in `response`.
    pub(super) async fn of_answer(mut response: Response) -> Self {
        let status = response.status().as_u16();
        let headers = std::mem::take(response.headers_mut());
        let mut body = Vec::new();
        while body.len() < MAX_ERROR_BYTES {
            // A body that breaks off leaves the status, which says enough.
            let Ok(Some(chunk)) = response.chunk().await else {
                break;
            };
            body.extend_from_slice(&chunk);
        }
        Self::of_parts(status, &headers, said(&body.into()))
    }

    /// What Google's crate says of a request for a body.
    pub(super) fn of_google(error: google_cloud_storage::Error) -> Self {
        if let Some(status) = error.http_status_code() {
            let refusal = match (error.status(), error.http_payload()) {
                (Some(status), _) => (said_by(status), true),
                (None, body) => said(body.unwrap_or(&Bytes::new())),
            };
            let nothing = HeaderMap::new();
            return Self::of_parts(status, error.http_headers().unwrap_or(&nothing), refusal);
        }
        if let Some(fault) = find::<CredentialsError>(&error) {
            return Self::from(fault);
        }
        let kind = kind_of_google(&error);
        if let Some(unreached) = Unreached::of(&error, None) {
            return match unreached.kind {
                ErrorKind::Untrusted(Distrust::Authority) => {
                    Self::new(unreached.kind, Untrusted(unreached))
                }
                kind => Self::new(kind, unreached),
            };
        }
        Self::new(kind, error)
    }

    fn of_parts(
        status: u16,
        headers: &HeaderMap,
        (mut refusal, is_of_gcs): (Refusal, bool),
    ) -> Self {
        let wait = headers
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok());
        // X-GUploader-UploadID stays out: in an upload it is the session's secret.
        refusal.status = Some(status);
        Self {
            kind: kind(status, &refusal, retry_after(wait)),
            source: Cause::Answer { refusal, is_of_gcs },
        }
    }

    pub(super) fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub(super) fn status(&self) -> Option<u16> {
        match &self.source {
            Cause::Answer { refusal, .. } => refusal.status,
            Cause::Other(_) => None,
        }
    }

    /// Whether it says of this object, by its full name, that it is not there.
    pub(super) fn denies(&self, bucket: &str, name: &str) -> bool {
        match &self.source {
            Cause::Answer { refusal, .. } => {
                let words = text(Some(&format!("No such object: {bucket}/{name}")));
                refusal.status == Some(404) && refusal.message == words
            }
            Cause::Other(_) => false,
        }
    }

    /// The answer to a request that concerned no object of the bucket: GCS's own 404 is then about the bucket.
    pub(super) fn on_bucket(mut self) -> Self {
        if let Cause::Answer {
            refusal,
            is_of_gcs: true,
        } = &self.source
            && refusal.status == Some(404)
        {
            self.kind = ErrorKind::StoreMissing;
        }
        self
    }

    /// The answer to a request on an upload's session: gone when it is not found.
    pub(super) fn on_session(mut self) -> Self {
        if matches!(self.status(), Some(404 | 410)) && self.kind != ErrorKind::StoreMissing {
            self.kind = ErrorKind::NotFound;
        }
        self
    }

    /// The same as another kind.
    pub(super) fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    pub(super) fn on(self, operation: Operation, object: String) -> Error {
        let error = Error::new(operation, object, self.kind);
        match self.source {
            Cause::Answer { mut refusal, .. } => {
                refusal.hint = hint(operation, self.kind, &refusal);
                error.with_source(refusal)
            }
            Cause::Other(source) => error.with_source(source),
        }
    }
}

/// The request got no answer, or only the beginning of one.
impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        let host = error.url().and_then(|url| url.host_str());
        if let Some(unreached) = Unreached::of(&error, host) {
            return Self::new(unreached.kind, unreached);
        }
        let kind = if error.is_timeout() {
            ErrorKind::TimedOut
        } else if error.is_builder() {
            ErrorKind::Invalid
        } else {
            ErrorKind::Unavailable
        };
        // The address of an upload's session is a right to write to it.
        Self::new(kind, error.without_url())
    }
}

/// What an answer says, and whether it is an error as the JSON API writes it.
fn said(body: &Bytes) -> (Refusal, bool) {
    if let Ok(status) = Status::try_from(body) {
        return (said_by(&status), true);
    }
    let refusal = Refusal {
        message: plain_text(body),
        ..Refusal::default()
    };
    (refusal, false)
}

fn said_by(status: &Status) -> Refusal {
    let reason = status.details.iter().find_map(|detail| match detail {
        StatusDetails::ErrorInfo(info) => Some(info.reason.as_str()),
        _ => None,
    });
    Refusal {
        code: text(reason),
        message: text(Some(&status.message)),
        ..Refusal::default()
    }
}

/// What it means that Google's crate failed without an answer, or with one that it cannot read.
fn kind_of_google(error: &google_cloud_storage::Error) -> ErrorKind {
    match find::<ReadError>(error) {
        Some(ReadError::ChecksumMismatch(_)) => ErrorKind::Corrupted,
        Some(ReadError::ShortRead(_)) => ErrorKind::Unavailable,
        Some(_) => ErrorKind::Other,
        None if error.is_timeout() => ErrorKind::TimedOut,
        None if error.is_serialization() => ErrorKind::Other,
        // An answer that is no JSON, or not the JSON that was to come: a proxy's page, or cut off.
        None => ErrorKind::Unavailable,
    }
}

/// The words of a body that is no JSON; those of a page of HTML say nothing.
fn plain_text(body: &[u8]) -> String {
    let words = String::from_utf8_lossy(body);
    let words = words.trim();
    if words.starts_with('<') {
        String::new()
    } else {
        text(Some(words))
    }
}

fn kind(status: u16, refusal: &Refusal, retry_after: Option<Duration>) -> ErrorKind {
    match status {
        400 if refusal.message.contains("CRC32C") => ErrorKind::Corrupted,
        403 if is_rate_limit(&refusal.code) => ErrorKind::Throttled(retry_after),
        404 if refusal.message == BUCKET_MISSING => ErrorKind::StoreMissing,
        _ => kind_of_status(status, retry_after),
    }
}

fn is_rate_limit(reason: &str) -> bool {
    matches!(reason, "rateLimitExceeded" | "userRateLimitExceeded")
}

/// What GCS says of a bucket that is not there.
const BUCKET_MISSING: &str = "The specified bucket does not exist.";

fn hint(operation: Operation, kind: ErrorKind, refusal: &Refusal) -> Option<&'static str> {
    let reads = matches!(operation, Operation::Get | Operation::Head);
    match (kind, refusal.status) {
        (ErrorKind::PermissionDenied, _) if reads => Some(
            "without the right storage.objects.list, GCS also answers so for an object that is not there",
        ),
        (ErrorKind::PermissionDenied, _) => Some(
            "to replace or delete an object takes the right storage.objects.delete, and no retention on it",
        ),
        (ErrorKind::Unauthenticated, _) => {
            Some("check the Google credentials that this process sees")
        }
        (ErrorKind::Unavailable, Some(401)) => Some("other credentials are asked for"),
        (ErrorKind::NotFound, Some(404 | 410)) if operation == Operation::Put => {
            Some("the upload's session is gone")
        }
        (ErrorKind::Invalid, Some(300..400)) | (ErrorKind::Other, Some(404)) => {
            Some("GCS does not answer so; check the endpoint's URL")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(status: u16, reason: &str, message: &str) -> Failure {
        let body = format!(
            r#"{{"error":{{"code":{status},"message":"{message}","errors":[{{"reason":"{reason}"}}]}}}}"#
        );
        Failure::of_parts(status, &HeaderMap::new(), said(&body.into()))
    }

    #[test]
    fn answers_have_their_kinds() {
        let kind = |status, reason| json(status, reason, "why").kind();
        assert_eq!(kind(400, "invalid"), ErrorKind::Invalid);
        assert_eq!(kind(401, "required"), ErrorKind::Unauthenticated);
        assert_eq!(kind(403, "forbidden"), ErrorKind::PermissionDenied);
        assert_eq!(kind(403, "rateLimitExceeded"), ErrorKind::Throttled(None));
        assert_eq!(kind(404, "notFound"), ErrorKind::Other);
        assert_eq!(kind(408, ""), ErrorKind::TimedOut);
        assert_eq!(kind(409, "conflict"), ErrorKind::Conflict);
        assert_eq!(kind(412, "conditionNotMet"), ErrorKind::AlreadyExists);
        assert_eq!(kind(429, "rateLimitExceeded"), ErrorKind::Throttled(None));
        assert_eq!(kind(500, "internalError"), ErrorKind::Unavailable);
        assert_eq!(kind(501, ""), ErrorKind::Unsupported);
        assert_eq!(kind(503, "backendError"), ErrorKind::Unavailable);
        assert_eq!(kind(507, ""), ErrorKind::NoSpace);
        let wrong = "Provided CRC32C \\\"AAAAAA==\\\" doesn't match calculated CRC32C.";
        assert_eq!(json(400, "invalid", wrong).kind(), ErrorKind::Corrupted);
    }

    #[test]
    fn a_404_is_of_the_object_only_when_it_names_it_and_of_the_bucket_only_when_gcs_wrote_it() {
        let named = json(404, "notFound", "No such object: bucket/a/b");
        assert!(named.denies("bucket", "a/b"));
        assert!(!named.denies("bucket", "a"));
        assert!(!named.denies("another", "a/b"));
        assert!(!json(404, "notFound", "Not Found").denies("bucket", "a/b"));
        assert_eq!(
            json(404, "notFound", BUCKET_MISSING).kind(),
            ErrorKind::StoreMissing
        );
        assert_eq!(
            json(404, "notFound", "Not Found").on_bucket().kind(),
            ErrorKind::StoreMissing
        );
        let page = || {
            Failure::of_parts(
                404,
                &HeaderMap::new(),
                said(&Bytes::from_static(b"<html>no such page</html>")),
            )
        };
        assert_eq!(page().on_bucket().kind(), ErrorKind::Other);
        assert!(!page().denies("bucket", "a/b"));
        assert_eq!(page().on_session().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_stated_time_to_wait_is_kept() {
        let wait = Some(Duration::from_secs(7));
        let of_status = |status| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, "7".parse().unwrap())]);
            Failure::of_parts(status, &headers, said(&Bytes::new())).kind()
        };
        assert_eq!(of_status(429), ErrorKind::Throttled(wait));
        assert_eq!(of_status(503), ErrorKind::Throttled(wait));
        assert_eq!(of_status(500), ErrorKind::Unavailable);
    }
}
