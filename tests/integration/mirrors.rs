//! Two stores at once: both have what was acknowledged, or the second is owed it; either is restored from.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use walhalla::copying::mirror::Following;
use walhalla::pipeline::{Identities, Pipeline};
use walhalla::progress::Show;
use walhalla::repository::owed::{MirrorMode, Owed};
use walhalla::repository::{BackupId, Repository};
use walhalla::session::{Network, StoreSession};
use walhalla::wal::mirror::Second;
use walhalla_providers::ObjectStore;
use walhalla_providers::fs::FsStore;
use walhalla_providers::testing::FaultyStore;
use walhalla_providers::testing::proxy::Proxy;
use walhalla_providers::transfer::{Options, Store as Transfer};

use crate::support::{
    Area, Cluster, Outcome, PgbenchLoad, Shape, Store, Walhalla, fill, host, make_history, run,
    seed_chance,
};

const VERSION: u32 = 17;
/// How long each store is down under load.
const DOWN: Duration = Duration::from_mins(1);

/// A cluster that archives into two directories.
struct Site {
    area: Area,
    first: Store,
    second: Store,
    walhalla: Walhalla,
    cluster: Cluster,
}

impl Site {
    fn make(mode: &str) -> Self {
        let area = Area::new();
        let first = Store::directory(&area);
        let second = Store::Directory(area.make_dir("second"));
        let walhalla = Walhalla::with_settings(&area, &first, &settings(&second, mode));
        let mut cluster = Cluster::create(&area, "primary", Shape::small(VERSION));
        walhalla.archive_from(&mut cluster);
        fill(&cluster);
        Self {
            area,
            first,
            second,
            walhalla,
            cluster,
        }
    }

    fn back_up(&self, options: &[&str]) -> Outcome {
        let words = ["backup-push", self.cluster.data.to_str().unwrap()];
        let words = [&words[..], options].concat();
        self.walhalla.run_with(&self.cluster, &words)
    }

    /// Each store is sound by itself, and nothing is owed.
    #[track_caller]
    fn verify(&self) {
        verify_alike(&self.walhalla, &[&self.first.url(), &self.second.url()]);
    }

    /// Takes the second store away, so that nothing can be made in its place.
    fn lose_second(&self) -> impl Fn() + use<> {
        let path = self.second.path().to_owned();
        let elsewhere = path.with_extension("away");
        std::fs::rename(&path, &elsewhere).unwrap();
        std::fs::write(&path, "").unwrap();
        move || {
            std::fs::remove_file(&path).unwrap();
            std::fs::rename(&elsewhere, &path).unwrap();
        }
    }

    fn debts(&self) -> Vec<PathBuf> {
        let objects = self.first.objects_named("").into_iter();
        objects.filter(|path| is_in(path, "owed")).collect()
    }

    /// The folder of what is noted in the spool.
    fn notes(&self) -> PathBuf {
        format!("{}.walhalla-spool/owed", self.cluster.data.display()).into()
    }

    /// Ends the time for which a second store that failed is left alone.
    fn forget_that_it_failed(&self) {
        let forget = format!("rm -f {}/*.down", self.notes().display());
        run(host().command("bash").args(["-c", &forget])).succeeds();
    }
}

fn settings(second: &Store, mode: &str) -> String {
    format!("mirror = \"{}\"\nmirror_mode = \"{mode}\"", second.url())
}

fn is_in(path: &Path, folder: &str) -> bool {
    path.components().any(|part| part.as_os_str() == folder)
}

