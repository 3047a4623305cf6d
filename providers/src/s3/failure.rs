//! What S3's answers mean.

use std::error::Error as StdError;
use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::RequestId;
use aws_sdk_s3::primitives::ByteStreamError;
use aws_smithy_checksums::body::validate::Error as ChecksumError;

use crate::http::kind_of_status;
use crate::refusal::{Refusal, find, retry_after, text};
use crate::unreached::{Unreached, causes};
use crate::{Error, ErrorKind, Operation};

type BoxError = Box<dyn StdError + Send + Sync>;

/// A failed request, before it is known what it was about.
pub(super) struct Failure {
    kind: ErrorKind,
    source: Cause,
}

enum Cause {
    Answer(Refusal),
    Transport(BoxError),
}

/// Why no answer came, in the words of the causes that say something: the SDK's own only name its layers.
#[derive(Debug, thiserror::Error)]
#[error("{words}")]
struct NoAnswer {
    words: String,
}

/// What the SDK says of each failure of its layers, and nothing of the cause.
const EMPTY_WORDS: [&str; 12] = [
    "dispatch failure",
    "construction failure",
    "request has timed out",
    "response error",
    "io error",
    "user error",
    "other",
    "timeout",
    "client error (Connect)",
    "client error (SendRequest)",
    "tcp connect error",
    "error trying to connect",
];

/// A server's answer that the protocol does not foresee.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unexpected {
    #[error("the server's answer lacks a field that S3 always sends")]
    MissingField,
    #[error("the server ignored the range that was asked for")]
    IgnoredRange,
}

impl Failure {
    /// A failure of one key of a batch.
    pub(super) fn of_code(code: Option<&str>, message: Option<&str>) -> Self {
        let refusal = Refusal {
            code: text(code),
            message: text(message),
            ..Refusal::default()
        };
        Self::of_refusal(refusal, None)
    }

    /// A body that broke off, or did not match its checksum.
    pub(super) fn of_body(error: ByteStreamError) -> Self {
        let kind = match find::<ChecksumError>(&error) {
            Some(_) => ErrorKind::Corrupted,
            None => ErrorKind::Unavailable,
        };
        Self {
            kind,
            source: Cause::Transport(error.into()),
        }
    }

