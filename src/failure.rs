//! What every error answers besides its text: what kind of failure it is, and what the user can do about it.
//!
//! Each error implements [`Failure`] in its own file, and hands questions about a lower error down to that error. So there
//! is one answer to "is the object damaged?", whichever way the error took.

use std::borrow::Cow;

use walhalla_providers::{Distrust, Error as StoreError, ErrorKind, Operation};

/// What to do next.
pub type Advice = Cow<'static, str>;

/// The kinds of failure that callers tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The content of an object was read, and it is not what it must be.
    Damaged,
    /// An object is encrypted, and the identities at hand do not open it. A changed bit in the object's header looks the same.
    OtherKey,
    /// One object is not there, or this user may not read it. Others can be read.
    Inaccessible,
    /// An object is encrypted, and no identity is at hand. The object may be sound.
    Locked,
    /// What was asked for is proven not to be in the archive.
    Absent,
    /// The recovery target cannot be reached.
    Unreachable,
    /// The command line or the settings are wrong.
    Usage,
    /// Anything else. It says nothing about an object.
    Other,
}

/// An error that knows its kind and what helps.
pub trait Failure: std::error::Error {
    /// The kind of failure.
    fn class(&self) -> Class {
        Class::Other
    }

    /// What the user can do.
    fn hint(&self) -> Option<Advice>;

    /// Whether the fault is an object's own and not one of the way to it: another object may be read.
    fn is_of_the_object(&self) -> bool {
        match self.class() {
            Class::Damaged | Class::OtherKey | Class::Inaccessible => true,
            Class::Locked | Class::Absent | Class::Unreachable | Class::Usage | Class::Other => {
                false
            }
        }
    }

    /// Whether what was found in an object is the fault, or what opens it is missing: the store itself did what it was asked.
    fn is_of_an_objects_content(&self) -> bool {
        matches!(
            self.class(),
            Class::Damaged | Class::OtherKey | Class::Locked
        )
    }

    /// Whether an encrypted object could not be opened here, for whatever reason.
    fn is_locked(&self) -> bool {
        matches!(self.class(), Class::Locked | Class::OtherKey)
    }
}

impl Failure for StoreError {
    fn class(&self) -> Class {
        match self.kind {
            ErrorKind::NotFound => Class::Inaccessible,
            // Nothing was stored that could be damaged.
            ErrorKind::Corrupted if self.operation == Operation::Put => Class::Other,
            ErrorKind::Corrupted => Class::Damaged,
            ErrorKind::Invalid | ErrorKind::NoCredentials => Class::Usage,
            _ => Class::Other,
        }
    }

    fn hint(&self) -> Option<Advice> {
        let text = match self.kind {
            ErrorKind::PermissionDenied if self.object.starts_with("file:") => {
                "run every command as the user whose files these are; on a new host, give that user the number that it had on the \
                 old one"
            }
            ErrorKind::PermissionDenied => {
                "`walhalla check` names the right that is missing; the book's page of each store has the policy that suffices"
            }
            ErrorKind::NoCredentials => {
                "`walhalla config` shows each place where credentials of this store may be, and what is set there; archive_command \
                 has the server's environment and home directory, not yours"
            }
            ErrorKind::Unauthenticated => {
                "correct the credentials, and see that this host's clock is right: `walhalla config` shows from where they come"
            }
            ErrorKind::Untrusted(Distrust::Authority) => {
                "name the authority's certificates, a file in PEM form, in the setting `ca_file` (WALHALLA_CA_FILE); for Google \
                 Cloud Storage in the variable SSL_CERT_FILE too"
            }
            ErrorKind::Untrusted(Distrust::Name) => {
                "write the host in the endpoint as the certificate names it, or give the server a certificate for this host; \
                 `ca_file` does not help here"
            }
            ErrorKind::Untrusted(Distrust::Time) => {
                "renew the server's certificate, or set this host's clock; `ca_file` does not help here"
            }
            ErrorKind::Untrusted(Distrust::Other) => {
                "see which certificate the server has: openssl s_client -connect HOST:PORT -showcerts; the setting `ca_file` names \
                 authorities that are trusted beside the system's"
            }
            ErrorKind::NoSuchHost => {
                "correct the endpoint, the region or the bucket, or this host's DNS settings; with an S3 server of your own, \
                 WALHALLA_S3_FORCE_PATH_STYLE=true keeps the bucket out of the host's name"
            }
            ErrorKind::StoreMissing => {
                "create it, mount it, or correct `store`; nothing was taken as absent"
            }
            ErrorKind::NoSpace => "free space in the store and try again; nothing was lost",
            ErrorKind::Throttled(_) => {
                "try again later; `upload_rate` and `upload_concurrency`, and those of downloads, make fewer requests"
            }
            ErrorKind::Conflict => {
                "try again; if it stays, see what else writes to this place in the store"
            }
            ErrorKind::Invalid => {
                "`walhalla config` shows the store's URL and its settings; the book's page of this store describes them"
            }
            ErrorKind::Unsupported => {
                "`walhalla check` tries all that Walhalla relies on; the book's page of this store says what a server must do"
            }
            ErrorKind::DeadlineExceeded | ErrorKind::Unavailable | ErrorKind::TimedOut => {
                "see whether the store can be reached from here; `retry_timeout` sets how long requests are tried again"
            }
            ErrorKind::Corrupted if self.operation == Operation::Put => {
                "nothing was stored; bytes change on the way again and again: look at this host's memory and its network"
            }
            ErrorKind::Corrupted => {
                "try again; if it stays, the object is damaged in the store: restore from another backup"
            }
            _ => return None,
        };
        Some(text.into())
    }
}
