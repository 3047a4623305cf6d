//! One cluster's part of a store: where things are and what is there.
//!
//! [`layout`] is the only place that spells keys. Nothing here overwrites.

pub mod backups;
pub mod catalog;
pub mod debts;
pub mod deletions;
pub mod entry;
pub mod gaps;
pub mod layout;
pub mod leases;
pub mod marking;
pub mod marks;
pub mod object_error;
pub mod owed;
pub mod ranges;
pub mod reports;
pub mod sending;
pub mod tails;
#[cfg(test)]
mod testing;
mod wal_archive;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use walhalla_postgres::SystemIdentifier;
use walhalla_postgres::summary::SegmentDigest;
use walhalla_providers::{Error as StoreError, ObjectKey};

pub use backups::LATEST;
pub use catalog::{Catalog, ChainError, ChainProblem};
pub use entry::{BackupEntry, BackupId, BackupKind};
pub use layout::Layout;
pub use object_error::{DamagedObject, ObjectError};
pub use wal_archive::{Absence, ArchivedFile, Forms, HISTORY_LIMIT_BYTES, LaterWal, WalListing};

use crate::failure::{Advice, Class, Failure};
use crate::pipeline::encryption::{ContentDigest, HEADER_BYTES, has_header, named_digest};
use crate::pipeline::{
    Codec, Content, Encryption, Identities, Locked, ObjectReader, OpenError, Ranged, SharedHash,
    StoredHash, Trailed, streams, trailer, unpack,
};
use crate::session::StoreSession;

/// One cluster's part of a store.
#[derive(Clone, Debug)]
pub struct Repository {
    session: StoreSession,
    layout: Layout,
    identities: Identities,
}

/// An object's content, and what is known of the object once it was read to its end.
pub struct Watched {
    /// What it holds.
    pub content: Content,
    /// Of the stored bytes.
    pub hash: SharedHash,
    /// Whether it ended in a trailer.
    pub has_trailer: Arc<AtomicBool>,
}

/// A cluster of a store that holds several: `pg_upgrade` begins another one beside the old.
#[derive(Debug)]
pub struct FoundCluster {
    /// Which one.
    pub system_identifier: SystemIdentifier,
    /// Its newest backup and the server's version then; `None` where there is none that can be read.
    pub newest: Option<(BackupId, String)>,
}

impl FoundCluster {
    /// The cluster of `repository`, of which `catalog` has at least the newest backup.
    pub fn of(repository: &Repository, catalog: &Catalog) -> Self {
        let newest = catalog.backups().last();
        Self {
            system_identifier: repository.layout.system_identifier(),
            newest: newest.map(|backup| (backup.id.clone(), backup.server_version.clone())),
        }
    }
}

impl std::fmt::Display for FoundCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.newest {
            Some((id, version)) => write!(
                f,
                "cluster {} (PostgreSQL {version}, newest backup {id})",
                self.system_identifier
            ),
            None => write!(f, "cluster {} (no backup)", self.system_identifier),
        }
    }
}

/// What can be wrong with a repository.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One object cannot be used, or the store failed.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A backup that is not in the catalog.
    #[error("{} of cluster {cluster} in {store}", no_backup(id))]
    NoSuchBackup {
        /// What was asked for.
        id: String,
        /// The cluster.
        cluster: SystemIdentifier,
        /// The backup whose id is most like it.
        nearest: Option<BackupId>,
        /// Where it was looked for.
        store: String,
    },
    /// A backup whose entry cannot be read, as the catalog found.
    #[error(transparent)]
    Entry(Arc<Error>),
    /// A backup that cannot be restored, because of another one that it stands on.
    #[error("{error}")]
    BrokenChain {
        /// Which one, and why.
        error: ChainError,
        /// What is wrong with its entry, when it is damaged.
        #[source]
        source: Option<Arc<Error>>,
    },
    /// A permanent delta stands on a backup that shall be impermanent.
    #[error("backup {backup} stays permanent: {delta}, which stands on it, is permanent")]
    KeptByDelta {
        /// The backup.
        backup: BackupId,
        /// The newest delta that keeps it.
        delta: BackupId,
    },
    /// Others marked the same backup again and again.
    #[error("backup {backup} could not be marked: others mark it at the same moment")]
    MarkedByOthers {
        /// The backup.
        backup: BackupId,
    },
    /// No cluster at all.
    #[error("{store} holds no cluster: no WAL and no backup was ever stored below this URL")]
    NoCluster {
        /// The store.
        store: String,
    },
    /// Nothing of the cluster that was asked for.
    #[error("{store} holds nothing of cluster {system_identifier}{}", others(.found))]
    NothingOfCluster {
        /// The clusters that it holds.
        found: Vec<SystemIdentifier>,
        /// The store.
        store: String,
        /// The cluster.
        system_identifier: SystemIdentifier,
    },
    /// Something that a later version may have written, and without which it is not known what may be done.
    #[error("{object} is no {what} that this version reads: {reason}")]
    Unknown {
        /// Its URL.
        object: String,
        /// What it should be.
        what: &'static str,
        /// Why it is not.
        reason: object_error::Reason,
    },
    /// Something that was there a moment ago.
    #[error("{what} was deleted meanwhile")]
    Deleted {
        /// A backup or WAL, in words.
        what: String,
    },
    /// Backups or WAL that a deletion takes which runs now.
    #[error("what is needed here is being deleted by {user} ({request})")]
    BeingDeleted {
        /// Who deletes.
        user: String,
        /// What was asked for.
        request: String,
    },
    /// More than one, and none was chosen.
    #[error("{store} holds several clusters: {}", .found.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    SeveralClusters {
        /// The store.
        store: String,
        /// The choices.
        found: Vec<FoundCluster>,
    },
}

