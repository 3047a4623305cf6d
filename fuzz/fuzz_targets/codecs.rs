//! Compressed objects, with and without the trailer of WAL files.
#![no_main]

use std::io::{self, Read};
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use walhalla::pipeline::{Codec, Encryption, Identities, Packing, Trailed, unpack};

/// A few bytes of a codec can stand for any length.
const MOST_BYTES: u64 = 4 << 20;

fuzz_target!(|data: &[u8]| {
    for codec in Codec::ALL {
        for has_trailer in [false, true] {
            let trailed = has_trailer.then(|| Trailed {
                name: "7/wal/00000001/00000001.history",
                found: Arc::default(),
            });
            let packing = Packing {
                codec,
                encryption: Encryption::None,
            };
            let stored = io::Cursor::new(data.to_vec());
            if let Ok(content) = unpack(stored, packing, &Identities::default(), trailed) {
                let _ = io::copy(&mut content.take(MOST_BYTES), &mut io::sink());
            }
        }
    }
});
