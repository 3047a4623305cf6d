//! How many requests a push and a fetch send to a store whose listings begin anywhere. `tests/integration/requests.rs` counts
//! them on the way to the servers.

use std::path::PathBuf;
use std::sync::Arc;

use walhalla_postgres::wal::cluster::Cluster;
use walhalla_postgres::wal::page_header::PageHeader;
use walhalla_postgres::{
    ControlFile, Limits, Lsn, SegmentName, SegmentNo, SystemIdentifier, TimelineId, WalFileName,
};
use walhalla_providers::testing::{Call, FaultyStore, MemoryStore};
use walhalla_providers::transfer::{Options, Store, StoreSettings};
use walhalla_providers::{ObjectKey, PutMode};

use super::Error;
use super::archiver::{Archiver, Pushed};
use super::fetcher::{Fetcher, NewFile};
use super::mirror::{Mirror, Second};
use crate::pipeline::{Compression, Identities, Pipeline};
use crate::repository::Repository;
use crate::repository::owed::{MirrorMode, Owed};
use crate::session::{Network, StoreSession};

const CALLS: [Call; 9] = [
    Call::Put,
    Call::StartUpload,
    Call::PutPart,
    Call::CompleteUpload,
    Call::AbortUpload,
    Call::Get,
    Call::Head,
    Call::List,
    Call::Delete,
];

/// A segment of a real server, and a store in memory that counts.
struct Site {
    store: FaultyStore,
    repository: Repository,
    pipeline: Pipeline,
    control: ControlFile,
    folder: tempfile::TempDir,
    network: Network,
}

impl Site {
    /// The segment `name` of PostgreSQL 18.
    fn with(name: &str) -> (Self, SegmentName, PathBuf) {
        let fixture = format!(
            "{}/tests/fixtures/wal/18/{name}.zst",
            env!("CARGO_MANIFEST_DIR")
        );
        let bytes = zstd::decode_all(std::fs::File::open(fixture).unwrap()).unwrap();
        let (identity, ..) = PageHeader::read(&bytes).unwrap().long.unwrap();
        let cluster = Cluster::of_first_page(&bytes, SystemIdentifier(identity)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let network = Network::start(2).unwrap();
        let store = FaultyStore::new(Arc::new(MemoryStore::new(1 << 20)));
        let options = Options {
            upload_concurrency: 2,
            download_concurrency: 2,
            ..Options::default()
        };
        let session = StoreSession::new(Store::new(Arc::new(store.clone()), options), &network);
        let pipeline = Pipeline::new(session.clone(), Compression::Lz4, None, 1);
        let repository = Repository::new(session, Identities::default(), cluster.system_identifier);
        let site = Self {
            store,
            repository,
            pipeline,
            control: control_of(&cluster),
            folder,
            network,
        };
        (site, name.parse().unwrap(), path)
    }

    /// What `work` asked of the store: each kind of request, and how many.
    fn count<T>(&self, work: impl FnOnce() -> T) -> (T, Vec<(Call, u32)>) {
        let counts = || CALLS.map(|call| self.store.calls(call));
        let before = counts();
        let done = work();
        let asked = CALLS.into_iter().zip(counts().into_iter().zip(before));
        let asked = asked.map(|(call, (after, before))| (call, after - before));
        (done, asked.filter(|(_, count)| *count > 0).collect())
    }

    fn archiver(&self) -> Archiver<'_> {
        Archiver {
            repository: &self.repository,
            pipeline: &self.pipeline,
            origin: (&self.control).into(),
            in_recovery: false,
            mirror: None,
        }
    }

    fn push(&self, path: &std::path::Path, name: SegmentName) -> Pushed {
        let pushed = self.archiver().push(path, WalFileName::Segment(name));
        pushed.unwrap()
    }

    fn fetch(&self, name: SegmentName, ends_recovery: bool) -> Result<(), Error> {
        let fetcher = Fetcher {
            repository: &self.repository,
            cluster: Some(Cluster::from(&self.control)),
            ends_recovery,
        };
        let target = NewFile::create(&self.folder.path().join("fetched"))?;
        fetcher.fetch(WalFileName::Segment(name), target)
    }
}