impl Error {
    /// The object that it tells of, if it is one.
    pub fn object(&self) -> Option<&str> {
        match self {
            Self::Object(error) => Some(error.object()),
            Self::Entry(error) => error.object(),
            Self::Unknown { object, .. } => Some(object),
            Self::NoSuchBackup { .. }
            | Self::BrokenChain { .. }
            | Self::KeptByDelta { .. }
            | Self::MarkedByOthers { .. }
            | Self::Deleted { .. }
            | Self::BeingDeleted { .. }
            | Self::NoCluster { .. }
            | Self::NothingOfCluster { .. }
            | Self::SeveralClusters { .. } => None,
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Object(error.into())
    }
}

fn no_backup(id: &str) -> String {
    match id {
        "LATEST" => "there is no backup that can be restored".to_owned(),
        id => format!("there is no backup {id:?}"),
    }
}

fn others(found: &[SystemIdentifier]) -> String {
    match found {
        [] => "; it holds no cluster at all".to_owned(),
        found => {
            let shown: Vec<String> = { found.iter() }.map(|id| format!("cluster {id}")).collect();
            format!("; it holds {}", shown.join(", "))
        }
    }
}

impl Failure for Error {
    fn class(&self) -> Class {
        match self {
            Self::Object(error) => error.class(),
            Self::Entry(error) => error.class(),
            Self::Unknown { .. } => Class::Damaged,
            Self::NoSuchBackup { .. }
            | Self::BrokenChain { .. }
            | Self::KeptByDelta { .. }
            | Self::MarkedByOthers { .. }
            | Self::Deleted { .. }
            | Self::BeingDeleted { .. }
            | Self::NoCluster { .. }
            | Self::NothingOfCluster { .. }
            | Self::SeveralClusters { .. } => Class::Other,
        }
    }

