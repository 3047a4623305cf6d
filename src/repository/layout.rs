//! Where things are in a store: the only place that spells keys.
//!
//! ```text
//! <system identifier>/wal/<TLI>/<file>[.lz4|.zst][.age]
//! <system identifier>/wal/<TLI>/<segment>.tail/<run>.<from>-<to>.lz4|.zst[.age]
//! <system identifier>/wal/<TLI>/<segment>.tail/<run>.log.lz4|.zst[.age]
//! <system identifier>/backups/<id>/backup.json
//! <system identifier>/backups/<id>/backup_manifest[.lz4|.zst][.age]
//! <system identifier>/backups/<id>/index.json[.lz4|.zst][.age], relations.json[.lz4|.zst]
//! <system identifier>/summary/<TLI>/<segment>.json[.lz4|.zst][.age]
//! <system identifier>/backups/<id>/base/NNNNN.tar[.lz4|.zst][.age]
//! <system identifier>/claims/<second>                   that a backup's id is taken
//! <system identifier>/marks/<id>/NNNNN-permanent, NNNNN-impermanent
//! <system identifier>/gaps/<TLI>/<segment>-<segment>.json   that segments were dropped: the first and the last
//! <system identifier>/leases/<run>/NNNNN.json            what runs now, and what it needs
//! <system identifier>/deletions/<run>.json               what a deletion takes
//! <system identifier>/owed/<digest>/<WAL file>.json, <id>.json   that the second store of this URL is to get this
//! <system identifier>/reports/<kind>/<second>-<run>.json   how a verification or a drill ended
//! ```

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use walhalla_postgres::{SegmentName, SystemIdentifier, TimelineId, WalFileName};
use walhalla_providers::ObjectKey;

use super::entry::{BackupId, BackupSecond};
use super::marks::{Mark, Permanence};
use super::owed::{MirrorId, Owed};
use crate::pipeline::Packing;

/// What an object of a cluster is, as its key says. [`Layout::key`] spells it and [`Layout::parse`] reads it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// A WAL file.
    Wal(WalFileName, Packing),
    /// A segment's summary.
    Summary(SegmentName, Packing),
    /// The begin of a segment that was being received, or a piece of it.
    Tail(TailObject, Packing),
    /// An object of a backup.
    Backup(BackupId, BackupObject),
    /// That a backup has begun in this second: created once, so that two never share an id.
    Claim(BackupSecond),
    /// What was said of a backup after it was taken.
    Mark(BackupId, Mark),
    /// That segments were dropped and not archived.
    Gap(DroppedSegments),
    /// That somebody uses something: the run, and how often it said so.
    Lease(RunId, u32),
    /// What a deletion takes, by its run.
    Deletion(RunId),
    /// What the second store does not have yet.
    Owed(MirrorId, Owed),
    /// How a verification or a drill ended.
    Report(ReportKind, ReportId),
    /// Anything else: another program's, another cluster's, or a later version's.
    Foreign(ObjectKey),
}

/// An object that holds WAL of a segment which was not finished when it was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TailObject {
    /// The segment.
    pub segment: SegmentName,
    /// Who stored it.
    pub run: RunId,
    /// What of the segment it holds.
    pub part: TailPart,
}

/// Work that tells its objects from those of others: what receives a segment from its begin on over one connection, a lease, a
/// deletion. Shown as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(u64);

/// What a report is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReportKind {
    /// `walhalla verify`
    Verify,
    /// `walhalla wal-verify`
    WalVerify,
    /// `walhalla drill`
    Drill,
}

/// What tells reports of one kind from each other. The later of two is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReportId {
    /// When the work began, in whole seconds.
    time: Timestamp,
    run: RunId,
}

/// Segments of one timeline that were dropped one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DroppedSegments {
    /// The first one.
    pub first: SegmentName,
    /// The last one.
    pub last: SegmentName,
}

/// What of a segment an object holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TailPart {
    /// All that the run received, piece after piece.
    Log,
    /// The bytes from the first to before the second place in the segment.
    Piece(u32, u32),
}

impl ReportKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Verify, Self::WalVerify, Self::Drill];
}

impl std::fmt::Display for ReportKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Verify => "verify",
            Self::WalVerify => "wal-verify",
            Self::Drill => "drill",
        })
    }
}

