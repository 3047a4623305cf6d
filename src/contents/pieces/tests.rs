use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use age::secrecy::ExposeSecret;
use walhalla_providers::testing::{Call, Fault, FaultyStore, MemoryStore};
use walhalla_providers::transfer::{Options, Store};
use walhalla_providers::{ErrorKind, ObjectKey, PutMode};

use super::*;
use crate::contents::index;
use crate::failure::Class;
use crate::paths::PathList;
use crate::pipeline::encryption::generate;
use crate::pipeline::{Compression, Identities, Pipeline, Recipients, StoredObject};
use crate::repository::entry::StoredPart;
use crate::repository::layout::Object;
use crate::session::{Network, StoreSession};

const ENTRY: &[u8] = include_bytes!("../../../fuzz/corpus/backup_entry/full.json");
const DOWNLOADS: usize = 4;
const MIB: usize = 1 << 20;
/// What tar adds to a part that holds one file: its header and the end of the archive.
const TAR_BYTES: usize = 512 + 1024;

/// A backup in memory whose requests are counted.
struct Site {
    faulty: FaultyStore,
    repository: Repository,
    backup: BackupEntry,
    files: Vec<(PathBuf, Vec<u8>)>,
    /// Keeps the requests going, and the identity.
    _held: (Network, tempfile::TempDir),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    None,
    Age,
}

fn every_packing() -> impl Iterator<Item = (Compression, Keys)> {
    let compressions = [Compression::Lz4, Compression::Zstd(1), Compression::None];
    let both = [Keys::None, Keys::Age].into_iter();
    both.flat_map(move |keys| compressions.map(|compression| (compression, keys)))
}

fn noise(length: usize) -> Vec<u8> {
    (0..length).map(|_| fastrand::u8(..)).collect()
}

/// Half of it compresses well.
fn content(length: usize) -> Vec<u8> {
    let halves = [noise(length / 2), vec![7; length - length / 2]];
    halves.concat()
}

impl Site {
    /// A part of small files around a large one, and one whose length is a round number.
    fn new(compression: Compression, keys: Keys) -> Self {
        let small = |name: &str, count| {
            let name = name.to_owned();
            (0..count).map(move |number| (format!("{name}{number}").into(), content(number * 300)))
        };
        let large = [(
            "large".into(),
            [content(3 * MIB), noise(2 * MIB + 77)].concat(),
        )];
        let first = small("z", 40).chain(large).chain(small("a", 40)).collect();
        let round = vec![("round".into(), noise(2 * MIB - TAR_BYTES))];
        Self::of(compression, keys, vec![first, round])
    }

    fn of(compression: Compression, keys: Keys, parts: Vec<Vec<(PathBuf, Vec<u8>)>>) -> Self {
        let network = Network::start(2).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (secret, recipient) = generate(jiff::Timestamp::UNIX_EPOCH);
        let identity = dir.path().join("identity");
        std::fs::write(&identity, secret.expose_secret()).unwrap();
        let faulty = FaultyStore::new(Arc::new(MemoryStore::new(MIB)));
        let options = Options {
            upload_concurrency: 2,
            download_concurrency: DOWNLOADS,
            ..Options::default()
        };
        let store = Store::new(Arc::new(faulty.clone()), options);
        let session = StoreSession::new(store, &network);
        let mut backup = BackupEntry::parse(ENTRY).unwrap();
        let repository = Repository::new(
            session.clone(),
            Identities::new(Some(&identity)),
            backup.system_identifier,
        );
        let recipients = match keys {
            Keys::None => None,
            Keys::Age => Recipients::load(Some(&recipient), None).unwrap(),
        };
        let pipeline = Pipeline::new(session, compression, recipients.map(Arc::new), 2);
        let (mut files, mut index) = (Vec::new(), Index::default());
        backup.parts.clear();
        for (number, of_part) in parts.into_iter().enumerate() {
            let name = format!("base/{:05}.tar{}", number + 1, pipeline.packing());
            let (stored, part) = store_part(&repository, &pipeline, &backup, &name, &of_part);
            backup.parts.push(stored);
            index.parts.push(part);
            files.extend(of_part);
        }
        let name = format!("index.json{}", pipeline.packing());
        let mut writer = create(&repository, &pipeline, &backup, &name);
        index.write(&mut writer).unwrap();
        let stored = writer.finish().unwrap();
        backup.index = Some(entry(&name, stored.content_bytes, &stored));
        Self {
            faulty,
            repository,
            backup,
            files,
            _held: (network, dir),
        }
    }

