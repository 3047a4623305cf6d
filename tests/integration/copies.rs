//! `copy`: what was copied is restored from the copy, whatever the stores, and at every moment the copy is whole.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;
use walhalla::copying::select::{Extent, Which};
use walhalla::copying::{Copy, CopyExtent};
use walhalla::pipeline::{Identities, Pipeline};
use walhalla::progress::Show;
use walhalla::repository::Repository;
use walhalla::session::{Network, StoreSession};
use walhalla_providers::ObjectStore;
use walhalla_providers::fs::FsStore;
use walhalla_providers::testing::FaultyStore;
use walhalla_providers::testing::proxy::{Ending, Fault, Proxy, Requests, Side, When};
use walhalla_providers::transfer::{Options, Store as Transfer};

use crate::support::{
    Area, Cluster, Key, Moment, Outcome, Shape, Store, Walhalla, fill, host, make_history, run,
    seed_chance,
};

const VERSION: u32 = 17;

/// A cluster with a full backup, a delta, and history before, between and after them.
struct Site {
    area: Area,
    store: Store,
    walhalla: Walhalla,
    cluster: Cluster,
    full: String,
    delta: String,
    between: Moment,
    after: Moment,
}

/// A store to copy to.
struct Target {
    url: String,
    /// Which copies, and which reads the copy.
    walhalla: Walhalla,
}

impl Site {
    fn make(store: fn(&Area) -> Store) -> Self {
        Self::with(store, |_, walhalla| walhalla)
    }

    fn with(store: fn(&Area) -> Store, settings: fn(&Area, Walhalla) -> Walhalla) -> Self {
        let area = Area::new();
        let store = store(&area);
        let walhalla = settings(&area, Walhalla::new(&area, &store));
        let mut cluster = Cluster::create(&area, "primary", Shape::small(VERSION));
        walhalla.archive_from(&mut cluster);
        fill(&cluster);
        let full = walhalla.back_up(&cluster);
        let between = make_history(&cluster, "between");
        cluster.switch_segment();
        let data = cluster.data.to_str().unwrap();
        walhalla
            .run_with(&cluster, &["backup-push", data, "--delta"])
            .succeeds();
        let delta = walhalla.newest_backup();
        let after = make_history(&cluster, "after");
        cluster.archive_everything();
        Self {
            area,
            store,
            walhalla,
            cluster,
            full,
            delta,
            between,
            after,
        }
    }

    /// A directory.
    fn directory(&self, name: &str) -> Target {
        Target {
            url: format!("file://{}", self.area.make_dir(name).display()),
            walhalla: self.walhalla.clone(),
        }
    }

    /// What the cluster was at a moment, restored from the copy.
    fn restores(&self, target: &Target, moment: &Moment) {
        let words = ["--store", &target.url, "--target-name", &moment.name];
        let words = [&words[..], &["--target-action", "promote"]].concat();
        let name = format!("restored-{}", fastrand::u32(..));
        let mut copy = target.walhalla.restore(&self.area, VERSION, &name, &words);
        copy.start();
        copy.wait_until_promoted();
        copy.dump().assert_same_as(&moment.dump, &moment.name);
        copy.amcheck();
        copy.stop();
        drop(copy);
        self.area.remove(&name);
    }
}

impl Target {
    /// Copies to here.
    #[track_caller]
    fn copy(&self, options: &[&str]) -> Value {
        self.try_copy(options).succeeds().json()
    }

    fn try_copy(&self, options: &[&str]) -> Outcome {
        let words = ["copy", "--json", "--to", &self.url];
        self.walhalla.run(&[&words[..], options].concat())
    }

    #[track_caller]
    fn run(&self, words: &[&str]) -> Outcome {
        self.walhalla
            .run(&[words, &["--store", &self.url]].concat())
    }

    /// All of the copy is sound.
    #[track_caller]
    fn verify(&self) {
        self.run(&["verify", "--all"]).succeeds();
        let verified = self.run(&["wal-verify", "--deep"]).succeeds();
        let mut notes = verified.stdout.lines();
        let note = notes.find(|line| line.starts_with("NOTE") && !line.contains("no backup"));
        assert_eq!(note, None, "{}", verified.stdout);
    }

