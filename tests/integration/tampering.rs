//! What was changed in the store is found and named, and nothing is restored from it.
//!
//! ```text
//! timeline 1 ──backup, packed one way──●fork─ ─ ─
//!                                      └─ timeline 2 ──backup, packed another way──●end
//! ```

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use walhalla::pipeline::Packing;

use crate::support::{
    Area, Cluster, Outcome, Shape, Store, Walhalla, fill, host, make_history, run, seed_chance,
};

/// How the two halves of a history are packed.
const UNENCRYPTED: [&str; 2] = ["compression = \"lz4\"", "compression = \"zstd\""];
const ENCRYPTED: [&str; 2] = ["compression = \"lz4\"", "compression = \"none\""];

const SHAPE: Shape = Shape {
    version: 17,
    segment_mb: 1,
};

/// A store with two timelines and a backup on each.
struct Site {
    store: Store,
    walhalla: Walhalla,
    backups: Vec<String>,
    area: Area,
}

impl Site {
    fn make(packings: [&str; 2], keys: impl FnOnce(&Area) -> String) -> Self {
        let area = Area::new();
        let keys = keys(&area);
        let store = Store::directory(&area);
        // The settings file is written anew under the same name, so the servers archive as the newest says.
        let settings =
            |packing: &str| Walhalla::with_settings(&area, &store, &format!("{packing}\n{keys}"));
        let walhalla = settings(packings[0]);
        let mut old = Cluster::create(&area, "old", SHAPE);
        walhalla.archive_from(&mut old);
        fill(&old);
        walhalla.back_up(&old);
        make_history(&old, "fork");
        make_history(&old, "left_behind");
        old.archive_everything();
        old.stop();

        let walhalla = settings(packings[1]);
        let target = ["--target-name", "fork", "--target-action", "promote"];
        let mut new = walhalla.restore_archiving(&area, SHAPE.version, "new", &target);
        new.start();
        new.wait_until_promoted();
        new.pgbench(&["-t", "300"]);
        walhalla.back_up(&new);
        make_history(&new, "end");
        new.archive_everything();
        new.stop();
        let site = Self {
            backups: walhalla.backup_ids(),
            store,
            walhalla,
            area,
        };
        assert_eq!(site.backups.len(), 2);
        assert_eq!(
            site.problems(),
            BTreeSet::new(),
            "before anything was changed"
        );
        site
    }

    fn unencrypted() -> Self {
        Self::make(UNENCRYPTED, |_| String::new())
    }

    fn encrypted() -> Self {
        Self::make(ENCRYPTED, |area| {
            let identity = area.path("identity");
            let identity = identity.to_str().unwrap();
            let mut keygen = host().command(&host().program);
            let recipient = run(keygen.args(["keygen", "--output", identity])).succeeds();
            let recipient = recipient.stdout.trim();
            format!("age_recipients = [\"{recipient}\"]\nage_identity_file = \"{identity}\"")
        })
    }

    /// What a restore reads. Reports of what was verified are read by `status` alone, which passes over a damaged one.
    fn objects(&self) -> Vec<PathBuf> {
        let mut objects = self.store.objects_named("");
        let is_report = |object: &Path| object.iter().any(|folder| folder == "reports");
        objects.retain(|object| !is_report(object));
        objects.sort();
        objects
    }

    fn url(&self, object: &Path) -> String {
        let key = object.strip_prefix(self.store.path()).unwrap();
        format!("{}/{}", self.store.url(), key.display())
    }

    /// Objects that `verify` and `wal-verify` have something against; both must tell so by their exit code.
    fn problems(&self) -> BTreeSet<String> {
        let mut objects = BTreeSet::new();
        for command in [
            ["verify", "--all", "--json"],
            ["wal-verify", "--deep", "--json"],
        ] {
            let outcome = self.walhalla.run(&command);
            let report = outcome.json();
            let problems = report["problems"].as_array().unwrap();
            let code = if problems.is_empty() { 0 } else { 3 };
            assert_eq!(report["ok"], problems.is_empty(), "{report:#}");
            let outcome = outcome.exits_with(code);
            for problem in problems {
                let object = problem["object"].as_str().unwrap();
                assert!(!problem["what"].as_str().unwrap().is_empty(), "{report:#}");
                assert!(
                    outcome.stderr.contains(object),
                    "{object} is not told: {outcome}"
                );
                objects.insert(object.to_owned());
            }
        }
        objects
    }

    fn restore(&self, args: &[&str]) -> (Outcome, PathBuf) {
        let data = self.area.path("damaged");
        let mut all = vec!["restore", data.to_str().unwrap(), "--archive-mode", "off"];
        all.extend_from_slice(args);
        (self.walhalla.run(&all), data)
    }

