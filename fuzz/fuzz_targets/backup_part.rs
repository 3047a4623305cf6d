//! A whole backup whose only part holds anything: nothing outside the data directory is ever named to a restore.
#![no_main]

use std::io;
use std::path::{Component, Path};
use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use walhalla::contents::checksum::Checksum;
use walhalla::contents::manifest::{self, FileFacts, Head, WalRange};
use walhalla::contents::{Contents, Error, FileError, FileHeader, Sink, Summed, Taken};
use walhalla::pipeline::{Identities, StoredDigest};
use walhalla::repository::entry::StoredPart;
use walhalla::repository::{BackupEntry, Repository};
use walhalla::session::{Network, StoreSession};
use walhalla_providers::testing::MemoryStore;
use walhalla_providers::transfer::{Options, RetryPolicy, Store};
use walhalla_providers::{ObjectKey, PutMode};

/// An entry as it is stored.
const ENTRY: &[u8] = include_bytes!("../corpus/backup_entry/full.json");

fuzz_target!(|tar: &[u8]| {
    let options = Options {
        retry: RetryPolicy::default(),
        upload_concurrency: 1,
        download_concurrency: 2,
        ..Options::default()
    };
    let store = Store::new(Arc::new(MemoryStore::new(1 << 20)), options);
    let mut entry = BackupEntry::parse(ENTRY).expect("the seed is an entry");
    let system_identifier = entry.system_identifier;
    let session = StoreSession::new(store, network());
    let repository = Repository::new(session, Identities::default(), system_identifier);
    let head = Head {
        version: entry.postgres_version,
        cluster: system_identifier,
        wal: WalRange {
            timeline: entry.timeline,
            start: entry.start_lsn,
            end: entry.stop_lsn,
        },
    };
    let facts = FileFacts {
        size_bytes: 3,
        modified: 0,
        checksum: Checksum::of(b"17\n"),
    };
    let mut text = Vec::new();
    let files = [("PG_VERSION".into(), facts)].into_iter();
    manifest::write(&mut text, head, files).expect("memory takes all");
    let put = |name: &str, bytes: &[u8]| {
        let folder = repository.layout().backup_folder(&entry.id);
        let key = ObjectKey::new(format!("{folder}{name}")).expect("a key");
        let body = bytes::Bytes::copy_from_slice(bytes);
        let stored = repository.session().put(&key, body, PutMode::Create);
        stored.expect("memory takes it");
        StoredPart {
            name: name.to_owned(),
            size_bytes: bytes.len() as u64,
            stored_bytes: bytes.len() as u64,
            digest: StoredDigest::of(bytes),
        }
    };
    let (part, stored_manifest) = (
        put("base/00001.tar", tar),
        put("backup_manifest", &text),
    );
    entry.parts = vec![part];
    entry.manifest = stored_manifest;
    let contents = Contents::open(&repository, &entry).expect("the manifest is sound");
    let _ = contents.part(&entry.parts[0], &Nowhere);
});

fn network() -> &'static Network {
    static NETWORK: OnceLock<Network> = OnceLock::new();
    NETWORK.get_or_init(|| Network::start(1).expect("threads"))
}

/// Takes files without keeping them.
struct Nowhere;

impl Sink for Nowhere {
    type Error = Error;

    fn directory(&self, path: &Path, header: FileHeader) -> Result<(), Error> {
        assert_is_inside(path, header.mode);
        Ok(())
    }

    fn file(
        &self,
        path: &Path,
        header: FileHeader,
        content: &mut Summed,
    ) -> Result<Taken, FileError<Error>> {
        assert_is_inside(path, header.mode);
        io::copy(content, &mut io::sink()).map_err(FileError::Read)?;
        Ok(Taken::Content)
    }

    fn problem(&self, _: Error) -> Result<(), Error> {
        Ok(())
    }
}

fn assert_is_inside(path: &Path, mode: u32) {
    let is_normal = |part| matches!(part, Component::Normal(_));
    assert!(path.components().all(is_normal), "{}", path.display());
    assert!(mode <= 0o777);
}