impl std::str::FromStr for ReportKind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut all = Self::ALL.into_iter();
        all.find(|kind| kind.to_string() == text).ok_or(())
    }
}

impl ReportId {
    /// A new one of a run that began at `time`.
    pub fn new(time: Timestamp) -> Self {
        Self {
            time: Timestamp::from_second(time.as_second()).unwrap_or(time),
            run: RunId::random(),
        }
    }
}

impl std::fmt::Display for ReportId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.time.strftime(REPORT_TIME), self.run)
    }
}

impl std::str::FromStr for ReportId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (time, run) = text.split_once('-').ok_or(())?;
        let time = jiff::civil::DateTime::strptime(REPORT_TIME, time).map_err(drop)?;
        let time = time.to_zoned(TimeZone::UTC).map_err(drop)?.timestamp();
        let run = run.parse()?;
        Ok(Self { time, run })
    }
}

impl DroppedSegments {
    /// The segments from `first` to `last`; `None` where these are not of one timeline and in order.
    pub fn new(first: SegmentName, last: SegmentName) -> Option<Self> {
        let is_range = first.timeline == last.timeline && first <= last;
        is_range.then_some(Self { first, last })
    }

    /// Whether the segment is among them.
    pub fn has(self, segment: SegmentName) -> bool {
        (self.first..=self.last).contains(&segment)
    }

    /// Whether some segment is among both.
    pub fn meets(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl RunId {
    /// A new one.
    pub fn random() -> Self {
        Self(fastrand::u64(..))
    }
}

impl std::str::FromStr for RunId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = u64::from_str_radix(text, 16).map_err(drop)?;
        Some(Self(number))
            .filter(|run| run.to_string() == text)
            .ok_or(())
    }
}

impl std::fmt::Display for RunId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::fmt::Display for TailPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Log => f.write_str("log"),
            Self::Piece(from, to) => write!(f, "{from:08X}-{to:08X}"),
        }
    }
}

impl TailPart {
    fn parse(text: &str) -> Option<Self> {
        if text == "log" {
            return Some(Self::Log);
        }
        let (from, to) = text.split_once('-')?;
        let place = |text| u32::from_str_radix(text, 16).ok();
        let (from, to) = (place(from)?, place(to)?);
        (from < to).then_some(Self::Piece(from, to))
    }
}

/// An object of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupObject {
    /// `backup.json`, the commit point.
    Entry,
    /// `backup_manifest`
    Manifest(Packing),
    /// `index.json`: where in the parts each file is.
    Index(Packing),
    /// `relations.json`: which files of relations it holds.
    Relations(Packing),
    /// A tar part, by its number from 1.
    Part(usize, Packing),
}

impl std::fmt::Display for BackupObject {
    /// Its name below the backup's folder.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Entry => f.write_str("backup.json"),
            Self::Manifest(packing) => write!(f, "backup_manifest{packing}"),
            Self::Index(packing) => write!(f, "index.json{packing}"),
            Self::Relations(packing) => write!(f, "relations.json{packing}"),
            Self::Part(number, packing) => write!(f, "base/{number:05}.tar{packing}"),
        }
    }
}

impl BackupObject {
    fn parse(name: &str) -> Option<Self> {
        let (stem, packing) = Packing::split(name);
        Some(match stem {
            "backup.json" => Self::Entry,
            "backup_manifest" => Self::Manifest(packing),
            "index.json" => Self::Index(packing),
            "relations.json" => Self::Relations(packing),
            part => {
                let number = part.strip_prefix("base/")?.strip_suffix(".tar")?;
                Self::Part(number.parse().ok()?, packing)
            }
        })
    }
}

/// The keys of one cluster.
#[derive(Clone, Debug)]
pub struct Layout {
    system_identifier: SystemIdentifier,
}

/// An object and how its content is packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Where it is.
    pub key: ObjectKey,
    /// How it is compressed and encrypted.
    pub packing: Packing,
}

/// What follows a segment's name in the folder of its tail.
const TAIL_SUFFIX: &str = ".tail/";
/// How a report's name tells its time.
const REPORT_TIME: &str = "%Y%m%dT%H%M%SZ";