    /// A restore fails, and what it leaves does not start.
    fn cannot_be_restored(&self, args: &[&str]) {
        let (outcome, data) = self.restore(args);
        let outcome = outcome.exits_within(1..=4);
        assert!(outcome.stderr.contains("error:"), "{outcome}");
        assert!(
            !data.join("global/pg_control").exists(),
            "the directory would start: {outcome}"
        );
        let _ = std::fs::remove_dir_all(&data);
        let _ = std::fs::remove_dir_all(data.with_extension("walhalla-wal"));
    }
}

/// An object that is something else until this is dropped.
struct Change {
    object: PathBuf,
    original: Vec<u8>,
}

impl Change {
    fn new(object: &Path, change: impl FnOnce(&[u8]) -> Vec<u8>) -> Self {
        let original = std::fs::read(object).unwrap();
        write(object, &change(&original));
        Self {
            object: object.to_owned(),
            original,
        }
    }

    /// One bit by chance the other way round.
    fn flip(object: &Path) -> Self {
        Self::new(object, |bytes| {
            let bit = fastrand::usize(..bytes.len() * 8);
            println!("bit {bit} of {}", object.display());
            let mut changed = bytes.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            changed
        })
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        write(&self.object, &self.original);
    }
}

/// Stored objects are read-only.
fn write(path: &Path, bytes: &[u8]) {
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).unwrap();
    host().give_to_user(path);
}

/// A damaged `backup.json` hides the objects that it names, so the entries are changed apart from the rest.
fn entries_and_others(site: &Site) -> [Vec<PathBuf>; 2] {
    let is_entry = |object: &PathBuf| object.ends_with("backup.json");
    let (entries, others): (Vec<_>, Vec<_>) = site.objects().into_iter().partition(is_entry);
    assert!(entries.len() == 2 && others.len() > 10, "{others:?}");
    [entries, others]
}

/// Every change that is in force is told of by `verify` or `wal-verify`, by the object's name.
#[track_caller]
fn all_are_named(site: &Site, changes: &[Change]) {
    let problems = site.problems();
    for change in changes {
        let url = site.url(&change.object);
        assert!(problems.contains(&url), "{url} not in {problems:#?}");
    }
}

fn every_flip_is_named(site: &Site, wanted: usize) {
    seed_chance();
    let [entries, others] = entries_and_others(site);
    let mut turned = 0;
    for round in 1.. {
        let victims = if round % 8 == 0 { &entries } else { &others };
        let flips: Vec<Change> = victims.iter().map(|object| Change::flip(object)).collect();
        all_are_named(site, &flips);
        turned += flips.len();
        if turned >= wanted {
            break;
        }
    }
    println!("{turned} bits turned, all found");
    assert_eq!(site.problems(), BTreeSet::new(), "after all was put back");
}

#[test]
fn every_flipped_bit_of_an_unencrypted_store_is_found_and_named() {
    every_flip_is_named(&Site::unencrypted(), 500);
}

#[test]
fn every_flipped_bit_of_an_encrypted_store_is_found_and_named() {
    every_flip_is_named(&Site::encrypted(), 500);
}