/// Both stores are sound, each by itself, and have the same.
#[track_caller]
fn verify_alike(walhalla: &Walhalla, stores: &[&str]) {
    let report = walhalla
        .run(&["wal-verify", "--deep", "--json"])
        .succeeds()
        .json();
    let mirror = &report["mirror"];
    for what in ["owed", "first_lacks", "second_lacks", "problems"] {
        assert_eq!(mirror[what], json!([]), "{report:#}");
    }
    for what in ["backups", "segments", "segments_read"] {
        assert_eq!(mirror[what], report[what], "{report:#}");
    }
    let alone: Vec<(Value, Vec<String>)> = { stores.iter() }
        .map(|store| {
            let run = |words: &[&str]| {
                let words = [words, &["--store", store]].concat();
                walhalla.run(&words).succeeds()
            };
            run(&["verify", "--all"]);
            let report = run(&["wal-verify", "--deep", "--json"]).json();
            let listed = run(&["backup-list", "--json"]).json();
            let ids = listed.as_array().unwrap().iter();
            let ids = ids.map(|backup| backup["id"].as_str().unwrap().to_owned());
            (report["segments_read"].clone(), ids.collect())
        })
        .collect();
    assert_eq!(alone[0], alone[1]);
}

/// What the cluster was at a moment, restored by these settings.
fn restores(
    area: &Area,
    walhalla: &Walhalla,
    name: &str,
    moment: &crate::support::Moment,
    options: &[&str],
) {
    let words = ["--target-name", &moment.name, "--target-action", "promote"];
    let mut copy = walhalla.restore(area, VERSION, name, &[&words[..], options].concat());
    copy.start();
    copy.wait_until_promoted();
    copy.dump().assert_same_as(&moment.dump, &moment.name);
    copy.amcheck();
    copy.stop();
    drop(copy);
    area.remove(name);
}

#[test]
fn both_stores_get_all_and_each_is_restored_from() {
    let site = Site::make("both");
    site.back_up(&[]).succeeds();
    let between = make_history(&site.cluster, "between");
    site.cluster.switch_segment();
    site.back_up(&["--delta"]).succeeds();
    let after = make_history(&site.cluster, "after");
    site.cluster.archive_everything();
    site.verify();
    for (number, moment) in [&between, &after].into_iter().enumerate() {
        let second = ["--store", &site.second.url()];
        let name = format!("of-second-{number}");
        restores(&site.area, &site.walhalla, &name, moment, &second);
    }
    // What is said of a backup, and what is deleted, is so in both.
    let full = site.walhalla.backup_ids().remove(0);
    site.walhalla
        .run(&["backup-mark", &full, "--permanent"])
        .succeeds();
    site.back_up(&[]).succeeds();
    site.cluster.archive_everything();
    site.walhalla
        .run(&["backup-mark", &full, "--impermanent"])
        .succeeds();
    let shown = ["delete", "retain", "1", "full"];
    let stores = [site.first.url(), site.second.url()];
    let headers = stores.map(|url| format!("in {url}"));
    let shown = site.walhalla.run(&shown).succeeds().stdout;
    assert!(
        headers.iter().all(|header| shown.contains(header)),
        "{shown}"
    );
    let words = ["delete", "retain", "1", "full", "--confirm", "--json"];
    let report = site.walhalla.run(&words).succeeds().json();
    assert_eq!(report["backups"], report["mirror"]["backups"], "{report:#}");
    assert_eq!(site.walhalla.backup_ids().len(), 1);
    site.verify();
    site.walhalla.run(&["check"]).succeeds();
}

#[test]
fn a_second_store_that_must_have_all_holds_the_archive_up_and_is_named() {
    let site = Site::make("both");
    site.back_up(&[]).succeeds();
    let bring_back = site.lose_second();
    site.back_up(&[])
        .exits_with(1)
        .says(&[site.second.path().to_str().unwrap()]);
    site.cluster.switch_segment();
    let ready = site.cluster.data.join("pg_wal/archive_status");
    let waits = || {
        let names = std::fs::read_dir(&ready).unwrap();
        let mut names = names.map(|entry| entry.unwrap().file_name());
        names.any(|name| name.to_string_lossy().ends_with(".ready"))
    };
    assert!(waits());
    let segment = { std::fs::read_dir(&ready).unwrap() }
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(".ready").map(str::to_owned))
        .min()
        .unwrap();
    let path = site.cluster.data.join("pg_wal").join(&segment);
    site.walhalla
        .with_env("WALHALLA_RETRY_TIMEOUT", "1s")
        .run_in(&site.cluster.data, &["wal-push", path.to_str().unwrap()])
        .exits_with(1)
        .says(&["and not in the mirror", "mirror_mode"]);
    bring_back();
    site.cluster.archive_everything();
    site.back_up(&[]).succeeds();
    site.cluster.archive_everything();
    site.verify();
}