    fn pieces(&self) -> Pieces<'_> {
        Pieces::open(&self.repository, &self.backup).unwrap()
    }

    fn requests(&self) -> u32 {
        self.faulty.calls(Call::Get)
    }

    fn key_of_part(&self, number: usize) -> ObjectKey {
        let name = &self.backup.parts[number].name;
        let object = self
            .repository
            .layout()
            .backup_object(&self.backup.id, name);
        object.unwrap().key
    }

    fn change(&self, key: &ObjectKey, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Vec<u8> {
        let session = self.repository.session();
        let before = session.get(key, u64::MAX).unwrap().to_vec();
        let after = change(before.clone());
        session.put(key, after.into(), PutMode::Overwrite).unwrap();
        before
    }
}

fn create(
    repository: &Repository,
    pipeline: &Pipeline,
    backup: &BackupEntry,
    name: &str,
) -> crate::pipeline::ObjectWriter {
    let object = repository.layout().backup_object(&backup.id, name).unwrap();
    pipeline.create(&object.key).unwrap()
}

fn entry(name: &str, size_bytes: u64, stored: &StoredObject) -> StoredPart {
    StoredPart {
        name: name.to_owned(),
        size_bytes,
        stored_bytes: stored.stored_bytes,
        digest: stored.digest.unwrap(),
    }
}

fn store_part(
    repository: &Repository,
    pipeline: &Pipeline,
    backup: &BackupEntry,
    name: &str,
    files: &[(PathBuf, Vec<u8>)],
) -> (StoredPart, PartIndex) {
    let mut tar = tar::Builder::new(create(repository, pipeline, backup, name));
    let mut places = PathList::default();
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, path, &[][..]).unwrap();
        let place = FilePlace {
            mode: 0o600,
            modified: 0,
            offset: tar.get_ref().position(),
            size_bytes: bytes.len() as u64,
            xxh128: None,
        };
        places.push(path, place);
        let padding = vec![0; bytes.len().next_multiple_of(512) - bytes.len()];
        tar.get_mut()
            .write_all(&[&bytes[..], &padding].concat())
            .unwrap();
    }
    let stored = tar.into_inner().unwrap().finish().unwrap();
    let size_bytes = places.values().map(|place| place.size_bytes).sum();
    let part = PartIndex {
        name: name.to_owned(),
        frames: stored.frames.clone(),
        files: places,
    };
    (entry(name, size_bytes, &stored), part)
}

fn read(pieces: &Pieces, path: &Path) -> Result<Vec<u8>, repository::Error> {
    let mut reader = pieces.file(path).unwrap();
    let mut bytes = Vec::new();
    let result = reader.read_to_end(&mut bytes);
    result.map_err(|error| reader.error(error)).map(|_| bytes)
}

#[test]
fn files_and_ranges_of_them_are_what_was_packed() {
    for (compression, keys) in every_packing() {
        let site = Site::new(compression, keys);
        let pieces = site.pieces();
        for (path, bytes) in &site.files {
            let found = read(&pieces, path).unwrap();
            assert!(found == *bytes, "{} {compression} {keys:?}", path.display());
        }
        let pieces = site.pieces();
        for _ in 0..300 {
            let (path, bytes) = &site.files[fastrand::usize(..site.files.len())];
            let mut reader = pieces.file(path).unwrap();
            let mut at = 0;
            while at < bytes.len() {
                let begin = (at + fastrand::usize(..=MIB)).min(bytes.len());
                let end = (begin + fastrand::usize(..=MIB)).min(bytes.len());
                let mut found = vec![0; end - begin];
                reader.skip((begin - at) as u64);
                reader.read_exact(&mut found).unwrap();
                assert!(
                    found == bytes[begin..end],
                    "{begin} to {end} of {}",
                    path.display()
                );
                assert_eq!(reader.left_bytes(), (bytes.len() - end) as u64);
                at = end;
            }
        }
        assert!(pieces.file(Path::new("nothing")).is_none());
    }
}