    #[track_caller]
    fn backups(&self) -> Vec<String> {
        let listed = self.run(&["backup-list", "--json"]).succeeds().json();
        let listed = listed.as_array().unwrap().iter();
        listed
            .map(|backup| backup["id"].as_str().unwrap().to_owned())
            .collect()
    }
}

fn copied(report: &Value) -> (u64, u64) {
    let number = |of: &str| report[of]["copied"].as_u64().unwrap();
    (number("backups"), number("wal"))
}

type MakeStore = fn(&Area) -> Store;

/// Copies from one kind of store to each, over lines that are cut now and then, and restores from each copy.
fn copy_to_each(source: MakeStore) {
    let site = Site::make(source);
    let kinds: [MakeStore; 4] = [Store::directory, Store::s3, Store::gcs, Store::azure];
    for (number, kind) in kinds.into_iter().enumerate() {
        let area = Area::new();
        // Two servers of one kind have one name in the settings.
        let of_one_kind = kind as usize == source as usize;
        let other = (!of_one_kind).then(|| kind(&area));
        let server = other.as_ref().unwrap_or(&site.store);
        let mut walhalla = site.walhalla.clone();
        for (name, value) in server.env() {
            walhalla = walhalla.with_env(&name, &value);
        }
        let url = format!("{}-{number}", server.url());
        let mut proxies = Vec::new();
        for store in [&site.store, server] {
            if let Store::Directory(_) = store {
                continue;
            }
            let proxy = Proxy::start(store.address());
            walhalla = store.through(&proxy.endpoint(), &walhalla);
            for side in [Side::Request, Side::Answer] {
                let cut = Fault::Break {
                    side,
                    after_bytes: 30_000,
                    ending: Ending::Reset,
                };
                proxy.on(Requests::all(), When::Every(5), cut);
            }
            proxies.push(proxy);
        }
        let target = Target { url, walhalla };
        let report = target.copy(&[]);
        assert_eq!(copied(&report).0, 2, "{report}");
        assert!(copied(&report).1 > 5, "{report}");
        assert!(
            proxies.is_empty() || proxies.iter().any(|proxy| proxy.faults_met() > 0),
            "no line was cut"
        );
        proxies.iter().for_each(Proxy::heal);
        assert_eq!(copied(&target.copy(&[])), (0, 0));
        target.verify();
        assert_eq!(target.backups(), site.walhalla.backup_ids());
        site.restores(&target, &site.between);
        site.restores(&target, &site.after);
    }
}

#[test]
fn copies_of_a_directory_are_restored() {
    copy_to_each(Store::directory);
}

#[test]
fn copies_of_s3_are_restored() {
    copy_to_each(Store::s3);
}

#[test]
fn copies_of_google_are_restored() {
    copy_to_each(Store::gcs);
}

#[test]
fn copies_of_azure_are_restored() {
    copy_to_each(Store::azure);
}

#[test]
fn a_later_run_copies_what_is_new() {
    let site = Site::make(Store::directory);
    let target = site.directory("copy");
    target.copy(&[]);
    site.walhalla
        .run(&["backup-mark", &site.full, "--permanent"])
        .succeeds();
    let later = make_history(&site.cluster, "later");
    let new = site.walhalla.back_up(&site.cluster);
    site.cluster.archive_everything();
    let report = target.copy(&[]);
    assert_eq!(copied(&report).0, 1, "{report}");
    assert_eq!(report["backups"]["there"], 2);
    assert!(target.backups().contains(&new));
    let listed = target.run(&["backup-list", "--json"]).json();
    assert_eq!(listed[0]["permanent"], true, "{listed}");
    target.verify();
    site.restores(&target, &later);
}

