//! The backups of a cluster. A backup exists once its `backup.json` does.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use walhalla_postgres::control::page_size;
use walhalla_postgres::timeline::Ancestor;
use walhalla_postgres::{History, Limits, Lsn, SegmentSize, SystemIdentifier, TimelineId, Version};
use walhalla_providers::{Error as StoreError, ErrorKind, PutMode};

use super::{Error, Repository};
use crate::output;
use crate::server::data_directory::Tablespace;

/// The greatest format of `backup.json` that is read; see [`BackupKind::format`] for what is written.
pub const FORMAT: u32 = 2;

/// What stands for the id of the newest backup.
pub const LATEST: &str = "LATEST";

/// A backup's start time and kind: `20261121T043000Z-F`. Ids sort by time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId(String);

/// Whether a backup stands on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupKind {
    /// Every file, whole.
    Full,
    /// What changed since its parent.
    Delta,
}

/// `backup.json`: what there is to know of a backup without reading it. Holds no user data.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackupEntry {
    /// [`BackupKind::format`] of its kind.
    pub format: u32,
    /// The backup's name.
    pub id: BackupId,
    /// Full or delta.
    pub kind: BackupKind,
    /// The backup that a delta is based on.
    pub parent: Option<BackupId>,
    /// SHA-256 of that backup's manifest as it is stored: an id is a name, and may be another backup's; older programs did
    /// not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_manifest: Option<String>,
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// Timeline of the start.
    pub timeline: TimelineId,
    /// Ancestors of `timeline`, oldest first.
    pub history: Vec<Ancestor>,
    /// Replay begins here.
    pub start_lsn: Lsn,
    /// Replay must come at least here.
    pub stop_lsn: Lsn,
    /// Whether a standby was backed up; older programs did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of_standby: Option<bool>,
    /// `CHECKPOINT LOCATION` of its label, as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_lsn: Option<Lsn>,
    /// The server's clock before the start.
    pub start_time: Timestamp,
    /// The server's clock after the stop.
    pub stop_time: Timestamp,
    /// Of a standby's backup: when the last transaction in it ended, by the clock of the server that ran it. A standby's own
    /// clock tells nothing of that. See [`BackupEntry::data_end`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replayed_time: Option<Timestamp>,
    /// Where the record of that transaction's end begins, if it is in the WAL between start and stop: what shows that WAL is
    /// the backup's to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replayed_lsn: Option<Lsn>,
    /// `txid_current_snapshot()` just before the stop: what it sees of transactions is in the backup.
    pub stop_snapshot: String,
    /// Major version.
    pub postgres_version: Version,
    /// `server_version`.
    pub server_version: String,
    /// What the server that restores it must not be below; older programs did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Length of a WAL segment.
    pub wal_segment_size: SegmentSize,
    /// Length of a WAL page.
    pub wal_block_size: u32,
    /// Whether data pages carry checksums.
    pub data_checksums: bool,
    /// Blocks that were damaged in the data directory.
    pub corrupt_blocks: Vec<CorruptBlock>,
    /// Length of all files as they are restored.
    pub size_bytes: u64,
    /// Number of files.
    pub files: u64,
    /// Length of all objects but this one.
    pub stored_bytes: u64,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// What of the data directory is not in the backup because it is neither a file nor a directory: links, most of all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
    /// To whom the objects are encrypted; to nobody when empty.
    #[serde(default)]
    pub encrypted_to: Vec<String>,
    /// The tar parts, in order; the last holds `backup_label` and `global/pg_control`.
    pub parts: Vec<StoredPart>,
    /// Name of the part that holds `pg_class`, `pg_namespace` and `pg_database`, which name relations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalogs: Option<String>,
    /// The manifest.
    pub manifest: StoredPart,
    /// Which files of relations it holds, and their lengths; never encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relations: Option<StoredPart>,
    /// Where in the parts each file is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<StoredPart>,
    /// What told which blocks changed since the parent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_blocks: Option<ChangedBlocks>,
    /// The delta out of whose chain this full backup was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged_from: Option<BackupId>,
    /// Kept by every retention rule. In `backup.json`, what was said when it was taken. In what [`Repository`] returns,
    /// what counts: the newest mark, and true where a permanent delta stands on it, as far as the deltas were read.
    pub permanent: bool,
    /// The user's label.
    pub label: Option<String>,
    /// The user's annotations.
    pub annotations: std::collections::BTreeMap<String, String>,
    /// What wrote it.
    pub walhalla_version: String,
}