#[test]
fn frames_within_a_file_are_its_whole_blocks() {
    let site = Site::new(Compression::Lz4, Keys::None);
    let pieces = site.pieces();
    let (path, bytes) = &site.files[40];
    let frames = pieces.frames_within(path);
    assert_eq!(frames.len(), 4);
    for (offset, frame) in frames {
        let begin = usize::try_from(offset).unwrap();
        let block = &bytes[begin..begin + MIB];
        assert!(frame.digest.is_of(block));
        assert_eq!(frame.content_bytes as usize, MIB);
    }
    for path in ["z7", "z0", "nothing"] {
        assert_eq!(pieces.frames_within(Path::new(path)), []);
    }
}

#[test]
fn small_files_in_one_frame_cost_one_request_however_many_read_them() {
    for keys in [Keys::None, Keys::Age] {
        let files = (0..200).map(|number| (format!("{number}").into(), noise(1000)));
        let site = Site::of(Compression::Lz4, keys, vec![files.collect()]);
        let pieces = site.pieces();
        let before = site.requests();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for (path, bytes) in &site.files {
                        assert!(read(&pieces, path).unwrap() == *bytes);
                    }
                });
            }
        });
        // The header of age is one more.
        let wanted = if keys == Keys::Age { 2 } else { 1 };
        assert_eq!(site.requests() - before, wanted);
    }
}

#[test]
fn what_is_skipped_or_beyond_the_file_is_not_fetched() {
    let file = |name: &str, length| (name.into(), noise(length));
    let files = vec![
        file("empty", 0),
        file("large", 5 * MIB),
        file("after", 3 * MIB),
    ];
    let site = Site::of(Compression::None, Keys::None, vec![files]);
    let pieces = site.pieces();
    let before = site.requests();
    let (path, bytes) = &site.files[1];
    let mut reader = pieces.file(path).unwrap();
    reader.skip(3 * MIB as u64);
    assert_eq!(site.requests(), before);
    let mut found = [0; 100];
    reader.read_exact(&mut found).unwrap();
    assert_eq!(found, bytes[3 * MIB..][..100]);
    assert_eq!(site.requests(), before + 1);
    reader.skip(u64::MAX);
    assert_eq!(reader.read(&mut found).unwrap(), 0);
    assert_eq!(read(&pieces, Path::new("empty")).unwrap(), b"");
    assert_eq!(site.requests(), before + 1);
    let landed = pieces.cache.places();
    assert_eq!(landed, [(0, 3)]);

    // 1, 2 and 3 frames at a time; a fourth one of the last request would lie beyond the file.
    let pieces = site.pieces();
    let before = site.requests();
    assert!(read(&pieces, path).unwrap() == *bytes);
    assert_eq!(site.requests(), before + 3);
    let (_, place) = pieces.index.place(path).unwrap();
    let last = pieces.parts[0].frame_at(place.offset + place.size_bytes - 1);
    let fetched: Vec<_> = (0..=last).map(|frame| (0, frame)).collect();
    assert_eq!(pieces.cache.places(), fetched);
    assert!(last + 1 < pieces.index.parts[0].frames.len());
}

#[test]
fn a_changed_byte_is_found_and_other_blocks_are_read() {
    for (compression, keys) in every_packing() {
        let files = (0..10).map(|number| (number.to_string().into(), content(number * 50_000)));
        let other = vec![("other".into(), noise(5000))];
        let site = Site::of(compression, keys, vec![files.collect(), other]);
        let key = site.key_of_part(0);
        for _ in 0..20 {
            let original = site.change(&key, |mut bytes| {
                let at = fastrand::usize(..bytes.len());
                bytes[at] ^= fastrand::u8(1..);
                bytes
            });
            let pieces = site.pieces();
            let (mut sound, mut damaged) = (0, 0);
            for (path, bytes) in &site.files {
                match read(&pieces, path) {
                    Ok(found) => {
                        assert!(found == *bytes, "{}", path.display());
                        sound += 1;
                    }
                    Err(error) => {
                        assert!(error.is_of_the_object(), "{error:?}");
                        assert_eq!(error.object(), Some(site.repository.url(&key).as_str()));
                        damaged += 1;
                    }
                }
            }
            assert!(sound > 0, "the other part is sound");
            // zstd's own headers have bits without meaning.
            let all_count = !matches!((compression, keys), (Compression::Zstd(_), Keys::None));
            assert!(damaged > 0 || !all_count, "{compression} {keys:?}");
            site.change(&key, |_| original);
        }
    }
}