#[test]
fn a_copy_is_encrypted_and_compressed_anew() {
    let site = Site::make(Store::directory);
    let key = Key::generate(&site.area, "key");
    let target = site.directory("copy");
    let options = ["--recipients", &key.recipient, "--compression", "zstd"];
    let report = target.copy(&options);
    assert_eq!(copied(&report).0, 2, "{report}");
    for object in objects(&target) {
        let name = object.file_name().unwrap().to_str().unwrap();
        let is_open =
            name.starts_with("relations.json") || name == "backup.json" || !name.contains('.');
        assert!(is_open || name.ends_with(".zst.age"), "{name}");
    }
    let target = Target {
        walhalla: target.walhalla.opening_with(&key.identity),
        ..target
    };
    target.verify();
    // The summaries are those of what was packed anew: none has to be made again.
    let made = target.run(&["wal-summarize", "--json"]).succeeds().json();
    assert_eq!(made["made"], 0, "{made}");
    site.restores(&target, &site.between);
    site.restores(&target, &site.after);
    // What is new is packed alike, and stands on what is there.
    let later = make_history(&site.cluster, "later");
    let data = site.cluster.data.to_str().unwrap();
    site.walhalla
        .run_with(&site.cluster, &["backup-push", data, "--delta"])
        .succeeds();
    site.cluster.archive_everything();
    let before = contents(&target);
    target
        .try_copy(&[])
        .exits_with(2)
        .says(&["what is new would be in the open", "--recipients"]);
    assert_eq!(contents(&target), before);
    // Nor with another codec alone.
    target
        .try_copy(&["--compression", "lz4"])
        .exits_with(2)
        .says(&["what is new would be in the open"]);
    assert_eq!(contents(&target), before);
    assert_eq!(copied(&target.copy(&options)).0, 1);
    target.verify();
    site.restores(&target, &later);
}

#[test]
fn what_is_encrypted_is_copied_without_the_identity_and_never_laid_open() {
    let area = Area::new();
    let key = Key::generate(&area, "key");
    let site = Site::make(Store::directory);
    let first = site.directory("encrypted");
    first.copy(&["--recipients", &key.recipient]);
    // From here on what is encrypted is the source.
    let second = site.directory("second");
    let from_first = |options: &[&str], walhalla: &Walhalla| {
        let words = ["copy", "--json", "--store", &first.url, "--to", &second.url];
        walhalla.run(&[&words[..], options].concat())
    };
    from_first(&["--compression", "zstd"], &site.walhalla)
        .exits_with(2)
        .says(&["is encrypted, and the copy would hold it in the open"]);
    let other = Key::generate(&area, "other");
    from_first(&["--recipients", &other.recipient], &site.walhalla).exits_with(1);
    from_first(&[], &site.walhalla).succeeds();
    let second = Target {
        walhalla: site.walhalla.opening_with(&key.identity),
        ..second
    };
    second.verify();
    site.restores(&second, &site.after);
    let third = site.directory("third");
    let opening = site.walhalla.opening_with(&key.identity);
    let words = ["copy", "--store", &first.url, "--to", &third.url];
    let words = [&words[..], &["--recipients", &other.recipient]].concat();
    opening.run(&words).succeeds();
    // Nobody here can read what is there.
    let again = opening.run(&words).succeeds();
    assert!(
        again.stdout.contains("backups         0 copied"),
        "{}",
        again.stdout
    );
    let third = Target {
        walhalla: site.walhalla.opening_with(&other.identity),
        ..third
    };
    third.verify();
    site.restores(&third, &site.after);
}

