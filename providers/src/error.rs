//! What a store says when it does not do what it was asked.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// This crate's result.
pub type Result<T> = std::result::Result<T, Error>;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// A failed request: what was done, on which object, and why.
#[derive(Debug, thiserror::Error)]
#[error("could not {operation} {object}: {kind}{}", asked(self.place.as_deref()))]
pub struct Error {
    /// What was being done.
    pub operation: Operation,
    /// The object's full URL, or the store's where no object is concerned.
    pub object: String,
    /// Why it failed.
    pub kind: ErrorKind,
    /// What was asked, where that may be why: endpoint, region, profile, proxy.
    pub place: Option<Arc<str>>,
    /// The store's or the system's own words.
    #[source]
    pub source: Option<Source>,
}

/// The request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Opening a store from its URL.
    Open,
    /// A put or any step of an upload.
    Put,
    /// A read of the body.
    Get,
    /// A look at the object without its body.
    Head,
    /// A listing.
    List,
    /// A delete.
    Delete,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Proven: the store answered that no such object exists.
    NotFound,
    /// A create met an object that is there.
    AlreadyExists,
    /// Proven: the bucket, container or root directory does not exist.
    StoreMissing,
    /// The credentials are known and lack a right.
    PermissionDenied,
    /// There are no credentials in any of the places where they are looked for.
    NoCredentials,
    /// The store does not accept the credentials.
    Unauthenticated,
    /// The store has no room left.
    NoSpace,
    /// The bytes that arrived are not the bytes that were stored or sent.
    Corrupted,
    /// The store asked to slow down, perhaps for a stated time.
    Throttled(Option<Duration>),
    /// The certificate of the server is not trusted.
    Untrusted(Distrust),
    /// The server's name does not exist. Names may be slow to appear, so that it is tried again for a short time.
    NoSuchHost,
    /// The connection failed or the store answered with a server error; another try may do.
    Unavailable,
    /// No answer in time; another try may do.
    TimedOut,
    /// Another writer changed the object or upload at the same moment; another try may do.
    Conflict,
    /// The overall deadline passed; the source tells the last failure.
    DeadlineExceeded,
    /// The URL, key or request is wrong and stays wrong.
    Invalid,
    /// The server lacks something that is relied on.
    Unsupported,
    /// Anything else; not retried.
    Other,
}

/// Why a server's certificate is not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// The authority that signed it is not known.
    Authority,
    /// It is for another host.
    Name,
    /// It has expired, or is not valid yet.
    Time,
    /// Anything else.
    Other,
}

impl Error {
    /// An error without the store's own words.
    pub fn new(operation: Operation, object: impl Into<String>, kind: ErrorKind) -> Self {
        Self {
            operation,
            object: object.into(),
            kind,
            place: None,
            source: None,
        }
    }

    /// The same error with its cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same error, which names what was asked where that may be why it failed.
    #[must_use]
    pub(crate) fn at(mut self, place: Option<&Arc<str>>) -> Self {
        // What the store itself said of the object needs no address.
        let may_be_why = !matches!(
            self.kind,
            ErrorKind::NotFound
                | ErrorKind::AlreadyExists
                | ErrorKind::Corrupted
                | ErrorKind::Conflict
                | ErrorKind::NoSpace
        );
        if may_be_why && self.place.is_none() {
            self.place = place.cloned();
        }
        self
    }

    /// The failure of a request that was tried until its time was over, with this one as its cause.
    pub(crate) fn after_the_deadline(mut self) -> Self {
        // Once is enough.
        let place = self.place.take();
        let mut error = Self::new(
            self.operation,
            self.object.clone(),
            ErrorKind::DeadlineExceeded,
        );
        error.place = place;
        error.with_source(self)
    }

    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Throttled(_)
                | ErrorKind::Unavailable
                | ErrorKind::TimedOut
                | ErrorKind::Conflict
                | ErrorKind::NoSuchHost
        )
    }

    /// Whether the store proved that the object is not there.
    pub fn is_not_found(&self) -> bool {
        self.kind == ErrorKind::NotFound
    }
}

fn asked(place: Option<&str>) -> String {
    place.map_or_else(String::new, |place| format!(" ({place})"))
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Put => "write",
            Self::Get => "read",
            Self::Head => "look at",
            Self::List => "list",
            Self::Delete => "delete",
        })
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "no such object",
            Self::AlreadyExists => "it already exists",
            Self::StoreMissing => "the bucket, container or directory does not exist",
            Self::PermissionDenied => "permission denied",
            Self::NoCredentials => "no credentials were found",
            Self::Unauthenticated => "the store does not accept the credentials",
            Self::NoSpace => "the store has no space left",
            Self::Corrupted => "the bytes are damaged",
            Self::Throttled(None) => "the store asked to slow down",
            Self::Throttled(Some(wait)) => {
                let seconds = wait.as_secs();
                return write!(f, "the store asked to slow down and to wait {seconds} s");
            }
            Self::Untrusted(_) => "the server's TLS certificate is not trusted",
            Self::NoSuchHost => "the server's host name does not exist",
            Self::Unavailable => "the store could not be reached or failed",
            Self::TimedOut => "the store did not answer in time",
            Self::Conflict => "another request changed it at the same moment",
            Self::DeadlineExceeded => "the deadline passed",
            Self::Invalid => "the request is not valid",
            Self::Unsupported => "the server cannot do what Walhalla relies on",
            Self::Other => "the request failed",
        })
    }
}