impl Object {
    /// The key without the suffixes of its packing: what the object is, however it is packed.
    pub fn name(&self) -> &str {
        Packing::split(self.key.as_str()).0
    }
}

impl Layout {
    /// The layout of a cluster.
    pub fn new(system_identifier: SystemIdentifier) -> Self {
        Self { system_identifier }
    }

    /// The cluster.
    pub fn system_identifier(&self) -> SystemIdentifier {
        self.system_identifier
    }

    /// The key of what is not foreign here. Marks of one backup sort by number up to 99,999; a greater number has more digits.
    pub fn key(&self, what: &Key) -> ObjectKey {
        let text = match what {
            Key::Wal(file, packing) => {
                format!("{}{file}{packing}", self.wal_folder(file.timeline()))
            }
            Key::Summary(segment, packing) => {
                format!(
                    "{}{segment}.json{packing}",
                    self.summary_folder(segment.timeline)
                )
            }
            Key::Tail(TailObject { segment, run, part }, packing) => {
                format!("{}{run}.{part}{packing}", self.tail_folder(*segment))
            }
            Key::Backup(id, object) => format!("{}{object}", self.backup_folder(id)),
            Key::Claim(second) => format!("{}{second}", self.claims()),
            Key::Mark(id, Mark { number, permanence }) => {
                format!("{}{id}/{number:05}-{permanence}", self.marks())
            }
            Key::Gap(DroppedSegments { first, last }) => {
                format!("{}{first}-{last}.json", self.gap_folder(first.timeline))
            }
            Key::Lease(run, number) => format!("{}{number:05}.json", self.lease_folder(*run)),
            Key::Deletion(run) => format!("{}{run}.json", self.deletions()),
            Key::Owed(id, owed) => format!("{}{owed}.json", self.owed_to(*id)),
            Key::Report(kind, id) => format!("{}{id}.json", self.reports_of(*kind)),
            Key::Foreign(key) => return key.clone(),
        };
        ObjectKey::new(text).expect("digits, names of WAL files and ids of backups make keys")
    }

    /// What the object with this key is.
    pub fn parse(&self, key: &ObjectKey) -> Key {
        let known = self.parse_own(key).filter(|known| self.key(known) == *key);
        known.unwrap_or_else(|| Key::Foreign(key.clone()))
    }

    /// What the key may say; some other spelling of it, too.
    fn parse_own(&self, key: &ObjectKey) -> Option<Key> {
        let (cluster, rest) = key.as_str().split_once('/')?;
        if cluster.parse().ok() != Some(self.system_identifier) {
            return None;
        }
        let (kind, rest) = rest.split_once('/')?;
        let (first, name) = rest.split_once('/').unwrap_or((rest, ""));
        match kind {
            "wal" => {
                let (name, packing) = Packing::split(name);
                let Some((segment, name)) = name.split_once(TAIL_SUFFIX) else {
                    return Some(Key::Wal(name.parse().ok()?, packing));
                };
                let (run, part) = name.split_once('.')?;
                let object = TailObject {
                    segment: segment.parse().ok()?,
                    run: run.parse().ok()?,
                    part: TailPart::parse(part)?,
                };
                Some(Key::Tail(object, packing))
            }
            "summary" => {
                let (file, packing) = Packing::split(name);
                let segment = file.strip_suffix(".json")?;
                Some(Key::Summary(segment.parse().ok()?, packing))
            }
            "backups" => Some(Key::Backup(first.parse().ok()?, BackupObject::parse(name)?)),
            "claims" => Some(Key::Claim(first.parse().ok()?)),
            "marks" => {
                let (number, said) = name.split_once('-')?;
                let known = [Permanence::Permanent, Permanence::Impermanent];
                let permanence = known.into_iter().find(|known| known.to_string() == said)?;
                let number = number.parse().ok()?;
                Some(Key::Mark(first.parse().ok()?, Mark { number, permanence }))
            }
            "gaps" => {
                let (first, last) = name.strip_suffix(".json")?.split_once('-')?;
                let dropped = DroppedSegments::new(first.parse().ok()?, last.parse().ok()?)?;
                Some(Key::Gap(dropped))
            }
            "leases" => {
                let number = name.strip_suffix(".json")?.parse().ok()?;
                Some(Key::Lease(first.parse().ok()?, number))
            }
            "deletions" => Some(Key::Deletion(first.strip_suffix(".json")?.parse().ok()?)),
            "owed" => {
                let owed = name.strip_suffix(".json")?.parse().ok()?;
                Some(Key::Owed(first.parse().ok()?, owed))
            }
            "reports" => {
                let id = name.strip_suffix(".json")?.parse().ok()?;
                Some(Key::Report(first.parse().ok()?, id))
            }
            _ => None,
        }
    }