    fn hint(&self) -> Option<Advice> {
        let text = match self {
            Self::Object(error) => return error.hint(),
            Self::Entry(error) => return error.hint(),
            Self::SeveralClusters { found, .. } => {
                let first = { found.first() }.map(|found| format!(" {}", found.system_identifier));
                let hint = format!(
                    "choose one of them with --system-identifier{}, or for good with the setting `cluster`",
                    first.unwrap_or_default()
                );
                return Some(hint.into());
            }
            Self::NoCluster { .. } => {
                "see that bucket and prefix in `store` are spelt right and, for a directory, that it is mounted (`walhalla config` shows \
                 where the setting comes from); if the store is new, archive WAL and take a backup first"
            }
            Self::NothingOfCluster { .. } => {
                "see that `store` and the system identifier are right and, for a directory, that it is mounted; nothing was taken as \
                 absent"
            }
            Self::NoSuchBackup {
                nearest: Some(nearest),
                ..
            } => {
                let hint =
                    format!("did you mean {nearest}? `walhalla backup-list` shows the backups");
                return Some(hint.into());
            }
            Self::NoSuchBackup { id, .. } if id == "LATEST" => {
                "`walhalla backup-list` shows the backups there are; `walhalla backup-push PGDATA` takes one"
            }
            Self::NoSuchBackup { .. } => "`walhalla backup-list` shows the backups",
            Self::BrokenChain { .. } => {
                "`walhalla backup-list` shows the backups and what each stands on; take another one, or bring back what is \
                 missing from a copy of the store"
            }
            Self::KeptByDelta { delta, .. } => {
                return Some(format!("first: walhalla backup-mark {delta} --impermanent").into());
            }
            Self::MarkedByOthers { .. } => "try again",
            Self::Unknown { .. } => {
                "a later version may have written it: update walhalla on this host"
            }
            Self::Deleted { .. } => "`walhalla backup-list` shows the backups that are left",
            Self::BeingDeleted { .. } => {
                "wait until it has ended, and try again: `walhalla plan` shows what can be reached then"
            }
        };
        Some(text.into())
    }
}

/// Longest object that is read into memory whole: a `backup.json` or a small WAL file.
const SMALL_OBJECT_BYTES: u64 = 64 << 20;

/// Longest content of a WAL file or a summary: that of the longest segment.
pub const WHOLE_OBJECT_LIMIT_BYTES: u64 = 1 << 30;

impl Repository {
    /// The cluster `system_identifier` in `store`.
    pub fn new(
        session: StoreSession,
        identities: Identities,
        system_identifier: SystemIdentifier,
    ) -> Self {
        Self {
            session,
            layout: Layout::new(system_identifier),
            identities,
        }
    }

    /// The cluster that was chosen, or the only one there is.
    ///
    /// # Errors
    /// [`Error::NothingOfCluster`], [`Error::NoCluster`] and [`Error::SeveralClusters`].
    pub fn choose(
        session: StoreSession,
        identities: Identities,
        chosen: Option<SystemIdentifier>,
    ) -> Result<Self, Error> {
        if let Some(system_identifier) = chosen {
            let chosen = Self::new(session, identities, system_identifier);
            chosen.must_be_known()?;
            return Ok(chosen);
        }
        let mut all = Self::all(&session, &identities)?;
        match (all.pop(), all.as_slice()) {
            (None, _) => Err(Error::NoCluster {
                store: session.url().to_owned(),
            }),
            (Some(only), []) => Ok(only),
            (Some(last), others) => Err(Error::SeveralClusters {
                store: session.url().to_owned(),
                found: others.iter().chain([&last]).map(Self::found).collect(),
            }),
        }
    }

    /// Every cluster of a store.
    ///
    /// # Errors
    /// The store's.
    pub fn all(session: &StoreSession, identities: &Identities) -> Result<Vec<Self>, Error> {
        let folders = session.folders("")?;
        let clusters = folders.iter().filter_map(|name| name.parse().ok());
        let of = |cluster| Self::new(session.clone(), identities.clone(), cluster);
        Ok(clusters.map(of).collect())
    }

    /// What tells the cluster from others, as far as it can be read.
    fn found(&self) -> FoundCluster {
        FoundCluster::of(self, &self.catalog_of(&[]).unwrap_or_default())
    }

    /// The session with the store.
    pub fn session(&self) -> &StoreSession {
        &self.session
    }

    /// Keys of the cluster.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The same repository, with another time for which failed requests are sent again.
    #[must_use]
    pub fn within(&self, deadline: Duration) -> Self {
        Self {
            session: self.session.within(deadline),
            ..self.clone()
        }
    }

    /// The same repository for WAL files, which are urgent where there is a rate.
    #[must_use]
    pub fn urgent(&self) -> Self {
        Self {
            session: self.session.urgent(),
            ..self.clone()
        }
    }

    /// The same repository, asked by `session`.
    #[must_use]
    pub fn with_session(&self, session: &StoreSession) -> Self {
        Self {
            session: session.clone(),
            ..self.clone()
        }
    }

    /// The store's URL, for messages.
    pub fn store_url(&self) -> &str {
        self.session.url()
    }

    /// Whether an object can be opened here, as far as is known without asking for it.
    pub fn may_open(&self, object: &layout::Object) -> bool {
        object.packing.encryption == Encryption::None || self.identities.are_set()
    }

    /// An object, `stored_bytes` long, that is read in pieces. No request is sent.
    pub fn ranged(&self, object: layout::Object, stored_bytes: u64) -> Ranged {
        let layout::Object { key, packing } = object;
        let (session, identities) = (self.session.clone(), self.identities.clone());
        Ranged::new(session, identities, key, packing, stored_bytes)
    }

