//! Summaries of WAL segments: whatever is accepted reads back the same, and any two of them can be joined.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walhalla_postgres::summary::{FORMAT, Joiner, Summary};

fuzz_target!(|data: &[u8]| {
    let Ok(known) = serde_json::from_slice::<Summary>(data) else {
        return;
    };
    if known.format != FORMAT {
        return;
    }
    let json = known.to_json();
    let back = Summary::parse(&json, known.segment, known.system_identifier);
    assert_eq!(back.expect("what was written can be read"), known);
    let mut joiner = Joiner::default();
    for _ in 0..3 {
        if let Ok(Some(joined)) = joiner.next(&known) {
            let mut other = known.clone();
            let _ = other.prepend(&joined.record());
        }
    }
    let mut changes = known.changes.clone();
    changes.extend(known.changes);
});