    /// A WAL file, packed as `packing` says.
    pub fn wal(&self, file: WalFileName, packing: Packing) -> Object {
        Object {
            key: self.key(&Key::Wal(file, packing)),
            packing,
        }
    }

    /// A segment's summary.
    pub fn summary(&self, segment: SegmentName, packing: Packing) -> Object {
        Object {
            key: self.key(&Key::Summary(segment, packing)),
            packing,
        }
    }

    /// Part of a segment that is being received.
    pub fn tail(&self, what: TailObject, packing: Packing) -> Object {
        Object {
            key: self.key(&Key::Tail(what, packing)),
            packing,
        }
    }

    /// Prefix of what is stored of an unfinished segment. Who lists the forms of the segment sees it too.
    pub fn tail_folder(&self, segment: SegmentName) -> String {
        format!(
            "{}{segment}{TAIL_SUFFIX}",
            self.wal_folder(segment.timeline)
        )
    }

    /// What comes after all keys in the folder of a segment's tail, and before all that are not.
    pub fn end_of_tail(&self, segment: SegmentName) -> String {
        // The character after the folder's slash.
        let folder = self.tail_folder(segment);
        format!("{}0", folder.trim_end_matches('/'))
    }

    /// A backup's entry, its commit point.
    pub fn backup_json(&self, id: &BackupId) -> ObjectKey {
        self.key(&Key::Backup(id.clone(), BackupObject::Entry))
    }

    /// Prefix of a timeline's summaries.
    pub fn summary_folder(&self, timeline: TimelineId) -> String {
        format!("{}{timeline}/", self.summary_folders())
    }

    /// Prefix of all timelines' summaries.
    pub fn summary_folders(&self) -> String {
        format!("{}/summary/", self.system_identifier)
    }

    /// Whether an object ends in a trailer, as WAL files, summaries and pieces of segments do.
    pub fn has_trailer(&self, object: &Object) -> bool {
        let key = object.key.as_str();
        let folders = [self.wal_folders(), self.summary_folders()];
        folders.iter().any(|folder| key.starts_with(folder))
    }

    /// Prefix of all timelines' folders.
    pub fn wal_folders(&self) -> String {
        format!("{}/wal/", self.system_identifier)
    }

    /// Prefix of a timeline's files.
    pub fn wal_folder(&self, timeline: TimelineId) -> String {
        format!("{}/wal/{timeline}/", self.system_identifier)
    }

    /// Prefix of all backups' folders.
    pub fn backups(&self) -> String {
        format!("{}/backups/", self.system_identifier)
    }

