//! What a delta and a chain are read by: the index, the header of an `INCREMENTAL.*` file, the server's WAL summaries.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walhalla::contents::delta_file::Header;
use walhalla::contents::index::Index;
use walhalla_postgres::block_table;

const BLOCK_SIZE: u32 = 8192;
const BLOCKS_PER_FILE: u32 = 131_072;

fuzz_target!(|data: &[u8]| {
    if let Ok(index) = Index::read(data) {
        let written = |index: &Index| {
            let mut text = Vec::new();
            index.write(&mut text).expect("memory takes all");
            text
        };
        let text = written(&index);
        let again = Index::read(&*text).expect("what was written is read");
        assert_eq!(written(&again), text);
    }
    if let Ok(header) = Header::read(&mut &*data, BLOCK_SIZE, BLOCKS_PER_FILE) {
        let bytes = header.to_bytes(BLOCK_SIZE);
        let again = Header::read(&mut &*bytes, BLOCK_SIZE, BLOCKS_PER_FILE);
        assert_eq!(again.expect("what was written is read"), header);
    }
    let _ = block_table::read(&mut &*data);
});
