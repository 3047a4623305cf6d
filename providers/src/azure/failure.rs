//! What Azure's answers mean.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use azure_core::error::ErrorKind as AzureKind;
use azure_core::http::RawResponse;
use azure_core::http::headers::{HeaderName, Headers};
use serde::Deserialize;

use super::answer::REQUEST_ID;
use super::entra::StaleToken;
use crate::http::kind_of_status;
use crate::refusal::{Refusal, find, retry_after, text};
use crate::unreached::Unreached;
use crate::{Error, ErrorKind, Operation};

const CODE_HEADER: HeaderName = HeaderName::from_static("x-ms-error-code");
const RETRY_AFTER_HEADER: HeaderName = HeaderName::from_static("retry-after");

/// A failed request, before it is known what it was about.
pub(super) struct Failure {
    kind: ErrorKind,
    source: Cause,
}

enum Cause {
    Answer(Refusal),
    NoAnswer(NoAnswer),
    Unreached(Unreached),
}

/// Why no answer came: the causes' own words, without the request's URL, which may carry a SAS.
#[derive(Debug)]
struct NoAnswer {
    words: String,
    hint: Option<&'static str>,
}

/// A server's answer that the protocol does not foresee.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unexpected {
    #[error("the server's answer lacks a field that Azure always sends")]
    MissingField,
    #[error("the server ignored the range that was asked for, or gave another")]
    IgnoredRange,
    #[error("the range begins past the end")]
    PastTheEnd,
    #[error(
        "the listing is not in the order of its names; \
         hint: accounts with a hierarchical namespace (Data Lake) are not supported"
    )]
    Unordered,
}

impl Failure {
    /// The same, meaning something else in the light of what is known beside it.
    pub(super) fn meaning(self, kind: ErrorKind) -> Self {
        Self { kind, ..self }
    }

    fn answer(&self) -> Option<&Refusal> {
        match &self.source {
            Cause::Answer(refusal) => Some(refusal),
            Cause::NoAnswer(_) | Cause::Unreached(_) => None,
        }
    }

    pub(super) fn is_invalid_range(&self) -> bool {
        self.answer().and_then(|answer| answer.status) == Some(416)
    }

    /// Whether blocks that were staged are no longer there: another writer's commit dropped them.
    pub(super) fn is_blocks_gone(&self) -> bool {
        let code = self.answer().map(|answer| answer.code.as_str());
        matches!(code, Some("InvalidBlockList" | "InvalidBlobOrBlock"))
    }

    pub(super) fn on(self, operation: Operation, object: String) -> Error {
        let error = Error::new(operation, object, self.kind);
        match self.source {
            Cause::Answer(mut refusal) => {
                refusal.hint = hint(self.kind, &refusal);
                error.with_source(refusal)
            }
            Cause::NoAnswer(cause) => error.with_source(cause),
            Cause::Unreached(cause) => error.with_source(cause),
        }
    }

    fn of_answer(answer: &RawResponse) -> Self {
        let headers = answer.headers();
        let words = Words::of(answer);
        let refusal = Refusal {
            status: Some(u16::from(answer.status())),
            code: text(headers.get_optional_str(&CODE_HEADER).or(Some(&words.code))),
            message: text(words.message()),
            request_id: headers
                .get_optional_str(&REQUEST_ID)
                .map(|id| text(Some(id))),
            hint: None,
        };
        Self::of_refusal(refusal, time_to_wait(headers))
    }

    fn of_refusal(refusal: Refusal, wait: Option<Duration>) -> Self {
        let kind = kind_of_code(&refusal.code, wait)
            .unwrap_or_else(|| kind_of_status(refusal.status.unwrap_or(0), wait));
        Self {
            kind,
            source: Cause::Answer(refusal),
        }
    }

    fn no_answer(kind: ErrorKind, error: &azure_core::Error) -> Self {
        let hint = match kind {
            ErrorKind::Unauthenticated => {
                Some("check the Azure credentials that this process sees")
            }
            _ => None,
        };
        let words = words_without_urls(error);
        Self {
            kind,
            source: Cause::NoAnswer(NoAnswer { words, hint }),
        }
    }