#[test]
fn what_is_owed_is_recorded_told_and_paid() {
    let site = Site::make("owed");
    site.back_up(&[]).succeeds();
    site.cluster.archive_everything();
    site.verify();
    let bring_back = site.lose_second();
    let moment = make_history(&site.cluster, "away");
    site.cluster.archive_everything();
    site.back_up(&["--delta"]).succeeds().says(&["it is owed"]);
    site.cluster.archive_everything();
    let owed = site.debts();
    assert!(owed.len() > 2, "{owed:?}");
    assert!(
        owed.iter()
            .any(|path| path.to_str().unwrap().ends_with("-D.json"))
    );
    assert!(site.notes().exists());
    site.walhalla.run(&["check"]).exits_with(3);
    site.walhalla
        .run(&["wal-verify"])
        .exits_with(1)
        .says(&["second"]);
    // Whoever reads is not held up.
    restores(&site.area, &site.walhalla, "meanwhile", &moment, &[]);

    bring_back();
    site.walhalla.run(&["check"]).succeeds();
    let checked = site.walhalla.run(&["check", "--json"]).succeeds().json();
    assert!(
        !checked["mirror"]["owed"].as_array().unwrap().is_empty(),
        "{checked:#}"
    );
    let verified = site.walhalla.run(&["wal-verify", "--json"]);
    assert!(
        !verified.json()["mirror"]["owed"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    // The next push pays for WAL.
    site.forget_that_it_failed();
    site.cluster.switch_segment();
    site.cluster.archive_everything();
    let backups = |owed: &[PathBuf]| {
        owed.iter()
            .all(|path| path.to_str().unwrap().ends_with("-D.json"))
    };
    assert!(backups(&site.debts()), "{:?}", site.debts());
    // And the next backup for the rest.
    site.back_up(&[]).succeeds();
    assert_eq!(site.debts(), [] as [PathBuf; 0]);
    assert!(!site.notes().exists());
    site.cluster.archive_everything();
    site.verify();
    let second = ["--store", &site.second.url()];
    restores(&site.area, &site.walhalla, "of-second", &moment, &second);
}

#[test]
fn the_daemon_pays_what_is_owed() {
    let site = Site::make("owed");
    site.back_up(&[]).succeeds();
    let socket = site.area.path("walhalla.sock");
    let with_socket = site
        .walhalla
        .with_env("WALHALLA_SOCKET", socket.to_str().unwrap());
    let mut daemon = with_socket
        .command(&["daemon"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the daemon listens", || socket.exists());
    let bring_back = site.lose_second();
    site.cluster.archive_everything();
    site.back_up(&["--delta"]).succeeds();
    assert!(!site.debts().is_empty());
    bring_back();
    site.forget_that_it_failed();
    // It knows of a server once that has asked it.
    let segment = site.cluster.switch_segment();
    let path = site.cluster.data.join("pg_wal").join(&segment);
    run(with_socket
        .command(&["wal-push", path.to_str().unwrap()])
        .current_dir(&site.cluster.data))
    .succeeds();
    wait_until("nothing is owed", || site.debts().is_empty());
    end(&mut daemon);
    site.cluster.archive_everything();
    site.verify();
}

#[test]
fn what_one_store_lacks_is_read_from_the_other_and_filled() {
    let site = Site::make("both");
    site.back_up(&[]).succeeds();
    let moment = make_history(&site.cluster, "history");
    site.cluster.switch_segment();
    site.back_up(&[]).succeeds();
    site.cluster.archive_everything();
    let ids = site.walhalla.backup_ids();
    let remove = |store: &Store, part: &str| {
        let objects = store.objects_named("").into_iter();
        let gone: Vec<PathBuf> = objects
            .filter(|path| path.to_str().unwrap().contains(part))
            .collect();
        assert!(!gone.is_empty(), "{part}");
        for path in &gone {
            std::fs::remove_file(path).unwrap();
        }
    };
    let segments = |store: &Store| {
        let mut names = store.objects_named("00000001000000");
        names.retain(|path| is_in(path, "wal") && path.extension().is_some_and(|it| it == "lz4"));
        names.retain(|path| !path.to_str().unwrap().contains("backup"));
        names.sort();
        names
    };
    let of_first = segments(&site.first);
    let lost = of_first[of_first.len() - 2]
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    let (lost, _) = lost.split_once('.').unwrap();
    remove(&site.first, &format!("wal/00000001/{lost}.lz4"));
    remove(&site.second, &format!("backups/{}/", ids[1]));
    let of_second = segments(&site.second);
    let damaged = of_second[of_second.len() - 2].clone();
    assert!(damaged.to_str().unwrap().contains(lost));
    restores(&site.area, &site.walhalla, "meanwhile", &moment, &[]);

    // Content is checked before it is sent.
    let sound = std::fs::read(&damaged).unwrap();
    let mut bytes = sound.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    site.walhalla
        .run(&["wal-verify", "--repair"])
        .exits_with(3)
        .says(&["not sent", lost]);
    std::fs::write(&damaged, sound).unwrap();
    let report = site
        .walhalla
        .run(&["wal-verify", "--json"])
        .exits_with(3)
        .json();
    assert_eq!(report["mirror"]["first_lacks"], json!([lost]), "{report:#}");
    site.walhalla.run(&["wal-verify", "--repair"]).succeeds();
    site.verify();
    assert_eq!(site.walhalla.backup_ids(), ids);

    // What was deleted does not come back.
    let of_first = ["--store", &site.first.url()];
    let words = ["delete", "retain", "1", "--confirm"];
    site.walhalla
        .run(&[&words[..], &of_first].concat())
        .succeeds();
    site.walhalla.run(&["wal-verify", "--repair"]).succeeds();
    let listed = ["backup-list", "--json"];
    let listed = site.walhalla.run(&[&listed[..], &of_first].concat()).json();
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed:#}");

    // The first store is gone: nobody knows whether the mirror has all, unless it is named.
    let elsewhere = site.area.path("gone");
    std::fs::rename(site.first.path(), &elsewhere).unwrap();
    let reading = site.walhalla.with_env("WALHALLA_RETRY_TIMEOUT", "20s");
    let refused = ["may lack what is newest", "--store URL"];
    reading.run(&["plan"]).exits_with(1).says(&refused);
    reading
        .run(&["backup-list"])
        .succeeds()
        .says(&["may lack the newest"]);
    let second = site.second.url();
    let named = ["--backup", &ids[0], "--store", &second];
    restores(&site.area, &reading, "of-what-is-left", &moment, &named);
    let newest = site
        .cluster
        .sql("select pg_walfile_name(pg_current_wal_lsn())");
    let target = site.area.path("fetched");
    let fetch = ["wal-fetch", &newest, target.to_str().unwrap()];
    // A server in archive recovery, which would take absence for the end.
    let recovering = site.area.make_dir("recovering");
    site.area.make_dir("recovering/global");
    for file in ["PG_VERSION", "global/pg_control"] {
        std::fs::copy(site.cluster.data.join(file), recovering.join(file)).unwrap();
    }
    std::fs::write(recovering.join("recovery.signal"), "").unwrap();
    reading.run_in(&recovering, &fetch).exits_with(200);
    // So it is where the first store is there and empty, as one that is not mounted.
    std::fs::create_dir(site.first.path()).unwrap();
    reading.run(&["plan"]).exits_with(1).says(&refused);
    std::fs::remove_dir(site.first.path()).unwrap();
    std::fs::rename(&elsewhere, site.first.path()).unwrap();
}

#[test]
fn nothing_is_lost_while_one_store_and_then_the_other_is_down() {
    load_while_stores_are_down("both");
}

#[test]
fn what_is_owed_under_load_is_paid_while_one_store_and_then_the_other_is_down() {
    load_while_stores_are_down("owed");
}

/// What only the mirror has is replayed by a server that asks for its WAL itself.
#[test]
fn recovery_on_demand_reads_both_stores() {
    let site = Site::make("both");
    site.back_up(&[]).succeeds();
    let moment = make_history(&site.cluster, "history");
    let last = site.cluster.switch_segment();
    site.cluster.archive_everything();
    for lost in site.first.objects_named(&last) {
        std::fs::remove_file(lost).unwrap();
    }
    let on_demand = ["--wal", "on-demand"];
    restores(&site.area, &site.walhalla, "on-demand", &moment, &on_demand);
}

/// A mirror that is down neither fills the disk nor makes anything be dropped that the first store has.
#[test]
fn max_backlog_drops_nothing_for_the_mirrors_sake() {
    let site = Site::make("both");
    site.back_up(&[]).succeeds();
    let bring_back = site.lose_second();
    let name = site.cluster.switch_segment();
    // More than 16 MiB, of segments of 1 MiB.
    for _ in 0..18 {
        site.cluster.switch_segment();
    }
    let path = site.cluster.data.join("pg_wal").join(&name);
    let hasty = site.walhalla.with_env("WALHALLA_RETRY_TIMEOUT", "1s");
    let push = ["wal-push", path.to_str().unwrap()];
    hasty.run_in(&site.cluster.data, &push).exits_with(1);
    assert_eq!(site.debts(), [] as [PathBuf; 0]);
    hasty
        .with_env("WALHALLA_MAX_BACKLOG", "16MiB")
        .run_in(&site.cluster.data, &push)
        .succeeds()
        .says(&["max_backlog", "it is owed"]);
    let owed = site.debts();
    assert!(
        owed.iter()
            .any(|path| path.to_str().unwrap().contains(&name))
    );
    let objects = site.first.objects_named("");
    assert!(objects.iter().all(|path| !is_in(path, "gaps")));
    bring_back();
    site.cluster.archive_everything();
    site.back_up(&[]).succeeds();
    site.cluster.archive_everything();
    site.verify();
}

/// Segments are made all the while; each store is away for a time, the second one first.
fn load_while_stores_are_down(mode: &str) {
    let area = Area::new();
    let (first, second) = (Store::s3(&area), Store::gcs(&area));
    let of_first = Proxy::start(first.address());
    let of_second = Proxy::start(second.address());
    let walhalla = Walhalla::with_settings(&area, &first, &settings(&second, mode));
    let own = second.env().into_iter();
    let walhalla = own.fold(walhalla, |walhalla, (key, value)| {
        walhalla.with_env(&key, &value)
    });
    let walhalla = first.through(&of_first.endpoint(), &walhalla);
    let walhalla = second.through(&of_second.endpoint(), &walhalla);
    let walhalla = walhalla.with_env("WALHALLA_RETRY_TIMEOUT", "5s");
    let mut cluster = Cluster::create(&area, "primary", Shape::small(VERSION));
    walhalla.archive_from(&mut cluster);
    fill(&cluster);
    let data = cluster.data.to_str().unwrap().to_owned();
    let back_up = |options: &[&str]| {
        let words = [&["backup-push", &data], options].concat();
        walhalla.run_with(&cluster, &words).succeeds();
    };
    back_up(&[]);
    let load = PgbenchLoad::start(&cluster);
    for proxy in [&of_second, &of_first] {
        proxy.refuse();
        std::thread::sleep(DOWN);
        proxy.accept();
        std::thread::sleep(Duration::from_secs(2));
    }
    load.stop(&cluster);
    let moment = make_history(&cluster, "after");
    cluster.archive_everything();
    back_up(&["--delta"]);
    cluster.archive_everything();
    cluster.stop();
    walhalla.run(&["wal-verify", "--repair"]).succeeds();
    verify_alike(&walhalla, &[&first.url(), &second.url()]);
    for (store, name) in [(&first, "of-first"), (&second, "of-second")] {
        restores(&area, &walhalla, name, &moment, &["--store", &store.url()]);
    }
}

/// A backup on its way to the second store, which answers nothing after any call.
#[test]
fn a_mirrored_backup_that_is_killed_after_any_call_is_whole() {
    let site = Site::make("owed");
    let alone = Walhalla::on_host(&site.area, "alone", &site.first, "");
    alone.back_up(&site.cluster);
    make_history(&site.cluster, "history");
    site.cluster.switch_segment();
    alone
        .run_with(
            &site.cluster,
            &[
                "backup-push",
                site.cluster.data.to_str().unwrap(),
                "--delta",
            ],
        )
        .succeeds();
    site.cluster.archive_everything();
    let newest: BackupId = alone.newest_backup().parse().unwrap();
    let network = Network::start(2).unwrap();
    let cluster = site.cluster.system_identifier().parse().unwrap();
    let open = |store: Arc<dyn ObjectStore>| {
        let session = StoreSession::new(Transfer::new(store, Options::default()), &network);
        Repository::new(session, Identities::default(), cluster)
    };
    let first = open(Arc::new(FsStore::open(site.first.path()).unwrap()));
    // One call in four is drawn; `make test-nightly` draws ten times.
    seed_chance();
    for calls in (fastrand::u32(1..=4)..).step_by(4) {
        let path = site.area.make_dir(&format!("second-{calls}"));
        let faulty = FaultyStore::new(Arc::new(FsStore::open(&path).unwrap()));
        let session = open(Arc::new(faulty.clone())).session().clone();
        let second = Second {
            pipeline: Pipeline::new(session.clone(), "lz4".parse().unwrap(), None, 1),
            session,
            mode: MirrorMode::Both,
            bound: None,
        };
        let following = || second.of(&first, None);
        let send = || {
            let mirror = following();
            // As backup-push does before it commits.
            mirror.owe(&first, &Owed::Backup(newest.clone())).unwrap();
            Following {
                first: &first,
                mirror: &mirror,
                threads: 2,
                show: Show::Never,
            }
            .backup(&newest)
        };
        faulty.stop_after(calls);
        let ended = send();
        faulty.heal();
        let url = format!("file://{}", path.display());
        let check = || {
            run(std::process::Command::new("chmod")
                .args(["-R", "a+rwX"])
                .arg(&path))
            .succeeds();
            for words in [&["verify", "--all"][..], &["wal-verify", "--deep"]] {
                alone.run(&[words, &["--store", &url]].concat()).succeeds();
            }
        };
        if ended.is_ok() {
            assert!(calls > 20, "{calls}");
            check();
            return;
        }
        let folder = path.join(site.cluster.system_identifier());
        if folder.join("backups").exists() {
            check();
        }
        let leases = r"find . -path '*/leases/*' -type f -exec touch -d '1 hour ago' {} +";
        run(std::process::Command::new("bash")
            .current_dir(&path)
            .args(["-c", leases]))
        .succeeds();
        send().unwrap();
        check();
        assert_eq!(first.debts(following().id()).unwrap(), []);
        site.area.remove(&format!("second-{calls}"));
    }
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_mins(1), "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn end(child: &mut Child) {
    let id = child.id().to_string();
    run(std::process::Command::new("kill").arg(id)).succeeds();
    child.wait().unwrap();
}
