//! Where receiving begins.

use walhalla_postgres::{History, Lsn, SegmentNo, SegmentSize, TimelineId};

/// What is known of where to begin.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    /// Where the slot holds WAL from.
    pub(super) slot: Option<Lsn>,
    /// The segment after the last one that is archived on the server's history.
    pub(super) archived: Option<SegmentNo>,
    /// Up to where the server's WAL is on its disk.
    pub(super) flushed: Lsn,
}

/// The timeline and the segment's begin from which a server on `history` is asked for WAL.
///
/// A slot holds all of the segment in which its position is. Without one, what follows the archive is asked for, and nothing
/// that the server has not begun.
pub(super) fn place(known: Known, history: &History, size: SegmentSize) -> (TimelineId, Lsn) {
    let current = size.segment_of(known.flushed);
    let begin = |number: SegmentNo| number.start(size);
    if let Some(slot) = known.slot {
        // The position may be on a timeline that was left.
        return (history.timeline_at(slot), begin(size.segment_of(slot)));
    }
    match known.archived.filter(|next| *next <= current) {
        Some(next) => (history.timeline_at(begin(next)), begin(next)),
        None => (history.timeline, begin(current)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhalla_postgres::timeline::Ancestor;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn at(segment: u64, offset: u64) -> Lsn {
        Lsn(segment * SIZE.bytes() + offset)
    }

    /// Timeline 2 left timeline 1 in segment 5.
    fn history() -> History {
        History {
            timeline: TimelineId::new(2).unwrap(),
            ancestors: vec![Ancestor {
                timeline: TimelineId::FIRST,
                switch_lsn: at(5, 800),
            }],
        }
    }

    #[test]
    fn a_slot_is_followed_from_the_begin_of_its_segment_on_its_timeline() {
        let begin = |slot: Lsn| {
            let known = Known {
                slot: Some(slot),
                archived: Some(SegmentNo(9)),
                flushed: at(9, 1),
            };
            let (timeline, lsn) = place(known, &history(), SIZE);
            (timeline.number(), lsn)
        };
        assert_eq!(begin(at(4, 77)), (1, at(4, 0)));
        assert_eq!(begin(at(5, 77)), (1, at(5, 0)));
        assert_eq!(begin(at(5, 800)), (2, at(5, 0)));
        assert_eq!(begin(at(7, 0)), (2, at(7, 0)));
    }

    #[test]
    fn without_a_slot_the_archive_is_gone_on_with_or_the_server() {
        let begin = |archived: Option<u64>| {
            let known = Known {
                slot: None,
                archived: archived.map(SegmentNo),
                flushed: at(9, 1),
            };
            let (timeline, lsn) = place(known, &history(), SIZE);
            (timeline.number(), lsn)
        };
        assert_eq!(begin(None), (2, at(9, 0)));
        assert_eq!(begin(Some(5)), (1, at(5, 0)));
        assert_eq!(begin(Some(6)), (2, at(6, 0)));
        assert_eq!(begin(Some(9)), (2, at(9, 0)));
        assert_eq!(begin(Some(10)), (2, at(9, 0)), "another server's");
    }
}
