//! Names and sizes of WAL files.

use std::fmt;
use std::str::FromStr;

use super::{Error, Lsn, TimelineId};

/// Length of every WAL segment of a cluster: a power of two from 1 MiB to 1 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct SegmentSize(u64);

/// A segment's number since the beginning of the WAL (`XLogSegNo`), on no particular timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNo(pub u64);

/// A segment on a timeline; shown as its 24-digit file name.
///
/// The name's two halves depend on the segment size, so a name is kept as PostgreSQL spells it
/// and turned into a [`SegmentNo`] with a [`SegmentSize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The timeline: the first eight digits.
    pub timeline: TimelineId,
    log: u32,
    segment: u32,
}

/// Any file that PostgreSQL hands to `archive_command` or asks of `restore_command`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WalFileName {
    /// A whole segment.
    Segment(SegmentName),
    /// The last, unfinished segment of a timeline that was left. PostgreSQL knows one (number 1, `.partial`); the archive
    /// keeps what further servers had of it too (`.partial.2` and on).
    Partial(SegmentName, u32),
    /// A timeline's history.
    History(TimelineId),
    /// A backup history file, named by its start segment and the start's offset in it.
    BackupHistory(SegmentName, u32),
}

/// Most unfinished forms of one segment that the archive keeps.
pub const MOST_PARTIALS: u32 = 99;

impl SegmentSize {
    /// PostgreSQL's default, 16 MiB.
    pub const DEFAULT: Self = Self(16 << 20);

    /// The size, if PostgreSQL allows it (`IsValidWalSegSize`).
    pub fn new(bytes: u64) -> Option<Self> {
        (bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes)).then_some(Self(bytes))
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// The segment that holds the byte at `lsn`.
    pub fn segment_of(self, lsn: Lsn) -> SegmentNo {
        SegmentNo(lsn.0 / self.0)
    }

    /// The segment that holds the byte before `end`: the last one needed to reach it (`XLByteToPrevSeg`).
    pub fn segment_before(self, end: Lsn) -> SegmentNo {
        SegmentNo(end.0.saturating_sub(1) / self.0)
    }

    fn per_log(self) -> u64 {
        (1 << 32) / self.0
    }
}

impl TryFrom<u64> for SegmentSize {
    type Error = String;

    fn try_from(bytes: u64) -> Result<Self, String> {
        Self::new(bytes).ok_or_else(|| format!("{bytes} is no WAL segment size"))
    }
}

impl From<SegmentSize> for u64 {
    fn from(size: SegmentSize) -> Self {
        size.0
    }
}

impl SegmentNo {
    /// The next segment.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The segment's first byte.
    pub fn start(self, size: SegmentSize) -> Lsn {
        Lsn(self.0.saturating_mul(size.0))
    }

    /// The file name on a timeline (`XLogFileName`).
    pub fn on(self, timeline: TimelineId, size: SegmentSize) -> SegmentName {
        let part = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        SegmentName {
            timeline,
            log: part(self.0 / size.per_log()),
            segment: part(self.0 % size.per_log()),
        }
    }
}

impl SegmentName {
    /// The segment's number, if the name fits the segment size.
    pub fn number(self, size: SegmentSize) -> Option<SegmentNo> {
        let within = u64::from(self.segment) < size.per_log();
        within.then(|| SegmentNo(u64::from(self.log) * size.per_log() + u64::from(self.segment)))
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!(
            "{}{:08X}{:08X}",
            self.timeline, self.log, self.segment
        ))
    }
}

impl FromStr for SegmentName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let number = |range| text.get(range).and_then(hex8);
        let name = (text.len() == 24)
            .then(|| Some((number(0..8)?, number(8..16)?, number(16..24)?)))
            .flatten()
            .and_then(|(timeline, log, segment)| {
                Some(Self {
                    timeline: TimelineId::new(timeline)?,
                    log,
                    segment,
                })
            });
        name.ok_or_else(|| Error::invalid("WAL segment name", text))
    }
}

