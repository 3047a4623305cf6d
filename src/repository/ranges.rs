//! Ranges of WAL segments, by timeline.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use walhalla_postgres::{SegmentName, SegmentNo, SegmentSize, TimelineId};

/// Segments of one timeline that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The first one; from the timeline's begin on where there is none.
    first: Option<SegmentName>,
    /// The last one; without an end where there is none.
    last: Option<SegmentName>,
}

/// Ranges of several timelines. Those of one timeline do not overlap, and ascend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ranges(BTreeMap<TimelineId, Vec<Range>>);

impl Range {
    /// All of a timeline.
    pub const ALL: Self = Self {
        first: None,
        last: None,
    };

    /// From `first` to `last`, if there is a last one.
    pub fn of(first: SegmentName, last: Option<SegmentName>) -> Self {
        let first = Some(first);
        Self { first, last }
    }

    /// From `first` on.
    pub fn since(first: SegmentName) -> Self {
        Self::of(first, None)
    }

    /// From `first` to `last`.
    pub fn through(first: SegmentName, last: SegmentName) -> Self {
        Self::of(first, Some(last))
    }

    /// The first one; none where it begins with the timeline.
    pub fn first(&self) -> Option<SegmentName> {
        self.first
    }

    /// The last one; none where it has no end.
    pub fn last(&self) -> Option<SegmentName> {
        self.last
    }

    fn has(&self, segment: SegmentName) -> bool {
        self.first <= Some(segment) && self.last.is_none_or(|last| segment <= last)
    }

    /// Whether some segment can be in both.
    fn meets(&self, other: &Self) -> bool {
        let begins_before_the_end =
            |one: &Self, of: &Self| of.last.is_none_or(|last| one.first <= Some(last));
        begins_before_the_end(self, other) && begins_before_the_end(other, self)
    }

    /// What is in either of two that meet.
    fn with(self, other: Self) -> Self {
        Self {
            first: self.first.min(other.first),
            last: self.last.zip(other.last).map(|(one, other)| one.max(other)),
        }
    }
}

impl Ranges {
    /// All of these timelines.
    pub fn all(timelines: impl Iterator<Item = TimelineId>) -> Self {
        Self(
            timelines
                .map(|timeline| (timeline, vec![Range::ALL]))
                .collect(),
        )
    }

    /// Adds a range of a timeline.
    pub fn add(&mut self, timeline: TimelineId, mut range: Range) {
        let ranges = self.0.entry(timeline).or_default();
        let meeting =
            |ranges: &[Range], range: &Range| ranges.iter().position(|other| other.meets(range));
        while let Some(position) = meeting(ranges, &range) {
            range = range.with(ranges.remove(position));
        }
        let position = ranges.partition_point(|other| other.first < range.first);
        ranges.insert(position, range);
    }

    /// Adds all of the other ones.
    pub fn extend(&mut self, other: &Self) {
        for (timeline, range) in other.iter() {
            self.add(timeline, *range);
        }
    }

    /// The same, of which those are one between which nothing is: `is_empty` tells that of two segments and what lies between.
    #[must_use]
    pub fn joined(&self, is_empty: impl Fn(SegmentName, SegmentName) -> bool) -> Self {
        let mut joined = Self::default();
        for (timeline, range) in self.iter() {
            let ranges = joined.0.entry(timeline).or_default();
            let last = ranges.last_mut();
            let joins = |last: &&mut Range| {
                let between = last.last.zip(range.first);
                between.is_some_and(|(first, last)| is_empty(first, last))
            };
            match last.filter(joins) {
                Some(last) => *last = last.with(*range),
                None => ranges.push(*range),
            }
        }
        joined
    }

    /// The same without some segments, which ascend. Ranges have both ends.
    #[must_use]
    pub fn without(&self, segments: &[SegmentName], size: SegmentSize) -> Self {
        let mut rest = Self::default();
        for (timeline, range) in self.iter() {
            let (Some(mut first), Some(last)) = (range.first, range.last) else {
                continue;
            };
            if first > last {
                continue;
            }
            let next = |segment: SegmentName| Some(segment.number(size)?.next().on(timeline, size));
            let before = |segment: SegmentName| {
                let number = segment.number(size)?.0.checked_sub(1)?;
                Some(SegmentNo(number).on(timeline, size))
            };
            let begin = segments.partition_point(|segment| *segment < first);
            let within = segments.iter().skip(begin);
            let mut is_kept = false;
            for segment in within.take_while(|segment| **segment <= last) {
                is_kept = *segment == last;
                if let Some(end) = before(*segment).filter(|end| first <= *end) {
                    rest.add(timeline, Range::through(first, end));
                }
                first = next(*segment).unwrap_or(*segment);
            }
            if first <= last && !is_kept {
                rest.add(timeline, Range::through(first, last));
            }
        }
        rest
    }

    /// What of the segments from `first` to `last`, of one timeline, is in none of the ranges, as numbers.
    pub fn outside(
        &self,
        first: SegmentName,
        last: SegmentName,
        size: SegmentSize,
    ) -> Vec<(SegmentNo, SegmentNo)> {
        let (Some(mut next), Some(end)) = (first.number(size), last.number(size)) else {
            return Vec::new();
        };
        let mut outside = Vec::new();
        for range in self.0.get(&first.timeline).into_iter().flatten() {
            let begin = range
                .first
                .and_then(|first| first.number(size))
                .unwrap_or(SegmentNo(0));
            let after = range
                .last
                .and_then(|last| last.number(size))
                .map_or(SegmentNo(u64::MAX), SegmentNo::next);
            if next < begin && next <= end {
                outside.push((next, SegmentNo(begin.0 - 1).min(end)));
            }
            next = next.max(after);
        }
        if next <= end {
            outside.push((next, end));
        }
        outside
    }