fn control_of(cluster: &Cluster) -> ControlFile {
    ControlFile {
        system_identifier: cluster.system_identifier,
        version: cluster.version,
        state: 6,
        written: 0,
        checkpoint_lsn: Lsn::ZERO,
        checkpoint_redo: Lsn::ZERO,
        timeline: TimelineId::FIRST,
        min_recovery_point: Lsn::ZERO,
        min_recovery_timeline: 0,
        limits: Limits::default(),
        block_size_bytes: 8192,
        blocks_per_file: 131_072,
        wal_block_size_bytes: cluster.page_size_bytes,
        segment_size: cluster.segment_size,
        data_checksums: true,
        secret: None,
    }
}

#[test]
fn a_push_a_fetch_and_a_miss_send_no_more_requests_than_it_takes() {
    let (site, name, path) = Site::with("00000001000000000000000A");
    let (pushed, asked) = site.count(|| site.push(&path, name));
    assert!(matches!(pushed, Pushed::Stored { .. }));
    // The segment between two listings, and its summary.
    assert_eq!(asked, [(Call::Put, 2), (Call::List, 2)]);
    // The listing, what is archived, and whether there is a summary.
    let (pushed, asked) = site.count(|| site.push(&path, name));
    assert_eq!(pushed, Pushed::AlreadyThere);
    assert_eq!(asked, [(Call::Get, 1), (Call::List, 2)]);
    let segment_size = site.control.segment_size;
    let next = SegmentNo(name.number(segment_size).unwrap().0 + 1).on(name.timeline, segment_size);
    for ends_recovery in [false, true] {
        let (fetched, asked) = site.count(|| site.fetch(name, ends_recovery));
        fetched.unwrap();
        assert_eq!(asked, [(Call::Get, 1), (Call::List, 1)]);
        let (missed, asked) = site.count(|| site.fetch(next, ends_recovery));
        assert!(
            matches!(missed, Err(Error::NotArchived { .. })),
            "{missed:?}"
        );
        // It shows what of the segment was received, too.
        assert_eq!(asked, [(Call::List, 1)]);
    }
}

/// A store in memory, and the cluster in it.
fn second(site: &Site) -> (FaultyStore, Second) {
    let store = FaultyStore::new(Arc::new(MemoryStore::new(1 << 20)));
    let options = Options {
        upload_concurrency: 2,
        download_concurrency: 2,
        ..Options::default()
    };
    let session = StoreSession::new(Store::new(Arc::new(store.clone()), options), &site.network);
    let second = Second {
        pipeline: Pipeline::new(session.clone(), Compression::Lz4, None, 1),
        session,
        mode: MirrorMode::Both,
        bound: None,
    };
    (store, second)
}

/// Pushes a segment into two stores of which one or both answer nothing after so many calls, and tries again when they do.
/// Returns whether the first push succeeded.
fn push_stopped_after(calls: u32, mode: MirrorMode, stops: [bool; 2]) -> bool {
    let (site, name, path) = Site::with("00000001000000000000000A");
    let (second_store, second) = second(&site);
    let mirror = Second { mode, ..second }.of(&site.repository, None);
    let file = WalFileName::Segment(name);
    let archiver = Archiver {
        mirror: Some(&mirror),
        ..site.archiver()
    };
    let stored = |repository: &Repository| {
        let forms = repository.wal_forms(file).unwrap();
        let mut objects = forms.iter().map(crate::repository::ArchivedFile::object);
        let object = objects.next()?;
        let bytes = repository.read_small(&object.key).unwrap();
        assert_eq!(objects.next(), None);
        Some(bytes)
    };
    for (store, _) in { [&site.store, &second_store].into_iter().zip(stops) }.filter(|it| it.1) {
        store.stop_after(calls);
    }
    let pushed = archiver.push(&path, file);
    site.store.heal();
    second_store.heal();
    let debts = site.repository.debts(mirror.id()).unwrap();
    if pushed.is_ok() {
        let first = stored(&site.repository);
        assert!(first.is_some(), "{calls} {mode:?} {stops:?}");
        let is_owed = debts.iter().any(|debt| debt.owed == Owed::Wal(file));
        match stored(&mirror.second) {
            None => assert!(mode == MirrorMode::Owed && is_owed, "{calls} {stops:?}"),
            second => assert_eq!(second, first),
        }
    }
    let mirror = Second {
        mode,
        ..second_of(&mirror)
    }
    .of(&site.repository, None);
    let archiver = Archiver {
        mirror: Some(&mirror),
        ..site.archiver()
    };
    archiver.push(&path, file).unwrap();
    mirror.read_debts(&site.repository).unwrap();
    mirror.pay_some(&site.repository).unwrap();
    assert_eq!(site.repository.debts(mirror.id()).unwrap(), []);
    assert_eq!(stored(&mirror.second), stored(&site.repository));
    assert!(mirror.second.has_summary(name).unwrap() || pushed.is_err());
    pushed.is_ok()
}