#[test]
fn a_cut_part_is_damaged_and_a_missing_one_missing() {
    for keys in [Keys::None, Keys::Age] {
        let site = Site::new(Compression::Lz4, keys);
        let key = site.key_of_part(0);
        let path = Path::new("a39");
        for cut in [1, 2000, 1 << 20] {
            let original = site.change(&key, |bytes| bytes[..bytes.len() - cut].to_vec());
            let error = read(&site.pieces(), path).unwrap_err();
            assert!(
                matches!(error, repository::Error::Object(ObjectError::Damaged(_))),
                "{error:?}"
            );
            site.change(&key, |_| original);
        }
        site.repository.remove(&[key]).unwrap();
        let error = read(&site.pieces(), path).unwrap_err();
        let repository::Error::Object(ObjectError::Store(error)) = error else {
            panic!("{error:?}");
        };
        assert!(error.is_not_found());
    }
}

#[test]
fn a_stores_error_comes_through_and_the_next_try_reads() {
    for keys in [Keys::None, Keys::Age] {
        let site = Site::new(Compression::Lz4, keys);
        let pieces = site.pieces();
        let path = Path::new("z39");
        site.faulty
            .always(Call::Get, Fault::Fail(ErrorKind::PermissionDenied));
        match read(&pieces, path) {
            Err(repository::Error::Object(ObjectError::Store(error))) => {
                assert_eq!(error.kind, ErrorKind::PermissionDenied);
            }
            other => panic!("{other:?}"),
        }
        site.faulty.heal();
        assert!(read(&pieces, path).unwrap() == site.files[39].1);
    }
}

#[test]
fn pieces_come_while_every_download_permit_is_held_by_readers_of_parts() {
    let site = Site::new(Compression::Lz4, Keys::Age);
    let pieces = site.pieces();
    let name = &site.backup.parts[0].name;
    let layout = site.repository.layout();
    let object = layout.backup_object(&site.backup.id, name).unwrap();
    let open = || site.repository.open(&object).unwrap();
    let _held: Vec<_> = std::iter::repeat_with(open).take(DOWNLOADS).collect();
    assert!(read(&pieces, Path::new("z39")).unwrap() == site.files[39].1);
}

#[test]
fn without_an_identity_a_backup_stays_locked() {
    let site = Site::new(Compression::Lz4, Keys::Age);
    let session = site.repository.session().clone();
    let cluster = site.backup.system_identifier;
    let stranger = Repository::new(session, Identities::default(), cluster);
    let opened = Pieces::open(&stranger, &site.backup);
    assert_eq!(opened.err().map(|error| error.class()), Some(Class::Locked));
    let mut pieces = site.pieces();
    let object = Object {
        key: site.key_of_part(0),
        packing: pieces.parts[0].object.packing(),
    };
    pieces.parts[0].object = stranger.ranged(object, site.backup.parts[0].stored_bytes);
    let error = read(&pieces, Path::new("z39")).unwrap_err();
    assert_eq!(error.class(), Class::Locked, "{error:?}");
}

#[test]
fn an_index_of_another_backup_is_refused() {
    let mut site = Site::new(Compression::Lz4, Keys::None);
    site.backup.parts[1].stored_bytes += 1;
    let opened = Pieces::open(&site.repository, &site.backup);
    let Some(reader::Error::Repository(repository::Error::Object(ObjectError::Damaged(damaged)))) =
        opened.err()
    else {
        panic!("it is opened, or damaged otherwise");
    };
    assert!(damaged.reason::<index::Error>().is_some(), "{damaged}");
    site.backup.index = None;
    let opened = Pieces::open(&site.repository, &site.backup);
    assert!(matches!(opened.err(), Some(reader::Error::NoIndex(_))));
}
