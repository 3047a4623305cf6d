//! Segments that are not whole: what was cut is refused, and the last one of a timeline that was left takes nobody's name.

use walhalla_postgres::wal::reader::RecordReader;
use walhalla_postgres::{Lsn, SegmentName, SegmentSize};

use crate::support::{Area, Segments, Store, Walhalla, host};

const PAGE_BYTES: usize = 8192;
const SEGMENT_BYTES: u64 = 16 << 20;

/// Segments to push, and where to.
struct Archive {
    segments: Segments,
    walhalla: Walhalla,
    store: Store,
    _area: Area,
}

impl Archive {
    fn make(count: usize) -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        Self {
            segments: Segments::make(&area, count),
            walhalla,
            store,
            _area: area,
        }
    }

    /// The segment's content, and where in it each record ends that ends in it.
    fn records(&self, name: &str) -> (Vec<u8>, Vec<usize>) {
        let bytes = self.segments.original(name);
        let size = SegmentSize::new(SEGMENT_BYTES).unwrap();
        let start = start_of(name);
        let mut reader = RecordReader::new(size);
        let mut ends = Vec::new();
        for (index, page) in bytes.chunks(PAGE_BYTES).enumerate() {
            let address = Lsn(start.0 + (index * PAGE_BYTES) as u64);
            let mut show = |record: &walhalla_postgres::wal::reader::Record| {
                let end = (record.end.0 - start.0 + 7) & !7;
                ends.push(usize::try_from(end).unwrap());
            };
            reader.page(address, page, &mut show).unwrap();
        }
        assert!(reader.is_over(), "{name} does not end in a switch");
        (bytes, ends)
    }

    #[track_caller]
    fn refuses(&self, name: &str, content: &[u8]) {
        self.segments.put(name, content);
        self.segments
            .push(&self.walhalla, name)
            .exits_with(1)
            .says(&[name, "hint:"]);
        self.segments.assert_not_archived(&self.walhalla, name);
    }

    #[track_caller]
    fn takes(&self, name: &str, content: &[u8]) {
        self.segments.put(name, content);
        self.segments.push(&self.walhalla, name).succeeds();
    }

    fn objects(&self, name: &str) -> usize {
        self.store.objects_named(&format!("{name}.lz4")).len()
    }

    #[track_caller]
    fn holds(&self, name: &str, content: &[u8]) {
        let (outcome, fetched) = self.segments.fetch(&self.walhalla, name);
        outcome.succeeds();
        assert!(fetched.unwrap() == content, "{name} has other content");
    }

    /// The history of timeline 2, which left timeline 1 at this byte of the segment.
    fn leaves(&self, name: &str, at: usize) {
        let at = Lsn(start_of(name).0 + at as u64);
        let history = format!("1\t{at}\tno recovery target specified\n");
        self.segments.put("00000002.history", history.as_bytes());
    }

    fn no_signal(&self) {
        for signal in ["recovery.signal", "standby.signal"] {
            let _ = std::fs::remove_file(self.segments.data.join(signal));
        }
    }
}

fn start_of(name: &str) -> Lsn {
    let size = SegmentSize::new(SEGMENT_BYTES).unwrap();
    let name: SegmentName = name.parse().unwrap();
    name.number(size).unwrap().start(size)
}

/// The content with zeros from a byte on.
fn cut(content: &[u8], at: usize) -> Vec<u8> {
    let mut cut = content.to_vec();
    cut[at..].fill(0);
    cut
}

/// The same, with pages of an earlier segment instead, as a recycled file has them.
fn recycled(content: &[u8], at: usize) -> Vec<u8> {
    let mut recycled = content.to_vec();
    let mut earlier = vec![0x5A; content.len()];
    for page in earlier.chunks_mut(PAGE_BYTES) {
        page[2..4].copy_from_slice(&0_u16.to_le_bytes());
        page[..2].copy_from_slice(&0xD116_u16.to_le_bytes());
        page[4..8].copy_from_slice(&1_u32.to_le_bytes());
        page[8..16].copy_from_slice(&0x2000_u64.to_le_bytes());
    }
    recycled[at..].copy_from_slice(&earlier[at..]);
    recycled
}