    /// A token that could not be had: waiting helps only where the server that gives it is away.
    fn of_credential(error: &azure_core::Error) -> Self {
        let kind = match inner_kind(error) {
            AzureKind::HttpResponse { status, .. } => match u16::from(*status) {
                429 => ErrorKind::Throttled(None),
                408 | 500.. => ErrorKind::Unavailable,
                _ => ErrorKind::Unauthenticated,
            },
            AzureKind::Connection | AzureKind::Io => kind_of_transport(error),
            _ => ErrorKind::NoCredentials,
        };
        Self::no_answer(kind, error)
    }
}

impl From<azure_core::Error> for Failure {
    fn from(error: azure_core::Error) -> Self {
        if find::<StaleToken>(&error).is_some() {
            return Self::no_answer(ErrorKind::Unavailable, &error);
        }
        let host = find::<reqwest::Error>(&error).and_then(reqwest::Error::url);
        let host = host.and_then(|url| url.host_str());
        if let Some(unreached) = Unreached::of(&error, host) {
            return Self {
                kind: unreached.kind,
                source: Cause::Unreached(unreached),
            };
        }
        match error.kind() {
            AzureKind::HttpResponse {
                raw_response: Some(answer),
                ..
            } => Self::of_answer(answer),
            AzureKind::HttpResponse { status, .. } => {
                let refusal = Refusal {
                    status: Some(u16::from(*status)),
                    ..Refusal::default()
                };
                Self::of_refusal(refusal, None)
            }
            AzureKind::Credential => Self::of_credential(&error),
            AzureKind::Connection | AzureKind::Io => {
                Self::no_answer(kind_of_transport(&error), &error)
            }
            // An answer that is no Azure: of a proxy, or cut off.
            AzureKind::DataConversion => Self::no_answer(ErrorKind::Unavailable, &error),
            AzureKind::Other => Self::no_answer(ErrorKind::Other, &error),
        }
    }
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)?;
        self.hint.map_or(Ok(()), |hint| write!(f, "; hint: {hint}"))
    }
}

impl StdError for NoAnswer {}

/// The body of a refusal.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Words {
    code: String,
    message: String,
    authentication_error_detail: String,
}

impl Words {
    fn of(answer: &RawResponse) -> Self {
        azure_core::xml::from_xml(answer.body()).unwrap_or_default()
    }

    /// That a SAS is over or has not begun; else the first line, as the request's id and the time that follow it
    /// are known. Other details repeat the signature.
    fn message(&self) -> Option<&str> {
        let detail = Some(self.authentication_error_detail.as_str());
        detail
            .filter(|detail| detail.starts_with("Signature not valid in the specified time frame"))
            .or_else(|| self.message.lines().next())
    }
}

fn time_to_wait(headers: &Headers) -> Option<Duration> {
    retry_after(headers.get_optional_str(&RETRY_AFTER_HEADER))
}

/// The kind of the innermost error of the SDK's, which the ones around it only rename.
fn inner_kind(error: &azure_core::Error) -> &AzureKind {
    let mut kind = error.kind();
    let mut cause: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(error) = cause {
        if let Some(inner) = error.downcast_ref::<azure_core::Error>() {
            kind = inner.kind();
        }
        cause = error.source();
    }
    kind
}

fn kind_of_transport(error: &azure_core::Error) -> ErrorKind {
    match find::<reqwest::Error>(error) {
        Some(error) if error.is_timeout() => ErrorKind::TimedOut,
        Some(error) if error.is_builder() => ErrorKind::Invalid,
        Some(_) | None => ErrorKind::Unavailable,
    }
}

/// The words of an error and its causes. reqwest's own are left out: they repeat the URL.
fn words_without_urls(error: &azure_core::Error) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        let word = error.to_string();
        let known = words.iter().any(|known| known.contains(&word));
        if !error.is::<reqwest::Error>() && !known {
            words.push(word);
        }
        cause = error.source();
    }
    text(Some(&words.join(": ")))
}