/// What a backup leaves out, as PostgreSQL's own do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Its path below the data directory.
    pub path: String,
    /// Where it led, if it was a link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_to: Option<String>,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.link_to {
            Some(target) => write!(f, "{}, which was a link to {target}", self.path),
            None => f.write_str(&self.path),
        }
    }
}

/// Where a delta's changed blocks come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedBlocks {
    /// What told them.
    pub source: ChangeSource,
    /// Why a better source did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where the WAL in question begins: the parent's start.
    pub since: Lsn,
}

/// What tells which blocks changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeSource {
    /// The WAL: summaries in the archive, and segments that have none.
    Wal,
    /// The server's own WAL summaries, from PostgreSQL 17 on.
    Server,
    /// The LSN of each page: all of the data directory was read.
    Pages,
}

impl fmt::Display for ChangeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Wal => "WAL summaries",
            Self::Server => "the server's WAL summaries",
            Self::Pages => "page LSNs",
        })
    }
}

/// An object of a backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredPart {
    /// Its name below the backup's folder.
    pub name: String,
    /// Length of the files in it.
    pub size_bytes: u64,
    /// Length in the store.
    pub stored_bytes: u64,
    /// SHA-256 of the stored bytes, hexadecimal.
    pub sha256: String,
}

/// A block whose page is damaged: its checksum, its header or its LSN cannot be right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorruptBlock {
    /// The file below the data directory.
    pub file: String,
    /// The block's number in the file, from 0.
    pub block: u32,
}

/// A backup whose `backup.json` cannot be read.
#[derive(Debug)]
pub struct DamagedEntry {
    /// The backup.
    pub id: BackupId,
    /// What is wrong.
    pub error: Error,
}

/// What a backup is used as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On its own.
    Alone,
    /// Together with others.
    InChain,
}

/// The backups of a cluster.
#[derive(Debug, Default)]
pub struct Catalog {
    /// Those that can be read, oldest first.
    pub backups: Vec<BackupEntry>,
    /// The others.
    pub damaged: Vec<DamagedEntry>,
    /// Folders without an entry: of backups that run, failed, or lost it.
    pub unfinished: Vec<BackupId>,
}

impl Catalog {
    /// Whether there is no backup, readable or not.
    pub fn is_empty(&self) -> bool {
        self.backups.is_empty() && self.damaged.is_empty()
    }