/// The same store, opened by another process.
fn second_of(mirror: &Mirror) -> Second {
    Second {
        session: mirror.second.session().clone(),
        pipeline: mirror.pipeline.clone(),
        mode: mirror.mode,
        bound: None,
    }
}

#[test]
fn a_mirrored_push_that_is_killed_after_any_call_is_whole() {
    for mode in [MirrorMode::Both, MirrorMode::Owed] {
        for stops in [[true, false], [false, true], [true, true]] {
            let pushed: Vec<bool> = (0..12)
                .map(|calls| push_stopped_after(calls, mode, stops))
                .collect();
            assert!(pushed[11], "{mode:?} {stops:?} {pushed:?}");
            // What needs not both goes on without the second.
            let goes_on = mode == MirrorMode::Owed && !stops[0];
            assert_eq!(pushed[0], goes_on, "{mode:?} {stops:?} {pushed:?}");
        }
    }
}

/// Two stores have other WAL under one name: nothing is acknowledged, and nothing overwritten.
#[test]
fn a_mirror_with_other_content_is_an_error_or_stays_owed() {
    let (site, name, path) = Site::with("00000001000000000000000A");
    let (_, second) = second(&site);
    let file = WalFileName::Segment(name);
    let object = { site.repository.layout() }.wal(file, site.pipeline.packing());
    let other = second.of(&site.repository, None).second;
    let packed = second
        .pipeline
        .packed(&object.key, object.name(), b"other content");
    let packed = packed.unwrap();
    let put = packed.clone().into();
    let put = other.session().put(&object.key, put, PutMode::Create);
    put.unwrap();
    for mode in [MirrorMode::Both, MirrorMode::Owed] {
        let mirror = Second {
            mode,
            ..second.clone()
        }
        .of(&site.repository, None);
        let archiver = Archiver {
            mirror: Some(&mirror),
            ..site.archiver()
        };
        let pushed = archiver.push(&path, file);
        match mode {
            MirrorMode::Both => {
                let error = crate::output::chain(&pushed.unwrap_err());
                assert!(error.contains("nothing is overwritten"), "{error}");
            }
            MirrorMode::Owed => {
                pushed.unwrap();
                let debts = site.repository.debts(mirror.id()).unwrap();
                assert_eq!(debts[0].owed, Owed::Wal(file));
                mirror.pay_some(&site.repository).unwrap_err();
                assert_eq!(site.repository.debts(mirror.id()).unwrap().len(), 1);
            }
        }
        assert_eq!(other.read_small(&object.key).unwrap(), packed);
    }
}

/// An object goes to a directory while it is made. One that is given up leaves nothing there.
#[test]
fn what_is_given_up_halfway_leaves_nothing_in_a_directory() {
    let folder = tempfile::tempdir().unwrap();
    let network = Network::start(2).unwrap();
    let url = format!("file://{}", folder.path().display());
    let options = Options {
        upload_concurrency: 2,
        download_concurrency: 2,
        ..Options::default()
    };
    let session = network
        .open(&url, &StoreSettings::default(), options)
        .unwrap();
    let pipeline = Pipeline::new(session, Compression::Lz4, None, 1);
    let key = ObjectKey::new("object").unwrap();
    let files = || std::fs::read_dir(folder.path()).unwrap().count();
    let mut writer = pipeline.create_whole(&key, "object", None).unwrap();
    let noise: Vec<u8> = (0..1 << 20).map(|_| fastrand::u8(..)).collect();
    while files() == 0 {
        writer.append(&noise).unwrap();
    }
    writer.discard();
    assert_eq!(files(), 0);
}