impl serde::Serialize for SegmentName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for SegmentName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl WalFileName {
    /// The timeline the file belongs to.
    pub fn timeline(self) -> TimelineId {
        match self {
            Self::Segment(name) | Self::Partial(name, _) | Self::BackupHistory(name, _) => {
                name.timeline
            }
            Self::History(timeline) => timeline,
        }
    }
}

impl fmt::Display for WalFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(name) => write!(f, "{name}"),
            Self::Partial(name, 1) => write!(f, "{name}.partial"),
            Self::Partial(name, number) => write!(f, "{name}.partial.{number}"),
            Self::History(timeline) => write!(f, "{timeline}.history"),
            Self::BackupHistory(name, offset) => write!(f, "{name}.{offset:08X}.backup"),
        }
    }
}

impl FromStr for WalFileName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (stem, rest) = text.split_once('.').unwrap_or((text, ""));
        let history = || hex8(stem).and_then(TimelineId::new).map(Self::History);
        let backup = || {
            let offset = hex8(rest.strip_suffix(".backup")?)?;
            Some(Self::BackupHistory(stem.parse().ok()?, offset))
        };
        let name = match rest {
            "" if text.len() == 24 => stem.parse().ok().map(Self::Segment),
            "partial" => stem.parse().ok().map(|name| Self::Partial(name, 1)),
            "history" => history(),
            _ => further_partial(stem, rest).or_else(backup),
        };
        name.ok_or_else(|| Error::invalid("WAL file name", text))
    }
}

/// `NAME.partial.N`, N from 2 to [`MOST_PARTIALS`] without leading zeros.
fn further_partial(stem: &str, rest: &str) -> Option<WalFileName> {
    let digits = rest.strip_prefix("partial.")?;
    let number: u32 = digits.parse().ok()?;
    let is_ours = (2..=MOST_PARTIALS).contains(&number) && number.to_string() == digits;
    let name = stem.parse().ok().filter(|_| is_ours)?;
    Some(WalFileName::Partial(name, number))
}

/// Eight upper-case hexadecimal digits, as PostgreSQL writes them.
pub(super) fn hex8(text: &str) -> Option<u32> {
    let upper = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
    (text.len() == 8 && text.bytes().all(upper))
        .then(|| u32::from_str_radix(text, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_wal_file_name_reads_back() {
        for text in [
            "00000001000000000000002A",
            "00000003000000160000B374",
            "00000001000000000000002A.partial",
            "00000001000000000000002A.partial.2",
            "00000001000000000000002A.partial.99",
            "00000002.history",
            "00000001000000000000002A.00000028.backup",
        ] {
            assert_eq!(text.parse::<WalFileName>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_wal_file_name_is_refused() {
        for text in [
            "",
            "RECOVERYXLOG",
            "00000001000000000000002a",
            "00000000000000000000002A",
            "00000001000000000000002A.",
            "00000001000000000000002A.lz4",
            "00000001000000000000002A.partial.1",
            "00000001000000000000002A.partial.02",
            "00000001000000000000002A.partial.100",
            "0000002.history",
            "00000001000000000000002A.28.backup",
            "../00000001000000000000002A",
        ] {
            assert!(text.parse::<WalFileName>().is_err(), "{text}");
        }
    }

    #[test]
    fn segment_names_follow_the_segment_size() {
        let timeline = TimelineId::new(1).unwrap();
        for (mib, lsn, name) in [
            (16, 0x1_0000_0000, "000000010000000100000000"),
            (1, 0xFFFF_FFFF, "000000010000000000000FFF"),
            (64, 0x2_0400_0000, "000000010000000200000001"),
            (1024, 0x1_C000_0000, "000000010000000100000003"),
        ] {
            let size = SegmentSize::new(mib << 20).unwrap();
            let number = size.segment_of(Lsn(lsn));
            assert_eq!(number.on(timeline, size).to_string(), name);
            assert_eq!(
                name.parse::<SegmentName>().unwrap().number(size),
                Some(number)
            );
        }
    }

    #[test]
    fn a_name_beyond_the_last_segment_of_a_log_has_no_number() {
        let name: SegmentName = "000000010000000000000100".parse().unwrap();
        assert_eq!(name.number(SegmentSize::DEFAULT), None);
    }
}