#[test]
fn wal_push_refuses_a_segment_that_was_cut_wherever_it_was() {
    let archive = Archive::make(1);
    let name = archive.segments.names[0].clone();
    let (content, ends) = archive.records(&name);
    let last = ends.len() - 1;
    // Within a record, between two, and just before the switch; on a page border, too.
    for at in [
        ends[last / 2] + 8,
        ends[last / 2],
        ends[last - 1],
        ends[last / 2] / PAGE_BYTES * PAGE_BYTES,
    ] {
        archive.refuses(&name, &cut(&content, at));
        archive.refuses(&name, &recycled(&content, at));
    }
    archive.takes(&name, &content);
    archive.segments.assert_archived(&archive.walhalla, &name);
}

#[test]
fn what_stands_behind_a_switch_is_nobodys_wal() {
    let archive = Archive::make(1);
    let name = archive.segments.names[0].clone();
    let (content, ends) = archive.records(&name);
    let end = *ends.last().unwrap();
    let with_remains = recycled(&content, end);
    assert!(with_remains != content);
    archive.takes(&name, &with_remains);
    archive.holds(&name, &with_remains);
    // A standby that archives, too, has zeros there.
    archive.takes(&name, &content);
    assert_eq!(archive.objects(&name), 1);
}

#[test]
fn the_last_segment_of_a_timeline_that_was_left_is_archived_as_a_partial_one() {
    for tail in [cut, recycled] {
        let archive = Archive::make(1);
        let name = archive.segments.names[0].clone();
        let partial = format!("{name}.partial");
        let (content, ends) = archive.records(&name);
        let at = ends[ends.len() / 2];
        let unfinished = tail(&content, at);

        // Without a sign that the timeline was left there, it may have been cut.
        archive.segments.signal("standby.signal");
        archive.refuses(&name, &unfinished);
        archive.leaves(&name, ends[ends.len() / 2 + 1]);
        archive.refuses(&name, &unfinished);
        // Nor does a server take it that writes the timeline itself.
        archive.leaves(&name, at);
        archive.no_signal();
        archive.refuses(&name, &unfinished);

        archive.segments.signal("standby.signal");
        archive.takes(&name, &unfinished);
        archive.takes(&name, &unfinished);
        archive
            .segments
            .assert_not_archived(&archive.walhalla, &name);
        archive.holds(&partial, &unfinished);
        // The old primary, which goes on, finishes it.
        archive.no_signal();
        archive.takes(&name, &content);
        archive.segments.assert_archived(&archive.walhalla, &name);
        // And what comes late is in there.
        archive.segments.signal("standby.signal");
        archive.takes(&name, &unfinished);
        assert_eq!(archive.objects(&partial), 1);
        assert_eq!(archive.objects(&format!("{partial}.2")), 0);
    }
}

#[test]
fn partial_segments_of_several_servers_are_kept_one_beside_the_other() {
    let archive = Archive::make(1);
    let name = archive.segments.names[0].clone();
    let partial = format!("{name}.partial");
    let (content, ends) = archive.records(&name);
    let middle = ends.len() / 2;
    let [short, medium, long] =
        [middle - 3, middle, middle + 3].map(|index| cut(&content, ends[index]));
    archive.takes(&partial, &medium);
    // All that is valid in it is there.
    archive.takes(&partial, &short);
    assert_eq!(archive.objects(&format!("{partial}.2")), 0);
    archive.takes(&partial, &long);
    archive.takes(&partial, &long);
    archive.holds(&partial, &medium);
    archive.holds(&format!("{partial}.2"), &long);
    // A server that went another way at the same place.
    let mut other = medium.clone();
    other[ends[middle - 1] + 20] ^= 1;
    archive.takes(&partial, &recycled(&other, ends[middle]));
    assert_eq!(
        archive.objects(&format!("{partial}.3")),
        0,
        "a damaged record is no WAL"
    );
    archive
        .segments
        .assert_not_archived(&archive.walhalla, &name);
    for shown in [partial.clone(), format!("{partial}.2")] {
        assert_eq!(archive.objects(&shown), 1);
    }
}

