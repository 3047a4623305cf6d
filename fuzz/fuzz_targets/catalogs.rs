//! Heap pages and relation maps of system catalogs.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use walhalla_postgres::Version;
use walhalla_postgres::catalogs::{Catalog, Catalogs, Names};

fuzz_target!(|data: &[u8]| {
    let mut catalogs = Catalogs::default();
    catalogs.map(Path::new("base/5/pg_filenode.map"), data);
    let _ = catalogs.of(Path::new("base/5/1259"));
    for version in ["11", "17", "18"] {
        let version = Version::parse(version).expect("a version");
        let mut names = Names::default();
        for catalog in [Catalog::Database, Catalog::Namespace(5), Catalog::Class(5)] {
            names.read(catalog, data, version);
        }
        let _ = names.relation(5, 16_384);
    }
});