    /// A request that got no answer.
    fn unanswered(kind: ErrorKind, error: &(dyn StdError + 'static)) -> Self {
        if let Some(unreached) = Unreached::of(error, None) {
            return Self {
                kind: unreached.kind,
                source: Cause::Transport(unreached.into()),
            };
        }
        let words = words_of(error);
        Self {
            kind,
            source: Cause::Transport(NoAnswer { words }.into()),
        }
    }

    /// A request that could not be put together.
    pub(super) fn construction(error: impl Into<BoxError>) -> Self {
        Self {
            kind: ErrorKind::Invalid,
            source: Cause::Transport(error.into()),
        }
    }

    pub(super) fn kind(&self) -> ErrorKind {
        self.kind
    }

    fn status(&self) -> Option<u16> {
        match &self.source {
            Cause::Answer(refusal) => refusal.status,
            Cause::Transport(_) => None,
        }
    }

    /// Whether the server said no, and would say so again.
    pub(super) fn is_refusal(&self) -> bool {
        self.status()
            .is_some_and(|status| (400..500).contains(&status))
    }

    /// Whether the server knows the credentials, and they are of the past.
    pub(super) fn is_expiry(&self) -> bool {
        matches!(&self.source, Cause::Answer(refusal)
            if matches!(refusal.code.as_str(), "ExpiredToken" | "TokenRefreshRequired"))
    }

    /// The same, of which another try may do.
    pub(super) fn into_passing(mut self) -> Self {
        self.kind = ErrorKind::Unavailable;
        self
    }

    pub(super) fn is_invalid_range(&self) -> bool {
        self.status() == Some(416)
    }

    pub(super) fn on(self, operation: Operation, object: String) -> Error {
        let error = Error::new(operation, object, self.kind);
        match self.source {
            Cause::Answer(mut refusal) => {
                refusal.hint = hint(operation, self.kind, &refusal);
                error.with_source(refusal)
            }
            Cause::Transport(source) => error.with_source(source),
        }
    }

    fn of_refusal(refusal: Refusal, retry_after: Option<Duration>) -> Self {
        let kind = kind_of_code(&refusal.code, retry_after)
            .unwrap_or_else(|| kind_of_status(refusal.status.unwrap_or(0), retry_after));
        Self {
            kind,
            source: Cause::Answer(refusal),
        }
    }

    fn of_answer<E: ProvideErrorMetadata + RequestId>(error: &SdkError<E, HttpResponse>) -> Self {
        let response = error.raw_response();
        let retry_after =
            response.and_then(|response| retry_after(response.headers().get("retry-after")));
        let refusal = Refusal {
            status: response.map(|response| response.status().as_u16()),
            code: text(error.code()),
            message: text(error.message()),
            request_id: error.request_id().map(|id| text(Some(id))),
            hint: None,
        };
        Self::of_refusal(refusal, retry_after)
    }
}

impl<E> From<SdkError<E, HttpResponse>> for Failure
where
    E: ProvideErrorMetadata + RequestId + StdError + Send + Sync + 'static,
{
    fn from(error: SdkError<E, HttpResponse>) -> Self {
        let kind = match &error {
            SdkError::ServiceError(_) => return Self::of_answer(&error),
            // An answer that is no S3: of a proxy, or cut off.
            SdkError::ResponseError(answer) => match answer.raw().status().as_u16() {
                200..500 => ErrorKind::Unavailable,
                status => kind_of_status(status, None),
            },
            SdkError::TimeoutError(_) => ErrorKind::TimedOut,
            SdkError::DispatchFailure(failure) if failure.is_timeout() => ErrorKind::TimedOut,
            SdkError::DispatchFailure(failure) if failure.is_user() => ErrorKind::Invalid,
            SdkError::DispatchFailure(failure) => failure
                .as_connector_error()
                .map_or(ErrorKind::Unavailable, |error| kind_of_dispatch(error)),
            SdkError::ConstructionFailure(_) => ErrorKind::Invalid,
            _ => ErrorKind::Other,
        };
        match error.into_source() {
            Ok(source) => Self::unanswered(kind, &*source),
            Err(_) => Self {
                kind,
                source: Cause::Answer(Refusal::default()),
            },
        }
    }
}

/// The meaning of S3's error codes; `None` where the status has to tell.
fn kind_of_code(code: &str, retry_after: Option<Duration>) -> Option<ErrorKind> {
    Some(match code {
        "NoSuchKey" | "NoSuchUpload" | "NoSuchVersion" => ErrorKind::NotFound,
        "NoSuchBucket" => ErrorKind::StoreMissing,
        "PreconditionFailed" => ErrorKind::AlreadyExists,
        "ConditionalRequestConflict" | "OperationAborted" => ErrorKind::Conflict,
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => ErrorKind::PermissionDenied,
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "InvalidToken"
        | "TokenRefreshRequired"
        | "RequestTimeTooSkewed" => ErrorKind::Unauthenticated,
        "SlowDown"
        | "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "TooManyRequests" => ErrorKind::Throttled(retry_after),
        "InternalError" | "ServiceUnavailable" => ErrorKind::Unavailable,
        "RequestTimeout" => ErrorKind::TimedOut,
        "BadDigest"
        | "InvalidDigest"
        | "XAmzContentSHA256Mismatch"
        | "XAmzContentChecksumMismatch" => ErrorKind::Corrupted,
        "QuotaExceeded" | "XMinioStorageFull" => ErrorKind::NoSpace,
        "InvalidRange" | "EntityTooLarge" | "EntityTooSmall" | "KeyTooLongError"
        | "PermanentRedirect" => ErrorKind::Invalid,
        _ => return None,
    })
}

/// A request that got no answer: credentials that are not there will not come by waiting.
fn kind_of_dispatch(error: &(dyn StdError + 'static)) -> ErrorKind {
    match find::<CredentialsError>(error) {
        Some(
            CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_),
        ) => ErrorKind::NoCredentials,
        // The instance service said no, and has none to give.
        Some(error) if words_of(error).contains("IMDS is disabled") => ErrorKind::NoCredentials,
        Some(_) | None => ErrorKind::Unavailable,
    }
}

/// The words of an error's causes, each once.
fn words_of(error: &(dyn StdError + 'static)) -> String {
    let mut words: Vec<String> = Vec::new();
    for cause in causes(error) {
        let said = cause.to_string();
        let is_known = words.iter().any(|known| known.contains(&said));
        if !EMPTY_WORDS.contains(&said.as_str()) && !is_known {
            words.push(said);
        }
    }
    if words.is_empty() {
        return error.to_string();
    }
    text(Some(&words.join(": ")))
}

fn hint(operation: Operation, kind: ErrorKind, refusal: &Refusal) -> Option<&'static str> {
    let reads = matches!(operation, Operation::Get | Operation::Head);
    match (kind, refusal.status) {
        (ErrorKind::PermissionDenied, _) if reads => {
            Some("without the right s3:ListBucket, S3 also answers so for a key that is not there")
        }
        (ErrorKind::Unauthenticated, _) if refusal.code == "RequestTimeTooSkewed" => {
            Some("check this host's clock")
        }
        (ErrorKind::Unauthenticated, _) => Some("check the AWS credentials that this process sees"),
        (ErrorKind::Invalid, Some(301 | 307)) => {
            Some("the bucket lies in another region; set AWS_REGION")
        }
        (ErrorKind::Unsupported, Some(501)) => {
            Some("the server may lack conditional writes (If-None-Match), which Walhalla needs")
        }
        (ErrorKind::Other, Some(404)) => Some("no S3 server answers so; check the endpoint's URL"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_that_names_the_key_proves_its_absence() {
        let kind = |status, code: &str| {
            let refusal = Refusal {
                status: Some(status),
                code: code.to_owned(),
                ..Refusal::default()
            };
            Failure::of_refusal(refusal, None).kind()
        };
        assert_eq!(kind(404, "NoSuchKey"), ErrorKind::NotFound);
        assert_eq!(kind(404, "NoSuchBucket"), ErrorKind::StoreMissing);
        assert_eq!(kind(404, ""), ErrorKind::Other);
        assert_eq!(kind(404, "NotFound"), ErrorKind::Other);
        assert_eq!(kind(403, "AccessDenied"), ErrorKind::PermissionDenied);
        assert_eq!(
            kind(403, "SignatureDoesNotMatch"),
            ErrorKind::Unauthenticated
        );
        assert_eq!(kind(400, "ExpiredToken"), ErrorKind::Unauthenticated);
        assert_eq!(kind(409, "ConditionalRequestConflict"), ErrorKind::Conflict);
        assert_eq!(kind(412, "PreconditionFailed"), ErrorKind::AlreadyExists);
        assert_eq!(kind(503, "SlowDown"), ErrorKind::Throttled(None));
        assert_eq!(kind(500, "InternalError"), ErrorKind::Unavailable);
        assert_eq!(kind(502, ""), ErrorKind::Unavailable);
        assert_eq!(kind(501, "NotImplemented"), ErrorKind::Unsupported);
    }

    #[test]
    fn a_stated_time_to_wait_is_kept() {
        let wait = Some(Duration::from_secs(7));
        let of_status = |status| {
            let refusal = Refusal {
                status: Some(status),
                ..Refusal::default()
            };
            Failure::of_refusal(refusal, wait).kind()
        };
        assert_eq!(of_status(429), ErrorKind::Throttled(wait));
        assert_eq!(of_status(503), ErrorKind::Throttled(wait));
        assert_eq!(of_status(500), ErrorKind::Unavailable);
    }
}