    /// Takes in how reading a backup's entry ended.
    pub(super) fn add(
        &mut self,
        id: BackupId,
        found: Result<Option<BackupEntry>, Error>,
    ) -> Result<(), Error> {
        match found {
            Ok(Some(backup)) => self.backups.push(backup),
            Ok(None) => self.unfinished.push(id),
            Err(error @ (Error::Damaged { .. } | Error::Denied(_))) => {
                self.damaged.push(DamagedEntry { id, error });
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Tells of those that no restore can begin with, and returns the others.
    fn into_usable(self) -> Vec<BackupEntry> {
        for damaged in &self.damaged {
            let reason = output::chain(&damaged.error);
            tracing::warn!("{reason}; the backup is passed over");
        }
        let mut broken = HashSet::new();
        for backup in &self.backups {
            if let Err(error) = self.chain(&backup.id) {
                tracing::warn!("{error}; the backup is passed over");
                broken.insert(backup.id.clone());
            }
        }
        let mut backups = self.backups;
        backups.retain(|backup| !broken.contains(&backup.id));
        backups
    }
}

impl BackupKind {
    /// The format of `backup.json` for this kind: programs that do not know deltas read full backups and refuse deltas.
    pub fn format(self) -> u32 {
        match self {
            Self::Full => 1,
            Self::Delta => 2,
        }
    }
}

impl BackupId {
    /// The id of a backup that starts at `time`.
    pub fn new(time: Timestamp, kind: BackupKind) -> Self {
        let letter = match kind {
            BackupKind::Full => 'F',
            BackupKind::Delta => 'D',
        };
        Self(format!("{}-{letter}", time.strftime("%Y%m%dT%H%M%SZ")))
    }

    /// The id without its kind.
    pub(super) fn second(&self) -> &str {
        self.0.split_once('-').map_or(&self.0, |(second, _)| second)
    }

    /// The kind that the id tells.
    pub fn kind(&self) -> BackupKind {
        if self.0.ends_with('D') {
            BackupKind::Delta
        } else {
            BackupKind::Full
        }
    }
}

impl FromStr for BackupId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = |range| {
            text.get(range)
                .is_some_and(|part: &str| part.bytes().all(|b| b.is_ascii_digit()))
        };
        let marks = [(8, "T"), (15, "Z"), (16, "-")];
        let valid = text.len() == 18
            && digits(0..8)
            && digits(9..15)
            && marks
                .iter()
                .all(|(at, mark)| text.get(*at..=*at) == Some(mark))
            && matches!(text.get(17..), Some("F" | "D"));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!(
                "{text:?} is no backup id (20261121T043000Z-F is one)"
            ))
        }
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for BackupId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BackupId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// What begins the last member of `backup.json`: the SHA-256 of everything before this text.
const CHECKSUM: &str = ",\n  \"checksum\": \"";
/// What ends it.
const END: &str = "\"\n}\n";

impl BackupEntry {
    /// When what the backup holds ends: no transaction in it ended later. Times of targets are compared with this.
    pub fn data_end(&self) -> Timestamp {
        self.replayed_time.unwrap_or(self.stop_time)
    }

    /// The text of `backup.json`, ending in its own checksum.
    ///
    /// # Errors
    /// A tablespace's place that is not UTF-8.
    pub fn to_text(&self) -> Result<String, serde_json::Error> {
        let json = serde_json::to_string_pretty(self)?;
        let covered = json.strip_suffix("\n}").unwrap_or(&json);
        Ok(with_checksum(covered))
    }

    /// Reads the text of a `backup.json`.
    ///
    /// # Errors
    /// The parser's, or that the checksum does not fit.
    pub fn parse(text: &[u8]) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let entry = serde_json::from_slice(text)?;
        let text = std::str::from_utf8(text)?;
        let covered = text.rfind(CHECKSUM).and_then(|at| text.get(..at));
        if covered.map(with_checksum).as_deref() != Some(text) {
            return Err("its checksum does not match its content".into());
        }
        let entry: Self = entry;
        let history = &entry.history;
        let ascends = history.is_sorted_by(|a, b| a.timeline < b.timeline)
            && history.iter().all(|left| left.timeline < entry.timeline);
        if page_size(entry.wal_block_size).is_none()
            || entry.start_lsn >= entry.stop_lsn
            || !ascends
            || entry.parts.is_empty()
        {
            return Err("its WAL positions, sizes or history cannot be right".into());
        }
        if !entry.is_of_its_kind() {
            return Err("its id, kind, parent and format do not belong together".into());
        }
        Ok(entry)
    }

    /// A full backup stands on its own, a delta on another backup; both are named so.
    fn is_of_its_kind(&self) -> bool {
        let is_delta = self.kind == BackupKind::Delta;
        self.id.kind() == self.kind
            && self.parent.is_some() == is_delta
            && self.parent.as_ref() != Some(&self.id)
            && self.format >= self.kind.format()
    }

    /// Everything in the backup's folder but the entry itself: the parts in order, then the rest.
    pub fn objects(&self) -> impl Iterator<Item = &StoredPart> {
        self.parts.iter().chain(self.others())
    }

