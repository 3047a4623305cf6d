//! Timelines and their histories.

use std::fmt;
use std::str::FromStr;

use super::segment::hex8;
use super::{Error, Lsn, SegmentName, SegmentNo, SegmentSize};

/// A timeline's number, never 0; shown as eight hexadecimal digits.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(try_from = "u32", into = "u32")]
pub struct TimelineId(u32);

/// Where a timeline comes from: its ancestors, oldest first (timeline.c, `readTimeLineHistory`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// The timeline itself.
    pub timeline: TimelineId,
    /// Each ancestor and the position where it was left.
    pub ancestors: Vec<Ancestor>,
}

/// A timeline that was left for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Ancestor {
    /// The timeline that was left.
    pub timeline: TimelineId,
    /// WAL before this position is on `timeline`; from here on it is on the next one.
    pub switch_lsn: Lsn,
}

impl TimelineId {
    /// The timeline of a new cluster.
    pub const FIRST: Self = Self(1);

    /// A timeline; 0 is none.
    pub fn new(number: u32) -> Option<Self> {
        (number != 0).then_some(Self(number))
    }

    /// The plain number.
    pub fn number(self) -> u32 {
        self.0
    }

    /// The next higher timeline.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}", self.0)
    }
}

impl FromStr for TimelineId {
    type Err = Error;

    /// From eight hexadecimal digits, as in file names.
    fn from_str(text: &str) -> Result<Self, Error> {
        hex8(text)
            .and_then(Self::new)
            .ok_or_else(|| Error::invalid("timeline", text))
    }
}

impl TryFrom<u32> for TimelineId {
    type Error = &'static str;

    fn try_from(number: u32) -> Result<Self, &'static str> {
        Self::new(number).ok_or("0 is no timeline")
    }
}

impl From<TimelineId> for u32 {
    fn from(timeline: TimelineId) -> Self {
        timeline.0
    }
}

impl History {
    /// A timeline without ancestors.
    pub fn root(timeline: TimelineId) -> Self {
        Self {
            timeline,
            ancestors: Vec::new(),
        }
    }

    /// Reads the text of `timeline`'s `.history` file. Its reasons may be in any encoding.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the line that is wrong: ancestors must ascend and be older than `timeline`.
    pub fn parse(timeline: TimelineId, text: &[u8]) -> Result<Self, Error> {
        let text = &*String::from_utf8_lossy(text);
        if !text.is_empty() && !text.ends_with('\n') {
            return Err(Error::invalid("end of the timeline history", text));
        }
        let mut ancestors: Vec<Ancestor> = Vec::new();
        for line in text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let entry =
                parse_line(line).ok_or_else(|| Error::invalid("timeline history line", line))?;
            let ascends = ancestors
                .last()
                .is_none_or(|last| last.timeline < entry.timeline);
            if !ascends || entry.timeline >= timeline {
                return Err(Error::invalid(
                    "order of timelines in the timeline history line",
                    line,
                ));
            }
            ancestors.push(entry);
        }
        Ok(Self {
            timeline,
            ancestors,
        })
    }

    /// The history of `timeline`, itself or one of the ancestors.
    #[must_use]
    pub fn of(&self, timeline: TimelineId) -> Self {
        let ancestors = self
            .ancestors
            .iter()
            .copied()
            .filter(|left| left.timeline < timeline)
            .collect();
        Self {
            timeline,
            ancestors,
        }
    }

    /// The timeline whose WAL holds the byte at `lsn` (timeline.c, `tliOfPointInHistory`).
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        // Of the lines that end after it, from the newest back, the oldest; asked for each page of WAL.
        let newest_first = self.ancestors.iter().rev();
        let after = newest_first.take_while(|left| lsn < left.switch_lsn);
        after.last().map_or(self.timeline, |left| left.timeline)
    }

    /// Where `timeline` was left on the way here; `None` for the timeline itself and for strangers.
    pub fn switch_from(&self, timeline: TimelineId) -> Option<Lsn> {
        self.left()
            .find(|left| left.timeline == timeline)
            .map(|left| left.switch_lsn)
    }

    /// Whether WAL up to `end` on `timeline` is part of this history.
    pub fn contains(&self, timeline: TimelineId, end: Lsn) -> bool {
        timeline == self.timeline
            || self
                .switch_from(timeline)
                .is_some_and(|switch| end <= switch)
    }

    /// The ancestors, oldest first, with where each was left on the way here.
    ///
    /// That is not always what the file tells. A server that recovers along timeline 2 to a point before that one began
    /// writes `1 0/9000000` and `2 0/4000000` into the history of 3: it never was on 2, and left 1 where 3 begins. Who
    /// looks for a position from the newest line back finds that (timeline.c, `tliOfPointInHistory`).
    fn left(&self) -> impl Iterator<Item = Ancestor> {
        let mut left = self.ancestors.clone();
        let mut end = Lsn(u64::MAX);
        for ancestor in left.iter_mut().rev() {
            end = end.min(ancestor.switch_lsn);
            ancestor.switch_lsn = end;
        }
        left.into_iter()
    }

    /// Each timeline on the way with the positions between which it was written, oldest first; the last has no end.
    pub fn spans(&self) -> impl DoubleEndedIterator<Item = (TimelineId, Lsn, Option<Lsn>)> {
        let begins = std::iter::once(Lsn::ZERO).chain(self.left().map(|left| left.switch_lsn));
        let ends = self
            .left()
            .map(|left| (left.timeline, Some(left.switch_lsn)));
        let all: Vec<_> = ends
            .chain(std::iter::once((self.timeline, None)))
            .zip(begins)
            .map(|((timeline, end), begin)| (timeline, begin, end))
            .collect();
        all.into_iter()
    }

    /// Each timeline with the segments, from the one to before the other, that recovery along this history reads
    /// on it, oldest first.
    ///
    /// A segment in which one timeline left another is the newer one's (xlogrecovery.c, `XLogFileReadAnyTLI`), and
    /// only that: the older one's goes on past the switch, with what never happened on the newer timeline.
    pub fn segments(
        &self,
        size: SegmentSize,
    ) -> impl DoubleEndedIterator<Item = (TimelineId, SegmentNo, Option<SegmentNo>)> {
        self.spans().filter_map(move |(timeline, begin, end)| {
            let begin = size.segment_of(begin);
            let end = end.map(|end| size.segment_of(end));
            end.is_none_or(|end| begin < end)
                .then_some((timeline, begin, end))
        })
    }

    /// The name under which recovery along this history asks for a segment.
    pub fn segment_name(&self, number: SegmentNo, size: SegmentSize) -> SegmentName {
        let mut newest = self.segments(size).rev();
        let span = newest.find(|(_, begin, _)| *begin <= number);
        number.on(span.map_or(self.timeline, |(timeline, ..)| timeline), size)
    }
}

