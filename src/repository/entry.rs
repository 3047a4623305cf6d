//! `backup.json`: what there is to know of a backup without reading it.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use walhalla_postgres::control::page_size;
use walhalla_postgres::timeline::Ancestor;
use walhalla_postgres::{History, Limits, Lsn, SegmentSize, SystemIdentifier, TimelineId, Version};

use crate::pipeline::StoredDigest;
use crate::server::data_directory::Tablespace;

/// The format of `backup.json` that is written, and the greatest that is read. Programs that know no BLAKE3 refuse it.
pub const FORMAT: u32 = 3;

/// A backup's start time and kind: `20261121T043000Z-F`. Ids sort by time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId(String);

/// The second in which a backup began: its id without the kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackupSecond(String);

/// What a backup is used as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On its own.
    Alone,
    /// Together with others.
    InChain,
}

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
    /// [`FORMAT`], or an earlier one.
    pub format: u32,
    /// The backup's name.
    pub id: BackupId,
    /// Full or delta.
    pub kind: BackupKind,
    /// The backup that a delta is based on.
    pub parent: Option<BackupId>,
    /// The digest of that backup's manifest as it is stored: an id is a name, and may be another backup's; older programs did
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
    /// Whether it was to be kept by every retention rule when it was taken. What counts now is for
    /// [`Catalog::is_permanent`](super::Catalog::is_permanent) to say.
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
    /// Of the stored bytes.
    #[serde(flatten)]
    pub digest: StoredDigest,
}

/// A block whose page is damaged: its checksum, its header or its LSN cannot be right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorruptBlock {
    /// The file below the data directory.
    pub file: String,
    /// The block's number in the file, from 0.
    pub block: u32,
}

impl BackupKind {
    /// The first format of `backup.json` for this kind.
    fn first_format(self) -> u32 {
        match self {
            Self::Full => 1,
            Self::Delta => 2,
        }
    }
}

impl BackupId {
    /// The id of a backup that starts at `time`.
    pub fn new(time: Timestamp, kind: BackupKind) -> Self {
        Self::of(&BackupSecond::at(time), kind)
    }

    /// The id of a backup that begins in `second`.
    pub fn of(second: &BackupSecond, kind: BackupKind) -> Self {
        let letter = match kind {
            BackupKind::Full => 'F',
            BackupKind::Delta => 'D',
        };
        Self(format!("{second}-{letter}"))
    }

    /// The id without its kind.
    pub fn second(&self) -> BackupSecond {
        let second = self
            .0
            .split_once('-')
            .map_or(&*self.0, |(second, _)| second);
        BackupSecond(second.to_owned())
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

impl BackupSecond {
    /// The second in which `time` is.
    pub fn at(time: Timestamp) -> Self {
        Self(time.strftime("%Y%m%dT%H%M%SZ").to_string())
    }
}

impl FromStr for BackupSecond {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let id: BackupId = format!("{text}-F").parse()?;
        Ok(id.second())
    }
}

impl fmt::Display for BackupSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
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
            && self.format >= self.kind.first_format()
    }

    /// Everything in the backup's folder but the entry itself: the parts in order, then the rest.
    pub fn objects(&self) -> impl Iterator<Item = &StoredPart> {
        self.parts.iter().chain(self.others())
    }

    /// The objects without which it cannot be restored. One that stands alone needs neither its index nor its list of relations.
    pub fn needed(&self, place: Place) -> impl Iterator<Item = &StoredPart> {
        let lists = self.others();
        let lists =
            lists.filter(move |list| place == Place::InChain || list.name == self.manifest.name);
        self.parts.iter().chain(lists)
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

fn with_checksum(covered: &str) -> String {
    let checksum = hex::encode(Sha256::digest(covered));
    format!("{covered}{CHECKSUM}{checksum}{END}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::catalog::tests::{entry, id};

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
