//! What is wrong with one object of the store, whoever reads it.

use std::fmt;

use walhalla_postgres::wal::{Mismatch, record};
use walhalla_postgres::{Lsn, WalFileName};
use walhalla_providers::Error as StoreError;

use crate::failure::{Advice, Class, Failure};
use crate::pipeline::Locked;

/// A reason that a parser, a codec or a comparison gives.
pub type Reason = Box<dyn std::error::Error + Send + Sync>;

/// Why an object, or the store as a whole, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file of a directory store that this user may not read.
    #[error(transparent)]
    Denied(StoreError),
    /// An object's content is not what it must be.
    #[error(transparent)]
    Damaged(#[from] DamagedObject),
    /// An archived WAL file does not belong under its name, or the WAL in it is damaged.
    #[error("{object} {}: {mismatch}", wrong_with(*.file, .mismatch))]
    WalMismatch {
        /// The object.
        object: String,
        /// What it should have been.
        file: WalFileName,
        /// How it differs.
        mismatch: Mismatch,
    },
    /// A record that is whole and that this program does not understand.
    #[error("the record at {lsn} in {object} cannot be understood: {damage}")]
    UnknownRecord {
        /// The object.
        object: String,
        /// Where the record begins.
        lsn: Lsn,
        /// What is not understood.
        damage: record::RecordNotUnderstood,
    },
    /// An encrypted object that cannot be opened here.
    #[error("{object} is encrypted, and {reason}")]
    Locked {
        /// The object.
        object: String,
        /// What is missing.
        #[source]
        reason: Locked,
    },
    /// One file is archived in two forms with different content.
    #[error("{first} and {second} are the same WAL file with different content")]
    TwoContents {
        /// One object.
        first: String,
        /// The other.
        second: String,
    },
}

/// A damaged object. The reason is part of its text, and the reason's own causes are its causes.
#[derive(Debug)]
pub struct DamagedObject {
    /// The object's URL.
    pub object: String,
    /// What is wrong with it.
    pub reason: Reason,
}

/// That a content is not what was expected, and why.
#[derive(Debug, thiserror::Error)]
#[error("{finding}")]
pub struct UnfitContent {
    finding: &'static str,
    /// The parser's or codec's reason.
    pub source: Reason,
}

impl fmt::Display for DamagedObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is damaged: {}", self.object, self.reason)
    }
}

impl std::error::Error for DamagedObject {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.reason.source()
    }
}

impl DamagedObject {
    /// What is wrong with the object, if it is of this type, or what lies below [`UnfitContent`] is.
    pub fn reason<E: std::error::Error + 'static>(&self) -> Option<&E> {
        let unfit = self.reason.downcast_ref::<UnfitContent>();
        let reason = unfit.map_or(&self.reason, |unfit| &unfit.source);
        reason.downcast_ref()
    }
}

impl ObjectError {
    /// The error of an object that is damaged for this reason.
    pub fn damaged(object: String, reason: impl Into<Reason>) -> Self {
        let reason = reason.into();
        Self::Damaged(DamagedObject { object, reason })
    }

    /// The error of an object that is not what was expected: `finding` says so in words, and `source` says why.
    pub fn unfit(object: String, finding: &'static str, source: impl Into<Reason>) -> Self {
        let source = source.into();
        Self::damaged(object, UnfitContent { finding, source })
    }

    /// The URL of the object, or that of the store where no object is concerned.
    pub fn object(&self) -> &str {
        match self {
            Self::Damaged(DamagedObject { object, .. })
            | Self::WalMismatch { object, .. }
            | Self::UnknownRecord { object, .. }
            | Self::Locked { object, .. }
            | Self::TwoContents { second: object, .. } => object,
            Self::Store(error) | Self::Denied(error) => &error.object,
        }
    }
}

impl Failure for ObjectError {
    fn class(&self) -> Class {
        match self {
            // A key that is not valid came from another object, and not from the user.
            Self::Store(error) if error.class() == Class::Usage => Class::Other,
            Self::Store(error) => error.class(),
            Self::Denied(_) => Class::Inaccessible,
            Self::Damaged(_)
            | Self::WalMismatch { .. }
            | Self::UnknownRecord { .. }
            | Self::TwoContents { .. } => Class::Damaged,
            Self::Locked { reason, .. } => reason.class(),
        }
    }