#[test]
fn a_hole_in_the_archive_is_not_its_end() {
    let archive = Archive::make(3);
    let names = archive.segments.names.clone();
    for name in &names {
        archive.segments.push(&archive.walhalla, name).succeeds();
    }
    let next = |name: &str| {
        let number = u64::from_str_radix(&name[16..], 16).unwrap() + 1;
        format!("{}{number:08X}", &name[..16])
    };
    let end = next(&names[2]);
    archive.segments.signal("recovery.signal");
    archive
        .segments
        .assert_not_archived(&archive.walhalla, &end);
    std::fs::remove_file(archive.store.object_of(&names[1])).unwrap();
    let (outcome, fetched) = archive.segments.fetch(&archive.walhalla, &names[1]);
    outcome
        .exits_with(200)
        .says(&[&names[1], &names[2], "does not end there", "hint:"]);
    assert!(fetched.is_none());
    // A standby goes on asking.
    archive.segments.signal("standby.signal");
    let (outcome, _) = archive.segments.fetch(&archive.walhalla, &names[1]);
    outcome.exits_within(1..=125);

    // A segment from before its timeline began is none of its holes: the server asks the older timeline next.
    archive.segments.signal("recovery.signal");
    archive.leaves(&names[2], 0x28);
    archive
        .segments
        .push(&archive.walhalla, "00000002.history")
        .succeeds();
    let on_second = |name: &str| name.replacen("00000001", "00000002", 1);
    let stored = archive.store.object_of(&names[2]);
    let folder = stored.parent().unwrap().with_file_name("00000002");
    let later = folder.join(format!("{}.lz4", on_second(&end)));
    std::fs::copy(&stored, &later).unwrap();
    host().give_to_user(&later);
    archive
        .segments
        .assert_not_archived(&archive.walhalla, &on_second(&names[1]));
    let (outcome, _) = archive
        .segments
        .fetch(&archive.walhalla, &on_second(&names[2]));
    outcome.exits_with(200).says(&[&on_second(&end)]);

    // The end of the older timeline is gone, and the newer one shows that it was there.
    std::fs::remove_file(&stored).unwrap();
    std::fs::remove_file(&later).unwrap();
    let (outcome, _) = archive.segments.fetch(&archive.walhalla, &names[1]);
    outcome.exits_with(200).says(&["timeline 00000002 left"]);
}

#[test]
fn an_archived_segment_that_was_cut_does_not_end_recovery_before_later_ones() {
    let archive = Archive::make(2);
    let names = archive.segments.names.clone();
    let (content, ends) = archive.records(&names[0]);
    archive
        .segments
        .push(&archive.walhalla, &names[0])
        .succeeds();
    // As something else may have stored it, without a checksum of Walhalla's.
    let object = archive.store.object_of(&names[0]);
    std::fs::remove_file(&object).unwrap();
    let plain = object.with_file_name(&names[0]);
    std::fs::write(&plain, cut(&content, ends[ends.len() / 2])).unwrap();
    host().give_to_user(&plain);
    archive.segments.signal("recovery.signal");
    let (outcome, _) = archive.segments.fetch(&archive.walhalla, &names[0]);
    outcome.succeeds();
    archive
        .segments
        .push(&archive.walhalla, &names[1])
        .succeeds();
    let (outcome, fetched) = archive.segments.fetch(&archive.walhalla, &names[0]);
    outcome.exits_with(200).says(&["within the segment"]);
    assert!(fetched.is_none());
}

#[test]
fn histories_are_handed_over_only_when_they_read_as_one() {
    let archive = Archive::make(1);
    archive
        .segments
        .push(&archive.walhalla, &archive.segments.names[0])
        .succeeds();
    let object = archive.store.object_of(&archive.segments.names[0]);
    let folder = object.parent().unwrap().with_file_name("00000002");
    std::fs::create_dir_all(&folder).unwrap();
    let history = folder.join("00000002.history");
    archive.segments.signal("recovery.signal");
    let long = "1\t0/3000028\tno recovery target\n".repeat(1 << 18);
    for text in [
        "",
        "nonsense\n",
        "2\t0/3000028\titself\n",
        "1\t0/3000028",
        long.as_str(),
    ] {
        std::fs::write(&history, text).unwrap();
        host().give_to_user(&folder);
        host().give_to_user(&history);
        let (outcome, fetched) = archive
            .segments
            .fetch(&archive.walhalla, "00000002.history");
        outcome.exits_with(200).says(&["00000002.history"]);
        assert!(fetched.is_none());
    }
}