#[test]
fn a_part_is_copied_with_the_wal_that_it_needs() {
    let site = Site::make(Store::directory);
    let newer = site.walhalla.back_up(&site.cluster);
    let later = make_history(&site.cluster, "later");
    site.cluster.archive_everything();
    let all = site.directory("all").copy(&[]);

    let alone = site.directory("alone");
    let report = alone.copy(&["--backup", &site.delta]);
    assert_eq!(alone.backups(), [site.full.clone(), site.delta.clone()]);
    assert!(copied(&report).1 < copied(&all).1, "{report} {all}");
    alone.verify();
    alone
        .run(&["plan", "--target-immediate", "--backup", &site.delta])
        .succeeds();
    // What was left out is added, and what was said of it does not stand in the way.
    alone.copy(&["--backup", &newer]);
    alone.verify();
    alone.copy(&[]);
    alone.verify();
    site.restores(&alone, &site.between);
    site.restores(&alone, &later);

    let window = site.directory("window");
    window.copy(&["--backup", "LATEST", "--window"]);
    assert_eq!(window.backups(), std::slice::from_ref(&newer));
    window.verify();
    site.restores(&window, &later);

    let since = site.directory("since");
    since.copy(&["--since", &format!("{}:00", site.after.time)]);
    assert_eq!(
        since.backups(),
        [site.full.clone(), site.delta.clone(), newer]
    );
    since.verify();
    site.restores(&since, &site.after);
    since
        .run(&["plan", "--target-name", &site.between.name])
        .exits_with(4);
    // What was left out is not lost.
    alone_without(&site)
        .run(&["plan", "--target-name", &later.name])
        .exits_with(4)
        .says(&["on purpose"]);
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_overwritten() {
    let site = Site::make(Store::directory);
    let same = Target {
        url: site.store.url(),
        walhalla: site.walhalla.clone(),
    };
    same.try_copy(&[])
        .exits_with(2)
        .says(&["cannot be copied to itself"]);

    // Another server of the same identity archived there.
    let target = site.directory("copy");
    target.copy(&[]);
    let segment = newest_segment(&target);
    let other = other_segment_of(&site, &segment);
    let repack = format!(
        "lz4 -dc {} | lz4 -c > {}",
        other.display(),
        segment.display()
    );
    run(host()
        .command("bash")
        .args(["-eu", "-o", "pipefail", "-c", &repack]))
    .succeeds();
    let before = contents(&target);
    target
        .try_copy(&[])
        .exits_with(1)
        .says(&["has other content than"]);
    assert_eq!(contents(&target), before);

    // A damaged object of the source is named, and is not in the copy; the others are, and whole.
    let newer = site.walhalla.back_up(&site.cluster);
    site.cluster.archive_everything();
    for (name, named) in [
        ("00001.tar", "digest"),
        ("00000001000000000000", "checksum"),
    ] {
        let target = site.directory(&format!("copy-of-damaged-{name}"));
        let mut objects = site.store.objects_named(name);
        objects.sort();
        let at = if named == "digest" {
            0
        } else {
            objects.len() - 1
        };
        let damaged = objects.remove(at);
        let sound = std::fs::read(&damaged).unwrap();
        let mut bytes = sound.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&damaged, bytes).unwrap();
        target.try_copy(&[]).exits_with(1).says(&[
            "was not copied",
            named,
            damaged.to_str().unwrap(),
        ]);
        if named == "digest" {
            assert_eq!(target.backups(), std::slice::from_ref(&newer));
            target.verify();
        }
        std::fs::write(&damaged, sound).unwrap();
        target.copy(&[]);
        assert_eq!(target.backups(), site.walhalla.backup_ids());
        target.verify();
    }
    site.directory("other")
        .try_copy(&["--since", "tomorrow"])
        .exits_with(2)
        .says(&["--since"]);
}

/// Summaries can be made again: nothing else depends on them.
#[test]
fn summaries_that_cannot_be_stored_hinder_nothing() {
    let site = Site::make(Store::directory);
    let target = site.directory("copy");
    let cluster = site.cluster.system_identifier();
    let refused = site.area.make_dir(&format!("copy/{cluster}"));
    // Where the folder of the summaries would be is a file.
    std::fs::write(refused.join("summary"), "").unwrap();
    let copied = target.try_copy(&[]).succeeds();
    copied.says(&["wal-summarize"]);
    std::fs::remove_file(refused.join("summary")).unwrap();
    target.verify();
    assert_eq!(target.backups(), site.walhalla.backup_ids());
    site.restores(&target, &site.after);
}