    fn hint(&self) -> Option<Advice> {
        let text = match self {
            Self::Store(error) => return error.hint(),
            Self::Denied(_) => {
                "give it back to the user whose store it is (chown), and run every command as that user"
            }
            Self::Damaged(_) => {
                "the object cannot be used; restore from another backup, or bring the object back from a copy of the store"
            }
            Self::WalMismatch { mismatch, .. } if mismatch.is_damage() => {
                "restore to a point before it, or bring the object back from a copy of the store"
            }
            Self::WalMismatch { .. } => {
                "another server archived this file under this name: see which one (`walhalla wal-show`), and restore from a backup of \
                 the history that you want, or to a point before this file"
            }
            Self::UnknownRecord { .. } => "a newer Walhalla may; please report it",
            Self::Locked { reason, .. } => return reason.hint(),
            Self::TwoContents { .. } => {
                "two servers archived to this store; keep the one that belongs to the history you want"
            }
        };
        Some(text.into())
    }
}

/// What is wrong with an archived WAL file, in a word.
fn wrong_with(file: WalFileName, mismatch: &Mismatch) -> String {
    if mismatch.is_damage() {
        "is damaged".to_owned()
    } else {
        format!("is not {file}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output;
    use crate::repository;
    use walhalla_postgres::wal::reader::BrokenRecord;
    use walhalla_providers::{ErrorKind, Operation};

    const URL: &str = "file:///store/object";

    fn wal(mismatch: Mismatch) -> ObjectError {
        ObjectError::WalMismatch {
            object: URL.to_owned(),
            file: "000000010000000000000001".parse().unwrap(),
            mismatch,
        }
    }

    #[test]
    fn a_damaged_object_is_told_once_with_its_reason_and_the_causes_of_that() {
        let cause = std::io::Error::other("no frame");
        let error = ObjectError::unfit(URL.to_owned(), "its content cannot be unpacked", cause);
        let head = format!("{URL} is damaged: its content cannot be unpacked");
        assert_eq!(error.to_string(), head);
        assert_eq!(output::chain(&error), format!("{head}: no frame"));
        let ObjectError::Damaged(damaged) = error else {
            unreachable!();
        };
        assert!(damaged.reason::<std::io::Error>().is_some());
        let bare = ObjectError::damaged(URL.to_owned(), BrokenRecord::Crc(Lsn(1)));
        let text = format!("{URL} is damaged: the record at 0/1 has a wrong CRC");
        assert_eq!(output::chain(&bare), text);
    }

    #[test]
    fn an_object_is_at_fault_whatever_the_way_of_the_error() {
        let store = |kind| StoreError::new(Operation::Get, URL, kind);
        for (kind, class) in [
            (ErrorKind::NotFound, Class::Inaccessible),
            (ErrorKind::Corrupted, Class::Damaged),
            (ErrorKind::PermissionDenied, Class::Other),
            (ErrorKind::Unavailable, Class::Other),
            (ErrorKind::Invalid, Class::Other),
        ] {
            let error = repository::Error::from(store(kind));
            assert_eq!(error.class(), class, "{kind}");
            let wrapped = crate::contents::Error::from(error);
            assert_eq!(wrapped.class(), class, "{kind}");
            assert_eq!(wrapped.is_of_the_object(), class != Class::Other, "{kind}");
        }
        let denied = ObjectError::Denied(store(ErrorKind::PermissionDenied));
        assert!(denied.is_of_the_object());
        let unstored = StoreError::new(Operation::Put, URL, ErrorKind::Corrupted);
        assert!(!unstored.is_of_the_object());
    }

    #[test]
    fn only_a_missing_identity_leaves_an_encrypted_object_blameless() {
        let locked = |reason| ObjectError::Locked {
            object: URL.to_owned(),
            reason,
        };
        let unset = locked(Locked::NoIdentity);
        assert!(unset.is_locked() && !unset.is_of_the_object());
        let others = locked(Locked::OtherRecipients("keys".into()));
        assert!(others.is_locked() && others.is_of_the_object());
    }

    #[test]
    fn lost_wal_and_another_servers_wal_have_different_hints() {
        let lost = wal(Mismatch::Cut { at: Lsn(1) }).hint().unwrap();
        assert!(lost.contains("a point before it"), "{lost}");
        let foreign = wal(Mismatch::Text).hint().unwrap();
        assert!(
            foreign.contains("another server archived this file"),
            "{foreign}"
        );
    }
}