    /// Objects of the backup that are no parts.
    pub fn others(&self) -> impl Iterator<Item = &StoredPart> {
        let lists = [&self.manifest].into_iter();
        lists.chain(&self.index).chain(&self.relations)
    }

    /// Whether replay from the backup along `history` is possible.
    pub fn leads_to(&self, history: &History) -> bool {
        history.contains(self.timeline, self.stop_lsn)
    }

    /// The history of the backup's timeline.
    pub fn timeline_history(&self) -> History {
        History {
            timeline: self.timeline,
            ancestors: self.history.clone(),
        }
    }
}

impl Repository {
    /// Every backup, oldest first, and what is wrong with those that cannot be read.
    pub fn catalog(&self) -> Result<Catalog, Error> {
        let mut catalog = self.entries()?;
        catalog.settle(&self.marks()?);
        Ok(catalog)
    }

    /// The catalog as the `backup.json` objects have it, without marks.
    pub(super) fn entries(&self) -> Result<Catalog, Error> {
        let mut catalog = Catalog::default();
        let mut ids = self.backup_ids()?;
        ids.sort();
        for id in ids {
            let found = self.backup_if_there(&id);
            catalog.add(id, found)?;
        }
        Ok(catalog)
    }

    /// The backups named by `ids`, and those that they stand on; without any, the newest one, whether its entry can be
    /// read or not.
    ///
    /// # Errors
    /// [`Error::NoSuchBackup`]. A chain that is broken is none: [`Catalog::chain`] tells.
    pub fn catalog_of(&self, ids: &[String]) -> Result<Catalog, Error> {
        let mut catalog = Catalog::default();
        if ids.is_empty() {
            let mut newest = self.backup_ids()?;
            newest.sort();
            while let (true, Some(id)) = (catalog.is_empty(), newest.pop()) {
                let found = self.backup_if_there(&id);
                catalog.add(id, found)?;
            }
        }
        for id in ids {
            let parsed = self.backup_id(id)?;
            if catalog.get(&parsed).is_none() && catalog.damage_of(&parsed).is_none() {
                let found = self.backup_if_there(&parsed).transpose();
                let found = found.ok_or_else(|| self.no_such_backup(id))?;
                catalog.add(parsed, found.map(Some))?;
            }
        }
        self.add_ancestors(&mut catalog)?;
        catalog.settle(&self.marks()?);
        Ok(catalog)
    }

    /// The backups that a restore can begin with, oldest first: their entries can be read and their chains are whole.
    /// Of the others the user hears.
    pub fn usable_backups(&self) -> Result<Vec<BackupEntry>, Error> {
        Ok(self.catalog()?.into_usable())
    }

    /// The first object without which a backup cannot be restored that is not in the store with the length that the entry
    /// gives. A backup that stands alone needs neither its index nor its list of relations.
    ///
    /// # Errors
    /// The store's.
    pub fn missing_object(
        &self,
        backup: &BackupEntry,
        place: Place,
    ) -> Result<Option<String>, StoreError> {
        let folder = self.layout.backup_folder(&backup.id);
        let found = self.runtime.block_on(self.store.list(&folder, None))?;
        let lengths: HashMap<&str, u64> = found
            .iter()
            .map(|info| (info.key.as_str(), info.size_bytes))
            .collect();
        let lists = backup
            .others()
            .filter(|list| place == Place::InChain || list.name == backup.manifest.name);
        let missing = backup.parts.iter().chain(lists).find(|part| {
            lengths.get(format!("{folder}{}", part.name).as_str()) != Some(&part.stored_bytes)
        });
        Ok(missing.map(|part| format!("{}/{folder}{}", self.store.url(), part.name)))
    }

