//! `.history` files.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walhalla_postgres::{History, Lsn, SegmentNo, SegmentSize, TimelineId};

fuzz_target!(|data: (u32, u64, &[u8])| {
    let (number, lsn, text) = data;
    let Some(timeline) = TimelineId::new(number) else {
        return;
    };
    let Ok(history) = History::parse(timeline, text) else {
        return;
    };
    assert!(
        history
            .ancestors
            .iter()
            .all(|left| left.timeline < timeline)
    );
    let _ = history.timeline_at(Lsn(lsn));
    let _ = history.contains(timeline, Lsn(lsn));
    assert!(history.spans().count() > history.ancestors.len());
    let size = SegmentSize::DEFAULT;
    let name = history.segment_name(SegmentNo(lsn >> 24), size);
    assert!(name.timeline <= timeline);
});