/// Restores from a store in which one bit of an object that is needed is changed.
fn no_flip_is_restored(site: &Site) {
    seed_chance();
    let newest = site.backups.last().unwrap();
    let plan = site.walhalla.run(&["plan", "--json", "--backup", newest]);
    let plan = plan.succeeds().json();
    let segments: Vec<&str> = plan["segments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|segment| segment.as_str().unwrap())
        .collect();
    // A full backup is restored without the lists that deltas and merges read.
    let is_needed = |object: &&PathBuf| {
        let name = Packing::split(object.file_name().unwrap().to_str().unwrap()).0;
        let is_list = ["index.json", "relations.json"].contains(&name);
        let is_of_backup = object.to_str().unwrap().contains(newest);
        is_of_backup && !is_list || segments.contains(&name)
    };
    let objects = site.objects();
    let needed: Vec<&PathBuf> = objects.iter().filter(is_needed).collect();
    assert!(needed.len() > 5, "{needed:?}");
    for object in needed.iter().cycle().take(24) {
        let _flip = Change::flip(object);
        site.cannot_be_restored(&["--backup", newest]);
    }
    let (outcome, _) = site.restore(&["--backup", newest]);
    outcome.succeeds();
}

#[test]
fn nothing_is_restored_from_a_flipped_bit_in_an_unencrypted_store() {
    no_flip_is_restored(&Site::unencrypted());
}

#[test]
fn nothing_is_restored_from_a_flipped_bit_in_an_encrypted_store() {
    no_flip_is_restored(&Site::encrypted());
}

/// A way to spoil an object.
type Spoil = fn(&[u8]) -> Vec<u8>;

const SPOILS: [Spoil; 6] = [
    cut_anywhere,
    cut_before_the_trailer,
    |bytes| bytes[..bytes.len() - 1].to_vec(),
    |_| Vec::new(),
    |bytes| bytes.iter().map(|_| fastrand::u8(..)).collect(),
    |bytes| [bytes, b"\0"].concat(),
];

fn cut_anywhere(bytes: &[u8]) -> Vec<u8> {
    bytes[..fastrand::usize(1..bytes.len())].to_vec()
}

/// Of a WAL file all but its trailer (docs/formats.md, "WAL").
fn cut_before_the_trailer(bytes: &[u8]) -> Vec<u8> {
    bytes[..bytes.len().saturating_sub(56)].to_vec()
}

fn spoiled_objects_are_named(site: &Site) {
    seed_chance();
    for spoil in SPOILS {
        for victims in entries_and_others(site) {
            let changes: Vec<Change> = victims
                .iter()
                .map(|object| Change::new(object, spoil))
                .collect();
            all_are_named(site, &changes);
        }
    }
}

#[test]
fn cut_empty_longer_and_garbage_objects_of_an_unencrypted_store_are_named() {
    spoiled_objects_are_named(&Site::unencrypted());
}

#[test]
fn cut_empty_longer_and_garbage_objects_of_an_encrypted_store_are_named() {
    spoiled_objects_are_named(&Site::encrypted());
}

/// What has to be the same of two objects that could be taken for each other: kind and packing.
fn kind(object: &Path) -> (usize, bool, String) {
    let name = object.file_name().unwrap().to_str().unwrap();
    let (name, packing) = Packing::split(name);
    (name.len(), name.contains("tar"), packing.to_string())
}

/// Exchanges objects of one kind: neighbours in the archive, parts and entries of two backups.
fn swapped_objects_are_named(site: &Site) {
    let mut swapped = 0;
    for victims in entries_and_others(site) {
        let mut left = victims;
        let mut changes = Vec::new();
        while let Some(one) = left.pop() {
            let Some(index) = left.iter().position(|other| kind(other) == kind(&one)) else {
                continue;
            };
            let other = left.swap_remove(index);
            let (of_one, of_other) = (std::fs::read(&one).unwrap(), std::fs::read(&other).unwrap());
            changes.push(Change::new(&one, |_| of_other));
            changes.push(Change::new(&other, |_| of_one));
        }
        all_are_named(site, &changes);
        swapped += changes.len();
    }
    assert!(swapped > 10, "only {swapped} were swapped");
}

#[test]
fn swapped_objects_of_an_unencrypted_store_are_named() {
    swapped_objects_are_named(&Site::unencrypted());
}

#[test]
fn swapped_objects_of_an_encrypted_store_are_named() {
    swapped_objects_are_named(&Site::encrypted());
}

#[test]
fn objects_of_another_cluster_are_named() {
    let site = Site::unencrypted();
    let other = Site::of_another_cluster();
    let mut replaced = 0;
    for victims in entries_and_others(&site) {
        let with_a_double = victims.iter().filter_map(|object| {
            let foreign = other.like(object)?;
            Some(Change::new(object, |_| std::fs::read(foreign).unwrap()))
        });
        let changes: Vec<Change> = with_a_double.collect();
        all_are_named(&site, &changes);
        replaced += changes.len();
    }
    assert!(replaced > 8, "only {replaced} objects were replaced");
}

impl Site {
    /// The same history of another cluster, in a store of its own.
    fn of_another_cluster() -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut cluster = Cluster::create_unrelated(&area, "unrelated", SHAPE);
        walhalla.archive_from(&mut cluster);
        fill(&cluster);
        walhalla.back_up(&cluster);
        make_history(&cluster, "fork");
        cluster.archive_everything();
        cluster.stop();
        let target = ["--target-name", "fork", "--target-action", "promote"];
        let mut new = walhalla.restore_archiving(&area, SHAPE.version, "new", &target);
        new.start();
        new.wait_until_promoted();
        new.archive_everything();
        new.stop();
        let backups = walhalla.backup_ids();
        Self {
            store,
            walhalla,
            backups,
            area,
        }
    }

    /// An object of the same name, in whatever folder.
    fn like(&self, object: &Path) -> Option<PathBuf> {
        let mut objects = self.objects().into_iter();
        objects.find(|own| own.file_name() == object.file_name())
    }
}

#[test]
fn a_wrong_identity_is_named() {
    let site = Site::encrypted();
    let other = site.area.path("other.key");
    run(&mut site
        .walhalla
        .command(&["keygen", "--output", other.to_str().unwrap()]))
    .succeeds();
    let stranger = site
        .walhalla
        .with_env("WALHALLA_AGE_IDENTITY_FILE", other.to_str().unwrap());
    for command in [&["verify", "--all"][..], &["wal-verify", "--deep"]] {
        stranger.run(command).exits_with(3).says(&["other.key"]);
    }
    let data = site.area.path("damaged");
    stranger
        .run(&["restore", data.to_str().unwrap()])
        .exits_with(1)
        .says(&["other.key", "age_identity_file"]);
    assert!(!data.exists(), "something was written");
}