    /// Sees that the identity opens what belongs to a backup.
    ///
    /// # Errors
    /// [`Error::Locked`], and those of opening its manifest.
    pub fn must_open(&self, backup: &BackupEntry) -> Result<(), Error> {
        if backup.encrypted_to.is_empty() {
            return Ok(());
        }
        let object = self
            .layout
            .backup_object(&backup.id, &backup.manifest.name)?;
        self.open(&object).map(drop)
    }

    /// Ids of backup folders, committed or not.
    fn backup_ids(&self) -> Result<Vec<BackupId>, StoreError> {
        let folders = self
            .runtime
            .block_on(self.store.folders(&self.layout.backups()))?;
        Ok(folders
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect())
    }

    /// The backup named by `id`, or the newest whole one for `LATEST`. An id is looked up by itself: what stands on the
    /// backup is not read, so that `permanent` does not tell of it.
    ///
    /// # Errors
    /// [`Error::NoSuchBackup`]; [`Error::BrokenChain`] when something is missing that the backup stands on.
    pub fn backup(&self, id: &str) -> Result<BackupEntry, Error> {
        if id == LATEST {
            let newest = self.usable_backups()?.into_iter();
            return newest
                .max_by_key(|backup| backup.stop_time)
                .ok_or_else(|| self.no_such_backup(id));
        }
        let found = self.backup_if_there(&self.backup_id(id)?)?;
        let backup = found.ok_or_else(|| self.no_such_backup(id))?;
        let leaf = self.chain(&backup)?.pop();
        Ok(leaf.expect("a chain ends in the backup whose chain it is"))
    }

