//! Encrypted objects: headers for readers with and without an identity, and what comes out.
#![no_main]

use std::io::{self, Read};
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use walhalla::pipeline::encryption::named_digest;
use walhalla::pipeline::{Codec, Encryption, Identities, Packing, unpack};

/// The identity that the seeds are encrypted to; it opens nothing else.
const IDENTITY: &str = include_str!("../age_identity");

fuzz_target!(|data: &[u8]| {
    let _ = named_digest(data);
    let packing = Packing {
        codec: Codec::None,
        encryption: Encryption::Age,
    };
    let stored = io::Cursor::new(data.to_vec());
    if let Ok(content) = unpack(stored, packing, identities(), None) {
        let _ = io::copy(&mut content.take(4 << 20), &mut io::sink());
    }
});

fn identities() -> &'static Identities {
    static IDENTITIES: OnceLock<(Identities, tempfile::NamedTempFile)> = OnceLock::new();
    let (identities, _) = IDENTITIES.get_or_init(|| {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(&file, IDENTITY).expect("written");
        (Identities::new(Some(file.path())), file)
    });
    identities
}
