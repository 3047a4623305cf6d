//! Segments as they come out of the archive: sound ones and others.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walhalla_postgres::{History, SystemIdentifier, TimelineId};
use walhalla_postgres::wal::page_header::PageHeader;
use walhalla_postgres::wal::segment_check::{Cluster, Extent, SegmentCheck};

fuzz_target!(|data: &[u8]| {
    // The cluster and name that the first page wants, so that there is more to check than it.
    let Some(header) = PageHeader::read(data) else {
        return;
    };
    let system_identifier = SystemIdentifier(header.long.map_or(7, |(system, ..)| system));
    let Some(cluster) = Cluster::of_first_page(data, system_identifier) else {
        return;
    };
    let (size, timeline) = (cluster.segment_size, TimelineId::FIRST);
    let number = size.segment_of(header.address);
    let root = History::root(timeline);
    for extent in [Extent::Whole, Extent::Partial] {
        let name = number.on(timeline, size);
        let check = SegmentCheck::new(cluster, root.clone(), name, size.bytes(), extent);
        let Ok(mut check) = check else {
            continue;
        };
        if check.pages(data).is_ok()
            && let Ok(mut next) = check.followed_by(root.clone(), number.next().on(timeline, size))
        {
            let _ = next.pages(data);
        }
    }
});