    /// The backup of `catalog` that is named by `id`, whole or not, or the newest whole one for `LATEST`.
    ///
    /// # Errors
    /// [`Error::NoSuchBackup`], or what is wrong with its entry.
    pub fn named_backup<'a>(
        &self,
        catalog: &'a Catalog,
        id: &str,
    ) -> Result<&'a BackupEntry, Error> {
        if id == LATEST {
            return catalog.latest().ok_or_else(|| self.no_such_backup(id));
        }
        let parsed = self.backup_id(id)?;
        match catalog.get(&parsed) {
            Some(backup) => Ok(backup),
            // The catalog keeps the reason; reading once more gives one to hand on.
            None => Err(self
                .backup_if_there(&parsed)
                .err()
                .unwrap_or_else(|| self.no_such_backup(id))),
        }
    }

    /// The id that the user wrote, or that of the newest whole backup for `LATEST`.
    fn backup_id(&self, id: &str) -> Result<BackupId, Error> {
        if id == LATEST {
            return self.backup(id).map(|backup| backup.id);
        }
        id.parse().map_err(|_| self.no_such_backup(id))
    }

    fn no_such_backup(&self, id: &str) -> Error {
        Error::NoSuchBackup {
            id: id.to_owned(),
            store: self.store.url().to_owned(),
        }
    }

    /// A backup as its `backup.json` has it; `None` without one.
    pub(super) fn backup_if_there(&self, id: &BackupId) -> Result<Option<BackupEntry>, Error> {
        let key = self.layout.backup_json(id);
        let bytes = match self.read_small(&key) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(None),
            // One file of a directory; a bucket denies all that the credentials ask for.
            Err(error) if self.is_denied_alone(&error) => {
                return Err(Error::Denied(error));
            }
            Err(error) => return Err(error.into()),
        };
        let damaged = |source: Box<dyn std::error::Error + Send + Sync>| Error::Damaged {
            object: self.url(&key),
            what: "it is no backup entry that this version reads",
            source,
        };
        let entry = BackupEntry::parse(&bytes).map_err(damaged)?;
        let foreign = entry.system_identifier != self.layout.system_identifier() || entry.id != *id;
        if entry.format > FORMAT || foreign {
            return Err(damaged(
                "its format is newer, or it belongs to another backup or cluster".into(),
            ));
        }
        Ok(Some(entry))
    }

    fn is_denied_alone(&self, error: &StoreError) -> bool {
        error.kind == ErrorKind::PermissionDenied && self.store.url().starts_with("file:")
    }

    /// Takes an id for a backup that starts at `time`: no other backup gets it, also none that begins at the same moment.
    /// No other backup has its second, of whatever kind: a delta that is taken right after its parent comes after it in the
    /// order of ids.
    pub fn claim_backup_id(
        &self,
        time: Timestamp,
        kind: BackupKind,
    ) -> Result<BackupId, StoreError> {
        let taken = match self.backup_ids() {
            // A directory that is not there yet is made by the first write.
            Err(error) if error.kind == ErrorKind::StoreMissing => Vec::new(),
            found => found?,
        };
        let is_taken = |id: &BackupId| taken.iter().any(|other| other.second() == id.second());
        let seconds = (0..).map_while(|later| {
            time.checked_add(jiff::SignedDuration::from_secs(later))
                .ok()
        });
        let ids = seconds.map(|second| BackupId::new(second, kind));
        for id in ids.filter(|id| !is_taken(id)) {
            let content = serde_json::json!({ "backup": &id, "pid": std::process::id() });
            let claim = self.layout.claim(&id);
            let put = self
                .store
                .put(&claim, content.to_string().into(), PutMode::Create);
            match self.runtime.block_on(put) {
                Ok(()) => return Ok(id),
                Err(error) if error.kind == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        unreachable!("a store holds fewer backups than there are seconds")
    }

    /// Makes the backup exist.
    pub fn commit_backup(&self, entry: &BackupEntry) -> Result<(), Error> {
        // A tablespace's place that is not UTF-8 has no spelling in JSON.
        let json = entry.to_text().map_err(|source| Error::Damaged {
            object: self.url(&self.layout.backup_json(&entry.id)),
            what: "it cannot be written",
            source: source.into(),
        })?;
        let key = self.layout.backup_json(&entry.id);
        Ok(self
            .runtime
            .block_on(self.store.put(&key, json.into(), PutMode::Create))?)
    }
}

fn with_checksum(covered: &str) -> String {
    let checksum = hex::encode(Sha256::digest(covered));
    format!("{covered}{CHECKSUM}{checksum}{END}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::chain::tests::{entry, id};

    #[test]
    fn what_a_backup_is_shows_in_its_id_kind_parent_and_format() {
        let parse = |entry: &BackupEntry| BackupEntry::parse(entry.to_text().unwrap().as_bytes());
        let (full, delta) = (entry("1F", None), entry("2D", Some("1F")));
        parse(&full).unwrap();
        parse(&delta).unwrap();
        let changed = |of: &BackupEntry, change: fn(&mut BackupEntry)| {
            let mut entry = of.clone();
            change(&mut entry);
            entry
        };
        for wrong in [
            changed(&full, |it| it.kind = BackupKind::Delta),
            changed(&full, |it| it.parent = Some(id("2F"))),
            changed(&full, |it| it.id = id("1D")),
            changed(&delta, |it| it.kind = BackupKind::Full),
            changed(&delta, |it| it.parent = None),
            changed(&delta, |it| it.parent = Some(it.id.clone())),
            changed(&delta, |it| it.format = 1),
        ] {
            let error = parse(&wrong).unwrap_err().to_string();
            assert!(error.contains("do not belong together"), "{error}");
        }
    }

    #[test]
    fn backup_ids_read_back_and_others_are_refused() {
        let time: Timestamp = "2026-11-21T04:30:00.5Z".parse().unwrap();
        for (kind, text) in [
            (BackupKind::Full, "20261121T043000Z-F"),
            (BackupKind::Delta, "20261121T043000Z-D"),
        ] {
            let id = BackupId::new(time, kind);
            assert_eq!(id.to_string(), text);
            assert_eq!(text.parse::<BackupId>().unwrap(), id);
            assert_eq!(id.kind(), kind);
        }
        for text in [
            "",
            "LATEST",
            "20261121T043000Z-X",
            "20261121T043000Z-F/..",
            "2026-1121T043000Z-F",
        ] {
            assert!(text.parse::<BackupId>().is_err(), "{text}");
        }
    }
}
