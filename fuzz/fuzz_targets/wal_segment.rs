//! Segments as they come out of the archive: sound ones and others.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walhalla_postgres::wal::cluster::Cluster;
use walhalla_postgres::wal::page_header::PageHeader;
use walhalla_postgres::wal::segment_reader::{Extent, KnownCluster, SegmentReader};
use walhalla_postgres::{History, SystemIdentifier, TimelineId};

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
        let known = KnownCluster::Identity(system_identifier);
        let Ok(mut reader) = SegmentReader::begin(known, &root, name, extent, None) else {
            continue;
        };
        // The last byte says where the data is cut, so that pages and headers are torn too.
        let cut = 37 * usize::from(data.last().copied().unwrap_or(0)).min(data.len());
        let (begin, rest) = data.split_at(cut);
        if reader.feed(begin, |_, _| {}).is_ok()
            && reader.feed(rest, |_, _| {}).is_ok()
            && let Ok(last) = reader.leave()
            && let Ok(mut next) = SegmentReader::begin(
                known,
                &root,
                number.next().on(timeline, size),
                Extent::Whole,
                Some(last),
            )
        {
            let _ = next.feed(data, |_, _| {});
        }
    }
});