    /// Removes objects.
    ///
    /// # Errors
    /// The store's, of the first that it would not remove.
    pub fn remove(&self, keys: &[ObjectKey]) -> Result<(), StoreError> {
        let refused = self.session.delete(keys)?;
        match refused.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    /// The object's full URL, for messages.
    pub fn url(&self, key: &ObjectKey) -> String {
        self.session.object_url(key)
    }

    /// The whole of a small object as it is stored.
    pub fn read_small(&self, key: &ObjectKey) -> Result<Bytes, StoreError> {
        self.session.get(key, SMALL_OBJECT_BYTES)
    }

    /// Opens an object for reading its content.
    ///
    /// # Errors
    /// [`ObjectError::Locked`] for an encrypted one that no identity opens.
    pub fn open(&self, object: &layout::Object) -> Result<Content, Error> {
        let reader = ObjectReader::open(&self.session, &object.key)?;
        self.content(object, reader, Arc::default())
    }

    /// Opens an archived file, also one that is the begin of a segment which was received.
    ///
    /// # Errors
    /// As [`Repository::open`].
    pub fn open_archived(&self, archived: &ArchivedFile) -> Result<Content, Error> {
        match archived.tail() {
            Some(tail) => self.open_tail(tail),
            None => self.open(&archived.object()),
        }
    }

    /// As [`Repository::open`], with what comes to be known of the object while it is read.
    pub fn open_watched(
        &self,
        object: &layout::Object,
        hash: StoredHash,
    ) -> Result<Watched, Error> {
        let (stored, hash) = self.open_stored(object, hash)?;
        let has_trailer = Arc::default();
        let content = self.content(object, stored, Arc::clone(&has_trailer))?;
        Ok(Watched {
            content,
            hash,
            has_trailer,
        })
    }

    /// The bytes as they are stored, which are taken into `hash`.
    pub fn open_stored(
        &self,
        object: &layout::Object,
        hash: StoredHash,
    ) -> Result<(ObjectReader, SharedHash), Error> {
        let mut stored = ObjectReader::open(&self.session, &object.key)?;
        let hash = stored.hash(hash);
        Ok((stored, hash))
    }

    fn content(
        &self,
        object: &layout::Object,
        stored: ObjectReader,
        found: Arc<AtomicBool>,
    ) -> Result<Content, Error> {
        let name = object.name();
        let has_trailer = self.layout.has_trailer(object);
        let trailed = has_trailer.then_some(Trailed { name, found });
        unpack(stored, object.packing, &self.identities, trailed).map_err(|error| match error {
            OpenError::Locked(reason) => self.locked(&object.key, reason),
            OpenError::Unreadable(source) => self.damaged(&object.key, source),
        })
    }

    /// SHA-256 of an object's content; where no identity opens it, the digest that its header names.
    ///
    /// # Errors
    /// [`ObjectError::Locked`] where the header names none; [`ObjectError::Damaged`] for more than [`WHOLE_OBJECT_LIMIT_BYTES`].
    pub fn content_digest(&self, object: &layout::Object) -> Result<ContentDigest, Error> {
        let locked = match self.open(object) {
            Ok(content) => {
                let sha256 = self.digest_of(object, content, streams::sha256);
                return sha256.map(ContentDigest::Sha256);
            }
            Err(error) if error.is_locked() => error,
            Err(error) => return Err(error),
        };
        self.named_digest(object)?.ok_or(locked)
    }

    /// SHA-256 of an object's content; where no identity opens it, the one that an earlier version named in its header.
    ///
    /// # Errors
    /// As [`Repository::content_digest`].
    pub fn content_sha256(&self, object: &layout::Object) -> Result<[u8; 32], Error> {
        match self.content_digest(object)? {
            ContentDigest::Sha256(sha256) => Ok(sha256),
            ContentDigest::Keyed(_) => Err(self.locked(&object.key, Locked::NoIdentity)),
        }
    }

    /// Whether the content of an archived segment has the digest `content`. The `trailer` with which it was stored shows it by
    /// a small request; where it shows nothing, all of the file is read.
    ///
    /// # Errors
    /// As [`Repository::content_digest`]; [`ObjectError::Locked`] too where the header tells another kind of digest.
    pub fn has_content(
        &self,
        archived: &ArchivedFile,
        content: SegmentDigest,
        trailer: Option<[u8; 32]>,
    ) -> Result<bool, Error> {
        if trailer.is_some() && self.trailer(archived)? == trailer {
            return Ok(true);
        }
        let object = archived.object();
        if archived.tail().is_some() {
            // It grows.
            return Ok(false);
        }
        match content {
            SegmentDigest::Sha256(known) => Ok(self.content_sha256(&object)? == known),
            SegmentDigest::Blake3(known) => {
                let content = self.open(&object)?;
                Ok(self.digest_of(&object, content, streams::blake3)? == known)
            }
        }
    }

    /// The checksum in a file's trailer; `None` where there is none, or no identity opens it.
    pub fn trailer(&self, archived: &ArchivedFile) -> Result<Option<[u8; 32]>, Error> {
        let object = &archived.object();
        let has_one = object.packing.codec != Codec::None && self.layout.has_trailer(object);
        if archived.tail().is_some() || !has_one {
            return Ok(None);
        }
        let ranged = self.ranged(object.clone(), archived.stored_bytes);
        match ranged.last(trailer::TRAILER_BYTES as u64) {
            Ok(end) => Ok(trailer::checksum(&end)),
            Err(OpenError::Locked(_)) => Ok(None),
            Err(OpenError::Unreadable(source)) => Err(self.damaged(&object.key, source)),
        }
    }

    fn digest_of(
        &self,
        object: &layout::Object,
        content: Content,
        digest: impl FnOnce(&mut std::io::Take<Content>) -> std::io::Result<[u8; 32]>,
    ) -> Result<[u8; 32], Error> {
        let mut bounded = std::io::Read::take(content, WHOLE_OBJECT_LIMIT_BYTES + 1);
        let digest = digest(&mut bounded);
        let digest = digest.map_err(|source| self.damaged(&object.key, source))?;
        if bounded.limit() > 0 {
            return Ok(digest);
        }
        let most = format!("more than {WHOLE_OBJECT_LIMIT_BYTES} bytes");
        Err(self.unfit(&object.key, "it is longer than such a file can be", most))
    }

    /// The digest that an encrypted object's header names of its content.
    pub fn named_digest(&self, object: &layout::Object) -> Result<Option<ContentDigest>, Error> {
        match object.packing.encryption {
            Encryption::None => Ok(None),
            Encryption::Age => Ok(named_digest(&self.begin(object)?)),
        }
    }

    /// Whether an encrypted object begins as it must, which needs no identity to see.
    ///
    /// # Errors
    /// [`ObjectError::Damaged`] when it does not.
    pub fn check_header(&self, object: &layout::Object) -> Result<(), Error> {
        if has_header(&self.begin(object)?) {
            return Ok(());
        }
        let reason = "it was cut or is something else";
        Err(self.unfit(&object.key, "it does not begin with an age header", reason))
    }

    fn begin(&self, object: &layout::Object) -> Result<Vec<u8>, Error> {
        let mut reader = ObjectReader::open(&self.session, &object.key)?;
        let mut begin = vec![0; HEADER_BYTES];
        let read = streams::read_full(&mut reader, &mut begin);
        let length = read
            .map_err(|source| self.damaged(&object.key, source))?
            .len();
        begin.truncate(length);
        Ok(begin)
    }

    /// The error for an object whose content could not be read to its end.
    ///
    /// A store's error or one of this kind inside of `source` is returned as it is.
    pub fn damaged(&self, key: &ObjectKey, source: std::io::Error) -> Error {
        let source = match source.downcast::<StoreError>() {
            Ok(store_error) => return store_error.into(),
            Err(source) => source,
        };
        source
            .downcast()
            .unwrap_or_else(|source| self.unfit(key, "its content cannot be unpacked", source))
    }

    /// The error for an object that is not what was expected: `finding` says so in words, and `source` says why.
    pub fn unfit(
        &self,
        key: &ObjectKey,
        finding: &'static str,
        source: impl Into<object_error::Reason>,
    ) -> Error {
        ObjectError::unfit(self.url(key), finding, source).into()
    }

    /// The error for an object that a later version may have written: `what` says what it should be.
    pub fn unknown(
        &self,
        key: &ObjectKey,
        what: &'static str,
        reason: impl Into<object_error::Reason>,
    ) -> Error {
        Error::Unknown {
            object: self.url(key),
            what,
            reason: reason.into(),
        }
    }

    /// The error for an encrypted object that cannot be opened here.
    pub fn locked(&self, key: &ObjectKey, reason: Locked) -> Error {
        let object = self.url(key);
        ObjectError::Locked { object, reason }.into()
    }
}