/// A profile says where the other store is, whatever the variables say.
#[test]
fn a_second_s3_server_is_reached_by_a_profile() {
    let site = Site::make(Store::s3);
    let area = Area::new();
    let other = Store::s3(&area);
    let env = other.env();
    let value = |name: &str| &env.iter().find(|(known, _)| known == name).unwrap().1;
    let profile = format!(
        "[profile vault]\naws_access_key_id = {}\naws_secret_access_key = {}\nregion = us-east-1\nendpoint_url = {}\n",
        value("AWS_ACCESS_KEY_ID"),
        value("AWS_SECRET_ACCESS_KEY"),
        value("AWS_ENDPOINT_URL_S3"),
    );
    let profiles = site.area.write("aws-config", profile);
    let settings = site.area.write("vault.toml", "s3_profile = \"vault\"\n");
    let walhalla = site
        .walhalla
        .with_env("AWS_CONFIG_FILE", profiles.to_str().unwrap());
    // The same name on another server is another store.
    let target = Target {
        url: other.url(),
        walhalla: walhalla.clone(),
    };
    let report = target.copy(&["--to-config", settings.to_str().unwrap()]);
    assert_eq!(copied(&report).0, 2, "{report}");
    target.try_copy(&[]).exits_with(2).says(&["to itself"]);
    let target = Target {
        walhalla: walhalla.with_env("WALHALLA_S3_PROFILE", "vault"),
        ..target
    };
    target.verify();
    assert_eq!(target.backups(), site.walhalla.backup_ids());
    site.restores(&target, &site.after);
    let none = walhalla.with_env("WALHALLA_S3_PROFILE", "missing");
    none.run(&["backup-list"])
        .exits_with(2)
        .says(&["no file of AWS profiles has the profile \"missing\""]);
}

/// A cluster that was restored to the past has two timelines, and so has its copy.
#[test]
fn timelines_are_copied() {
    let site = Site::make(Store::directory);
    let words = [
        "--target-name",
        &site.between.name,
        "--target-action",
        "promote",
    ];
    let mut branch = site
        .walhalla
        .restore_archiving(&site.area, VERSION, "branch", &words);
    branch.start();
    branch.wait_until_promoted();
    let aside = make_history(&branch, "aside");
    branch.archive_everything();
    let data = branch.data.to_str().unwrap();
    site.walhalla
        .run_with(&branch, &["backup-push", data])
        .succeeds();
    branch.archive_everything();
    let newest = site.walhalla.newest_backup();

    // First ends of two timelines, then what lies between.
    let target = site.directory("copy");
    target.copy(&["--backup", &site.full]);
    target.copy(&["--backup", &newest]);
    target.verify();
    target.copy(&[]);
    target.verify();
    site.restores(&target, &aside);
    let plan = ["plan", "--json", "--target-name", &aside.name];
    let plan = target.run(&plan).succeeds().json();
    assert_eq!(plan["timelines"], serde_json::json!([1, 2]), "{plan}");
}

/// Two that copy the same at the same time may hinder, and not harm each other.
#[test]
fn two_copies_at_once_leave_one_whole() {
    let site = Site::make(Store::directory);
    let key = Key::generate(&site.area, "key");
    for round in 0..10 {
        let target = site.directory(&format!("copy-{round}"));
        let options: &[&str] = match round % 2 {
            0 => &[],
            _ => &["--recipients", &key.recipient],
        };
        let words = [&["copy", "--to", &target.url][..], options].concat();
        let spawn = || target.walhalla.command(&words).spawn().unwrap();
        let both = [spawn(), spawn()];
        for mut one in both {
            one.wait().unwrap();
        }
        let target = Target {
            walhalla: target.walhalla.opening_with(&key.identity),
            ..target
        };
        // A killed one's leases would be waited for; these have ended.
        target.copy(options);
        target.verify();
        assert_eq!(target.backups(), site.walhalla.backup_ids());
    }
}

/// Killed after each call to its store, a copy is whole as far as it goes, and the next run goes on.
#[test]
fn a_copy_that_is_killed_after_any_call_is_whole() {
    kill_after_each_call(|_| None, None);
}

/// So is one that is packed anew.
#[test]
fn a_copy_that_is_packed_anew_and_killed_after_any_call_is_whole() {
    kill_after_each_call(|_| None, Some("zstd"));
}

/// So is one to which more is copied: backups that are there would see a hole.
#[test]
fn a_copy_that_is_added_to_and_killed_after_any_call_is_whole() {
    let before = |site: &Site| {
        let full = site.full.parse().unwrap();
        Some(Which::Backups(vec![full], Extent::Consistency))
    };
    kill_after_each_call(before, None);
}