    /// Each range, with its timeline.
    pub fn iter(&self) -> impl Iterator<Item = (TimelineId, &Range)> {
        { self.0.iter() }
            .flat_map(|(timeline, ranges)| ranges.iter().map(|range| (*timeline, range)))
    }

    /// What of them lies from `first` to `last`, of one timeline.
    #[must_use]
    pub fn within(&self, first: SegmentName, last: SegmentName) -> Self {
        let bounds = Range::through(first, last);
        let ranges = self.0.get(&first.timeline).map_or(&[][..], Vec::as_slice);
        let within = ranges.iter().filter(|range| range.meets(&bounds));
        let within = within.map(|range| Range {
            first: range.first.max(bounds.first),
            last: Some(range.last.map_or(last, |end| end.min(last))),
        });
        let within: Vec<Range> = within.collect();
        Self(BTreeMap::from([(first.timeline, within)]))
    }

    /// Whether the segment is in one of them.
    pub fn has(&self, segment: SegmentName) -> bool {
        let ranges = self.0.get(&segment.timeline).map_or(&[][..], Vec::as_slice);
        let next = ranges.partition_point(|range| range.first <= Some(segment));
        let before = next
            .checked_sub(1)
            .and_then(|position| ranges.get(position));
        before.is_some_and(|range| range.has(segment))
    }

    /// Whether a segment from `first` to `last` is in one of them.
    pub fn meets(&self, first: SegmentName, last: Option<SegmentName>) -> bool {
        let wanted = Range::of(first, last);
        let ranges = self.0.get(&first.timeline).map_or(&[][..], Vec::as_slice);
        ranges.iter().any(|range| range.meets(&wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENTS: usize = 40;

    fn size() -> SegmentSize {
        SegmentSize::new(1 << 24).unwrap()
    }

    /// Around the place where a segment's name gets another middle part.
    fn name(number: usize) -> SegmentName {
        SegmentNo(240 + number as u64).on(TimelineId::FIRST, size())
    }

    /// Random ranges, and which segments are in one of them.
    fn random() -> (Ranges, Vec<bool>) {
        let (mut ranges, mut has) = (Ranges::default(), vec![false; SEGMENTS]);
        for _ in 0..fastrand::usize(..6) {
            let first = fastrand::usize(..SEGMENTS);
            let last = fastrand::usize(first..SEGMENTS.min(first + 8));
            ranges.add(TimelineId::FIRST, Range::through(name(first), name(last)));
            (first..=last).for_each(|number| has[number] = true);
        }
        (ranges, has)
    }

    fn segments(ranges: &Ranges) -> Vec<bool> {
        (0..SEGMENTS)
            .map(|number| ranges.has(name(number)))
            .collect()
    }

    #[test]
    fn ranges_hold_what_was_added_and_stay_in_order() {
        for _ in 0..2000 {
            let (ranges, has) = random();
            assert_eq!(segments(&ranges), has);
            let firsts: Vec<_> = ranges.iter().map(|(_, range)| range.first).collect();
            assert!(firsts.is_sorted());
            let (first, last) = (fastrand::usize(..SEGMENTS), fastrand::usize(..SEGMENTS));
            if first <= last {
                let meets = ranges.meets(name(first), Some(name(last)));
                assert_eq!(meets, has[first..=last].contains(&true));
            }
            let written = serde_json::to_string(&ranges).unwrap();
            assert_eq!(serde_json::from_str::<Ranges>(&written).unwrap(), ranges);
        }
    }

    #[test]
    fn segments_are_taken_out_one_by_one() {
        for _ in 0..2000 {
            let (ranges, mut has) = random();
            let out: Vec<usize> = (0..SEGMENTS).filter(|_| fastrand::u32(..4) == 0).collect();
            let names: Vec<SegmentName> = out.iter().map(|number| name(*number)).collect();
            for number in &out {
                has[*number] = false;
            }
            assert_eq!(segments(&ranges.without(&names, size())), has);
        }
    }

    #[test]
    fn what_is_outside_is_told_in_runs() {
        for _ in 0..2000 {
            let (ranges, has) = random();
            let first = fastrand::usize(..SEGMENTS);
            let last = fastrand::usize(first..SEGMENTS);
            let mut outside = vec![false; SEGMENTS];
            let within = ranges.within(name(first), name(last));
            let clipped = |number: usize| has[number] && (first..=last).contains(&number);
            let clipped: Vec<bool> = (0..SEGMENTS).map(clipped).collect();
            assert_eq!(segments(&within), clipped);
            for (from, to) in ranges.outside(name(first), name(last), size()) {
                let place = |number: SegmentNo| usize::try_from(number.0 - 240).unwrap();
                (place(from)..=place(to)).for_each(|number| outside[number] = true);
            }
            let expected = |number: usize| (first..=last).contains(&number) && !has[number];
            let expected: Vec<bool> = (0..SEGMENTS).map(expected).collect();
            assert_eq!(outside, expected);
        }
    }

    #[test]
    fn ranges_are_joined_over_nothing() {
        let mut ranges = Ranges::default();
        for (first, last) in [(1, 3), (5, 6), (20, 21)] {
            ranges.add(TimelineId::FIRST, Range::through(name(first), name(last)));
        }
        let joined = ranges.joined(|first, last| first < name(6) && last < name(10));
        let whole = |ranges: &Ranges| ranges.iter().count();
        assert_eq!((whole(&ranges), whole(&joined)), (3, 2));
        assert!(joined.has(name(4)) && !joined.has(name(12)));
    }
}