/// The meaning of Azure's error codes; `None` where the status has to tell.
fn kind_of_code(code: &str, wait: Option<Duration>) -> Option<ErrorKind> {
    Some(match code {
        "BlobNotFound" => ErrorKind::NotFound,
        "ContainerNotFound" | "ContainerBeingDeleted" | "ContainerDisabled" => {
            ErrorKind::StoreMissing
        }
        // The last: a SAS that allows creating, but not replacing.
        "BlobAlreadyExists" | "ConditionNotMet" | "UnauthorizedBlobOverwrite" => {
            ErrorKind::AlreadyExists
        }
        "AuthenticationFailed" | "InvalidAuthenticationInfo" | "NoAuthenticationInformation" => {
            ErrorKind::Unauthenticated
        }
        "AuthorizationFailure"
        | "AuthorizationPermissionMismatch"
        | "AuthorizationProtocolMismatch"
        | "AuthorizationResourceTypeMismatch"
        | "AuthorizationServiceMismatch"
        | "AuthorizationSourceIPMismatch"
        | "InsufficientAccountPermissions"
        | "AccountIsDisabled"
        | "KeyBasedAuthenticationNotPermitted"
        | "PublicAccessNotPermitted"
        | "BlobImmutableDueToLegalHold"
        | "BlobImmutableDueToPolicy"
        | "LeaseIdMissing"
        | "LeaseIdMismatchWithBlobOperation" => ErrorKind::PermissionDenied,
        "ServerBusy" | "TooManyRequests" => ErrorKind::Throttled(wait),
        "InternalError" => ErrorKind::Unavailable,
        "OperationTimedOut" => ErrorKind::TimedOut,
        "Md5Mismatch" | "Crc64Mismatch" => ErrorKind::Corrupted,
        "InvalidRange"
        | "InvalidResourceName"
        | "InvalidBlobType"
        | "InvalidHeaderValue"
        | "OutOfRangeInput"
        | "RequestBodyTooLarge"
        | "BlobArchived"
        | "BlobBeingRehydrated" => ErrorKind::Invalid,
        "SnapshotsPresent" => ErrorKind::Other,
        _ => return None,
    })
}

fn hint(kind: ErrorKind, refusal: &Refusal) -> Option<&'static str> {
    match (kind, refusal.code.as_str()) {
        (_, "KeyBasedAuthenticationNotPermitted") => {
            Some("this account takes no account keys; use a managed or workload identity")
        }
        (_, "AuthorizationFailure") => {
            Some("the account's firewall also answers so; check its network rules")
        }
        (_, "LeaseIdMissing" | "LeaseIdMismatchWithBlobOperation") => {
            Some("the blob is leased; break the lease first")
        }
        (_, "BlobArchived" | "BlobBeingRehydrated") => {
            Some("the blob is in the Archive tier; bring it back to Hot, Cool or Cold first")
        }
        (ErrorKind::Unauthenticated, _) => {
            Some("check the Azure credentials that this process sees, and this host's clock")
        }
        (ErrorKind::Invalid | ErrorKind::Other, _)
            if matches!(refusal.status, Some(300..400 | 404)) =>
        {
            Some("no blob service answers so; check the endpoint's URL")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, code: &str) -> ErrorKind {
        let refusal = Refusal {
            status: Some(status),
            code: code.to_owned(),
            ..Refusal::default()
        };
        Failure::of_refusal(refusal, None).kind
    }

    #[test]
    fn only_an_answer_that_names_the_blob_proves_its_absence() {
        assert_eq!(kind(404, "BlobNotFound"), ErrorKind::NotFound);
        assert_eq!(kind(404, "ContainerNotFound"), ErrorKind::StoreMissing);
        assert_eq!(kind(404, ""), ErrorKind::Other);
        assert_eq!(kind(404, "ResourceNotFound"), ErrorKind::Other);
    }

    #[test]
    fn codes_come_before_the_status() {
        assert_eq!(kind(409, "BlobAlreadyExists"), ErrorKind::AlreadyExists);
        assert_eq!(kind(412, "ConditionNotMet"), ErrorKind::AlreadyExists);
        assert_eq!(kind(412, "LeaseIdMissing"), ErrorKind::PermissionDenied);
        assert_eq!(
            kind(409, "BlobImmutableDueToPolicy"),
            ErrorKind::PermissionDenied
        );
        assert_eq!(kind(409, "ContainerBeingDeleted"), ErrorKind::StoreMissing);
        assert_eq!(
            kind(403, "AuthenticationFailed"),
            ErrorKind::Unauthenticated
        );
        assert_eq!(
            kind(403, "AuthorizationPermissionMismatch"),
            ErrorKind::PermissionDenied
        );
        assert_eq!(kind(403, ""), ErrorKind::PermissionDenied);
        assert_eq!(kind(400, "Crc64Mismatch"), ErrorKind::Corrupted);
        assert_eq!(kind(500, "OperationTimedOut"), ErrorKind::TimedOut);
        assert_eq!(kind(503, "ServerBusy"), ErrorKind::Throttled(None));
        assert_eq!(kind(502, ""), ErrorKind::Unavailable);
    }
}