fn parse_line(line: &str) -> Option<Ancestor> {
    let mut fields = line.split_ascii_whitespace();
    let timeline = TimelineId::new(fields.next()?.parse().ok()?)?;
    let switch_lsn = fields.next()?.parse().ok()?;
    Some(Ancestor {
        timeline,
        switch_lsn,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    #[test]
    fn a_history_tells_the_timeline_of_each_position() {
        let text =
            "1\t0/3000000\tno recovery target specified\n\n2\t0/5000060\tat restore point \"x\"\n";
        let history = History::parse(timeline(4), text.as_bytes()).unwrap();
        assert_eq!(history.timeline_at(Lsn(0x2FF_FFFF)), timeline(1));
        assert_eq!(history.timeline_at(Lsn(0x300_0000)), timeline(2));
        assert_eq!(history.timeline_at(Lsn(0x500_0060)), timeline(4));
        assert!(history.contains(timeline(1), Lsn(0x300_0000)));
        assert!(!history.contains(timeline(1), Lsn(0x300_0001)));
        assert!(!history.contains(timeline(3), Lsn(1)));
        assert_eq!(history.spans().count(), 3);
    }

    /// As PostgreSQL writes it that is restored to a point before the switch, along the timeline after the switch.
    #[test]
    fn a_timeline_that_was_left_before_it_began_was_never_lived_on() {
        let text =
            "1\t0/9000098\tno recovery target specified\n\n2\t0/404AD80\tat restore point \"x\"\n";
        let history = History::parse(timeline(3), text.as_bytes()).unwrap();
        assert_eq!(history.timeline_at(Lsn(0x404_AD7F)), timeline(1));
        assert_eq!(history.timeline_at(Lsn(0x404_AD80)), timeline(3));
        assert!(history.contains(timeline(1), Lsn(0x404_AD80)));
        assert!(!history.contains(timeline(1), Lsn(0x500_0000)));
        assert!(!history.contains(timeline(2), Lsn(0x900_0100)));
        let size = SegmentSize::new(16 << 20).unwrap();
        let segments: Vec<_> = history.segments(size).collect();
        let [first, third] = [
            (timeline(1), SegmentNo(0), Some(SegmentNo(4))),
            (timeline(3), SegmentNo(4), None),
        ];
        assert_eq!(segments, [first, third]);
        let own = history.of(timeline(2));
        assert_eq!(own.timeline_at(Lsn(0x500_0000)), timeline(1));
    }

    #[test]
    fn a_history_with_timelines_out_of_order_is_refused() {
        for text in [
            "2\t0/1\tx\n1\t0/2\tx\n",
            "4\t0/1\tx\n",
            "x\t0/1\n",
            "1\n",
            "0\t0/1\tx",
        ] {
            assert!(
                History::parse(timeline(4), text.as_bytes()).is_err(),
                "{text}"
            );
        }
    }
}