    /// The backup in whose folder an object is, and its name there, whatever the object is.
    pub fn in_backup_folder<'a>(&self, key: &'a ObjectKey) -> Option<(BackupId, &'a str)> {
        let rest = key.as_str().strip_prefix(&self.backups())?;
        let (id, name) = rest.split_once('/')?;
        Some((id.parse().ok()?, name))
    }

    /// Prefix of all claims.
    pub fn claims(&self) -> String {
        format!("{}/claims/", self.system_identifier)
    }

    /// Prefix of everything of a backup.
    pub fn backup_folder(&self, id: &BackupId) -> String {
        format!("{}{id}/", self.backups())
    }

    /// Prefix of what tells that segments of a timeline were dropped.
    pub fn gap_folder(&self, timeline: TimelineId) -> String {
        format!("{}{timeline}/", self.gap_folders())
    }

    /// The same of all timelines.
    pub fn gap_folders(&self) -> String {
        format!("{}/gaps/", self.system_identifier)
    }

    /// Prefix of all marks.
    pub fn marks(&self) -> String {
        format!("{}/marks/", self.system_identifier)
    }

    /// Prefix of all leases.
    pub fn leases(&self) -> String {
        format!("{}/leases/", self.system_identifier)
    }

    /// Prefix of a lease's objects.
    pub fn lease_folder(&self, run: RunId) -> String {
        format!("{}{run}/", self.leases())
    }

    /// Prefix of what deletions take.
    pub fn deletions(&self) -> String {
        format!("{}/deletions/", self.system_identifier)
    }

    /// Prefix of what a second store is owed.
    pub fn owed_to(&self, id: MirrorId) -> String {
        format!("{}/owed/{id}/", self.system_identifier)
    }

    /// Prefix of all reports.
    pub fn reports(&self) -> String {
        format!("{}/reports/", self.system_identifier)
    }

    /// Prefix of the reports of a kind.
    pub fn reports_of(&self, kind: ReportKind) -> String {
        format!("{}{kind}/", self.reports())
    }

    /// Prefix of everything of the cluster.
    pub fn cluster(&self) -> String {
        format!("{}/", self.system_identifier)
    }

    /// An object of a backup, by its name in `backup.json`.
    pub fn backup_object(
        &self,
        id: &BackupId,
        name: &str,
    ) -> Result<Object, walhalla_providers::Error> {
        let key = ObjectKey::new(format!("{}{name}", self.backup_folder(id)))?;
        Ok(Object {
            key,
            packing: Packing::split(name).1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::entry::BackupKind;

    const ROUNDS: usize = 20_000;

    fn layout() -> Layout {
        Layout::new("7710533931497189584".parse().unwrap())
    }

    fn packing() -> Packing {
        let all: Vec<Packing> = Packing::all().collect();
        fastrand::choice(all).unwrap()
    }

    fn id() -> BackupId {
        let seconds = fastrand::i64(0..4_000_000_000);
        let time = jiff::Timestamp::from_second(seconds).unwrap();
        let kind = fastrand::choice([BackupKind::Full, BackupKind::Delta]).unwrap();
        BackupId::new(time, kind)
    }

    fn segment() -> SegmentName {
        let text = format!(
            "{:08X}{:08X}{:08X}",
            fastrand::u32(1..),
            fastrand::u32(..),
            fastrand::u32(..=0xFFF)
        );
        text.parse().unwrap()
    }

    fn file() -> WalFileName {
        let segment = segment();
        match fastrand::u32(..4) {
            0 => WalFileName::Segment(segment),
            1 => WalFileName::Partial(segment, fastrand::u32(1..=99)),
            2 => WalFileName::History(segment.timeline),
            _ => format!("{segment}.{:08X}.backup", fastrand::u32(..))
                .parse()
                .unwrap(),
        }
    }

    fn object() -> BackupObject {
        match fastrand::u32(..5) {
            0 => BackupObject::Entry,
            1 => BackupObject::Manifest(packing()),
            2 => BackupObject::Index(packing()),
            3 => BackupObject::Relations(packing()),
            _ => BackupObject::Part(fastrand::usize(1..200_000), packing()),
        }
    }

    fn mark() -> Mark {
        let permanence = [Permanence::Permanent, Permanence::Impermanent];
        Mark {
            number: fastrand::u32(1..200_000),
            permanence: fastrand::choice(permanence).unwrap(),
        }
    }

    fn tail() -> TailObject {
        let from = fastrand::u32(..1 << 30);
        let part = match fastrand::u32(..3) {
            0 => TailPart::Log,
            _ => TailPart::Piece(from, fastrand::u32(from + 1..=1 << 30)),
        };
        TailObject {
            segment: segment(),
            run: RunId::random(),
            part,
        }
    }

    fn any() -> Key {
        match fastrand::u32(..12) {
            11 => {
                let kind = fastrand::choice(ReportKind::ALL).unwrap();
                let time = Timestamp::from_second(fastrand::i64(0..4_000_000_000)).unwrap();
                Key::Report(kind, ReportId::new(time))
            }
            10 => Key::Owed(MirrorId::of("a"), Owed::Backup(id())),
            9 => Key::Owed(MirrorId::of("b"), Owed::Wal(file())),
            8 => Key::Lease(RunId::random(), fastrand::u32(..200_000)),
            7 => Key::Deletion(RunId::random()),
            6 => {
                let (a, b) = (segment(), segment().to_string());
                let b = format!("{}{}", a.timeline, &b[8..]).parse().unwrap();
                Key::Gap(DroppedSegments::new(a.min(b), a.max(b)).unwrap())
            }
            5 => Key::Tail(tail(), packing()),
            0 => Key::Wal(file(), packing()),
            1 => Key::Summary(segment(), packing()),
            2 => Key::Backup(id(), object()),
            3 => Key::Claim(id().second()),
            _ => Key::Mark(id(), mark()),
        }
    }

    #[test]
    fn what_is_spelt_is_read_back() {
        let layout = layout();
        for _ in 0..ROUNDS {
            let what = any();
            let key = layout.key(&what);
            assert_eq!(layout.parse(&key), what, "{key}");
        }
    }

    #[test]
    fn what_is_read_is_spelt_as_it_was() {
        let layout = layout();
        let mut foreign = 0;
        for _ in 0..ROUNDS {
            // A letter of a known key is another one, or gone, or there twice.
            let mut text = layout.key(&any()).as_str().to_owned();
            let at = fastrand::usize(..text.len());
            match fastrand::u32(..3) {
                0 => _ = text.remove(at),
                1 => text.insert(at, fastrand::choice(*b"0AaF-./jz").unwrap().into()),
                _ => {
                    text.remove(at);
                    text.insert(at, fastrand::choice(*b"0AaF-./jz").unwrap().into());
                }
            }
            let Ok(key) = ObjectKey::new(text) else {
                continue;
            };
            let what = layout.parse(&key);
            foreign += usize::from(matches!(what, Key::Foreign(_)));
            assert_eq!(layout.key(&what), key, "{what:?}");
        }
        assert!(foreign > ROUNDS / 10, "{foreign}");
    }

    #[test]
    fn other_spellings_and_other_clusters_are_foreign() {
        let layout = layout();
        let folder = "7710533931497189584/marks/20261121T043000Z-F";
        for text in [
            format!("{folder}/1-permanent"),
            format!("{folder}/+0001-permanent"),
            format!("{folder}/00001-forever"),
            format!("{folder}/00001-permanent/x"),
            "7710533931497189584/marks/LATEST/00001-permanent".to_owned(),
            "7710533931497189585/marks/20261121T043000Z-F/00001-permanent".to_owned(),
            "7710533931497189584/backups/20261121T043000Z-F/base/1.tar".to_owned(),
            "7710533931497189584/wal/00000002/000000010000000000000001.lz4".to_owned(),
            "7710533931497189584/leases/archiver".to_owned(),
            "7710533931497189584/leases/0123456789abcdef/1.json".to_owned(),
            "7710533931497189584/deletions/0123456789abcdef.json/x".to_owned(),
            "7710533931497189584/owed/000000010000000000000001.json".to_owned(),
            "7710533931497189584/owed/0123456789abcdef/000000010000000000000001".to_owned(),
            "7710533931497189584/reports/verify/20261121T043000Z.json".to_owned(),
            "7710533931497189584/reports/verified/20261121T043000Z-0123456789abcdef.json".to_owned(),
            "7710533931497189584/reports/verify/20261321T043000Z-0123456789abcdef.json".to_owned(),
            "7710533931497189584/wal/00000002/000000010000000000000001.tail/0123456789abcdef.log.lz4".to_owned(),
            "7710533931497189584/wal/00000001/000000010000000000000001.tail/0123456789ABCDEF.log.lz4".to_owned(),
            "7710533931497189584/wal/00000001/000000010000000000000001.tail/0123456789abcdef.00000002-00000001.lz4".to_owned(),
            "7710533931497189584/wal/00000001/000000010000000000000001.tail/0123456789abcdef.1-2.lz4".to_owned(),
            "7710533931497189584/gaps/00000001/000000010000000000000002-000000010000000000000001.json".to_owned(),
            "7710533931497189584/gaps/00000001/000000010000000000000001-000000020000000000000002.json".to_owned(),
            "7710533931497189584/gaps/00000002/000000010000000000000001-000000010000000000000002.json".to_owned(),
            "x".to_owned(),
        ] {
            let key = ObjectKey::new(text).unwrap();
            assert_eq!(layout.parse(&key), Key::Foreign(key.clone()));
        }
    }
}