/// Of the calls after which a copy is killed, one in so many is drawn; `make test-nightly` draws ten times.
const STRIDE: u32 = 4;

/// Copies all to where `before` was copied.
fn kill_after_each_call(before: fn(&Site) -> Option<Which>, compression: Option<&str>) {
    let site = Site::make(Store::directory);
    let network = Network::start(2).unwrap();
    let source = repository(&network, open(site.store.path()), &site);
    seed_chance();
    for calls in (fastrand::u32(1..=STRIDE)..).step_by(STRIDE.try_into().unwrap()) {
        let area = Area::new();
        let path = area.make_dir("copy");
        let faulty = Arc::new(FaultyStore::new(open(&path)));
        let copy = repository(&network, Arc::clone(&faulty) as Arc<dyn ObjectStore>, &site);
        let pipeline = compression.map(|compression| {
            let session = copy.session().clone();
            Pipeline::new(session, compression.parse().unwrap(), None, 2).hashing_all()
        });
        let copying = |which: &Which| {
            let copy = Copy {
                source: &source,
                copy: &copy,
                pipeline: pipeline.as_ref(),
                extent: CopyExtent::Selected,
                threads: 2,
                show: Show::Never,
            };
            copy.run(which)
        };
        let open_to_all = || run(Command::new("chmod").args(["-R", "a+rwX"]).arg(&path)).succeeds();
        if let Some(which) = before(&site) {
            copying(&which).unwrap();
        }
        faulty.stop_after(calls);
        let ended = copying(&Which::All);
        faulty.heal();
        if ended.is_ok() {
            assert!(calls > 30, "{calls}");
            return;
        }
        let target = Target {
            url: format!("file://{}", path.display()),
            walhalla: site.walhalla.clone(),
        };
        // The programs run as another user.
        open_to_all();
        if target.run(&["backup-list"]).code == Some(0) {
            target.verify();
        }
        // Later, when nobody holds the leases of what was killed.
        let leases = r"find . -path '*/leases/*' -type f -exec touch -d '1 hour ago' {} +";
        run(Command::new("bash").current_dir(&path).args(["-c", leases])).succeeds();
        copying(&Which::All).unwrap();
        open_to_all();
        target.verify();
        assert_eq!(target.backups(), site.walhalla.backup_ids());
    }
}

/// A copy of an early and a late backup, without the WAL between them.
fn alone_without(site: &Site) -> Target {
    let target = site.directory("ends");
    target.copy(&["--backup", &site.full]);
    target.copy(&["--backup", "LATEST"]);
    target
}

fn open(path: &Path) -> Arc<dyn ObjectStore> {
    Arc::new(FsStore::open(path).unwrap())
}

fn repository(network: &Network, store: Arc<dyn ObjectStore>, site: &Site) -> Repository {
    let session = StoreSession::new(Transfer::new(store, Options::default()), network);
    let cluster = site.cluster.system_identifier().parse().unwrap();
    Repository::new(session, Identities::default(), cluster)
}

fn objects(target: &Target) -> Vec<PathBuf> {
    let store = Store::Directory(target.url.strip_prefix("file://").unwrap().into());
    let mut objects = store.objects_named("");
    objects.sort();
    objects
}

fn contents(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let read = |path: PathBuf| {
        let bytes = std::fs::read(&path).unwrap();
        (path, bytes)
    };
    // Leases come and go.
    let is_kept = |path: &PathBuf| !path.components().any(|part| part.as_os_str() == "leases");
    { objects(target).into_iter() }
        .filter(is_kept)
        .map(read)
        .collect()
}

fn newest_segment(target: &Target) -> PathBuf {
    let is_segment = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.len() == "000000010000000000000001.lz4".len() && name.starts_with("00000001")
    };
    objects(target).into_iter().rfind(is_segment).unwrap()
}

/// An archived segment with other content.
fn other_segment_of(site: &Site, segment: &Path) -> PathBuf {
    let name = segment.file_name().unwrap();
    let others = site.store.objects_named("00000001");
    let has_other_name = |path: &PathBuf| {
        path.file_name() != Some(name) && path.file_name().map(OsStr::len) == Some(28)
    };
    others.into_iter().find(has_other_name).unwrap()
}
