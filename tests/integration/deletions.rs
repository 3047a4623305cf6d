//! `delete`: what was promised is restored afterwards, what is in use stays, and a kill or a race leaves nothing half.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::support::{
    Area, Cluster, Ending, Outcome, PgbenchLoad, Shape, Store, Walhalla, fill, host,
    random_moment_within, seed_chance,
};

/// `make test-nightly` plays both ten times.
const DELETIONS: usize = 8;
const RACES: usize = 10;
const KILLS: usize = 10;

struct Site {
    area: Area,
    store: Store,
    walhalla: Walhalla,
    cluster: Cluster,
}

impl Site {
    fn make() -> Self {
        Self::on(Store::directory)
    }

    fn on(store: fn(&Area) -> Store) -> Self {
        let area = Area::new();
        let store = store(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut cluster = Cluster::create(&area, "primary", Shape::small(17));
        walhalla.archive_from(&mut cluster);
        cluster.sql("create table log (number int, moment timestamptz default clock_timestamp())");
        Self {
            area,
            store,
            walhalla,
            cluster,
        }
    }

    /// Writes a row; returns a moment at which it is the last one, and after which something else happens.
    fn write(&self, number: usize) -> String {
        self.cluster
            .sql(&format!("insert into log values ({number})"));
        let moment = self.cluster.sql("select clock_timestamp()");
        self.cluster.sql("select pg_sleep(0.01)");
        self.cluster.sql("create table later (); drop table later");
        moment
    }

    fn back_up(&self, options: &[&str]) -> String {
        self.push(options).succeeds();
        self.walhalla.newest_backup()
    }

    fn push(&self, options: &[&str]) -> Outcome {
        let mut words = vec!["backup-push", self.cluster.data.to_str().unwrap()];
        words.extend_from_slice(options);
        self.walhalla.run_with(&self.cluster, &words)
    }

    /// What would go, or went.
    #[track_caller]
    fn delete(&self, words: &[&str]) -> Value {
        let mut all = vec!["delete", "--json"];
        all.extend_from_slice(words);
        self.walhalla.run(&all).succeeds().json()
    }

    /// The row that is the last one after a restore.
    fn restored(&self, name: &str, options: &[&str]) -> String {
        let mut words = vec!["--target-action", "promote"];
        words.extend_from_slice(options);
        if !options.iter().any(|word| word.starts_with("--target")) {
            words.clear();
        }
        let mut copy = self.walhalla.restore(&self.area, 17, name, &words);
        copy.start();
        copy.wait_until_promoted();
        let last = copy.sql("select coalesce(max(number), 0) from log");
        copy.stop();
        drop(copy);
        self.area.remove(name);
        last
    }

    /// Everything that is left is sound.
    #[track_caller]
    fn verify(&self) {
        self.walhalla.run(&["verify", "--all"]).succeeds();
        self.walhalla.run(&["wal-verify", "--deep"]).succeeds();
        self.walhalla.run(&["backup-list"]).succeeds();
    }

    fn objects(&self) -> Vec<PathBuf> {
        let mut objects = self.store.objects_named("");
        objects.sort();
        objects
    }
}

fn ids(report: &Value, goes: bool) -> Vec<&str> {
    let backups = report["backups"].as_array().unwrap().iter();
    let wanted = backups.filter(|backup| (backup["fate"] == "goes") == goes);
    wanted
        .map(|backup| backup["id"].as_str().unwrap())
        .collect()
}

#[test]
fn after_each_deletion_the_promised_points_are_restored() {
    seed_chance();
    let site = Site::make();
    let mut moments = Vec::new();
    let policies = [
        "1",
        "2",
        "1 full",
        "2 full",
        "3",
        "daily=1",
        "days=1",
        "2 daily=2",
    ];
    for number in 0..DELETIONS {
        moments.push(site.write(2 * number));
        let delta = ["--delta"];
        site.back_up(if fastrand::bool() { &delta } else { &[] });
        moments.push(site.write(2 * number + 1));
        site.cluster.archive_everything();
        let policy = fastrand::choice(policies).unwrap();
        let words: Vec<&str> = ["retain", "--confirm"]
            .into_iter()
            .chain(policy.split(' '))
            .collect();
        let report = site.delete(&words);
        let from = report["reachable_from"][1].as_str().unwrap();
        let from: jiff::Timestamp = from.parse().unwrap();
        let promised: Vec<usize> = (0..moments.len())
            .filter(|at| time(&moments[*at]) >= from)
            .collect();
        let (oldest, newest) = (promised[0], promised[promised.len() - 1]);
        let last = site.restored("oldest", &["--target-time", &moments[oldest]]);
        assert_eq!(last, oldest.to_string(), "{policy}: {report:#}");
        assert_eq!(site.restored("newest", &[]), newest.to_string(), "{policy}");
        site.verify();
        // Each backup that stays can be restored by itself.
        for id in ids(&report, false).into_iter().take(1) {
            site.restored("alone", &["--backup", id, "--target-immediate"]);
        }
    }
}

fn time(moment: &str) -> jiff::Timestamp {
    // PostgreSQL writes the zone as +00.
    format!("{moment}:00").replace(' ', "T").parse().unwrap()
}

#[test]
fn nothing_goes_without_confirm_and_then_only_what_was_shown() {
    let site = Site::make();
    for number in 0..3 {
        site.write(number);
        site.back_up(&[]);
    }
    site.cluster.archive_everything();
    let before = site.objects();
    let shown = site.delete(&["retain", "1"]);
    assert_eq!(site.objects(), before);
    assert_eq!(
        (shown["confirmed"].as_bool(), ids(&shown, true).len()),
        (Some(false), 2)
    );
    let table = site.walhalla.run(&["delete", "retain", "1"]).succeeds();
    for part in ["goes", "newest", "--confirm", "summaries of WAL"] {
        assert!(table.stdout.contains(part), "{part}: {}", table.stdout);
    }
    let done = site.delete(&["retain", "1", "--confirm"]);
    for field in ["backups", "totals", "leftovers"] {
        assert_eq!(done[field], shown[field], "{field}");
    }
    let gone = shown["totals"]
        .as_object()
        .unwrap()
        .values()
        .filter_map(|both| both["goes"]["objects"].as_u64());
    assert_eq!(done["deleted_objects"].as_u64(), Some(gone.sum()));
    assert_eq!(done["hidden"], false);
    assert_eq!(site.walhalla.backup_ids(), ids(&done, false));
    site.verify();
    // A second time there is nothing to do, and nothing is left of the work.
    let again = site.delete(&["retain", "1", "--confirm"]);
    assert_eq!(again["deleted_objects"], 0);
    assert!(!site.objects().iter().any(|path| is_in(path, "leases")));
}

fn is_in(path: &Path, folder: &str) -> bool {
    path.iter().any(|part| part == folder)
}

#[test]
fn the_setting_says_what_a_deletion_without_words_keeps() {
    let site = Site::make();
    site.back_up(&[]);
    site.walhalla
        .run(&["delete"])
        .exits_with(2)
        .says(&["retention"]);
    site.walhalla
        .run(&["delete", "retain"])
        .exits_with(2)
        .says(&["retention"]);
    let bad = site.walhalla.with_env("WALHALLA_RETENTION", "days");
    bad.run(&["delete"])
        .exits_with(2)
        .says(&["retention", "whole number"]);
    for number in 0..2 {
        site.write(number);
        site.back_up(&[]);
    }
    let set = site.walhalla.with_env("WALHALLA_RETENTION", "1");
    set.run(&["delete", "--confirm"]).succeeds();
    assert_eq!(site.walhalla.backup_ids().len(), 1);
}

#[test]
fn what_must_stay_is_refused_by_name() {
    let site = Site::make();
    let full = site.back_up(&[]);
    let delta = site.back_up(&["--delta"]);
    let newest = site.back_up(&[]);
    let before = site.objects();
    let refused = |words: &[&str], says: &[&str]| {
        let mut all = vec!["delete", "--confirm"];
        all.extend_from_slice(words);
        site.walhalla.run(&all).exits_with(1).says(says);
        assert_eq!(site.objects(), before);
    };
    refused(&["backup", &newest], &["newest"]);
    refused(&["backup", &full], &[&delta, "stands on"]);
    refused(&["backup", "20000101T000000Z-F"], &["no backup"]);
    site.walhalla
        .run(&["backup-mark", &delta, "--permanent"])
        .succeeds();
    let before = site.objects();
    for words in [&["backup", &*full, &*delta][..], &["everything"]] {
        let mut all = vec!["delete", "--confirm"];
        all.extend_from_slice(words);
        site.walhalla
            .run(&all)
            .exits_with(1)
            .says(&["permanent", "backup-mark"]);
        assert_eq!(site.objects(), before);
    }
    site.walhalla
        .run(&["backup-mark", &delta, "--impermanent"])
        .succeeds();
    site.delete(&["backup", &full, &delta, "--confirm"]);
    assert_eq!(site.walhalla.backup_ids(), std::slice::from_ref(&newest));
    site.delete(&["everything", "--confirm"]);
    let left = site.objects();
    assert!(left.iter().all(|path| is_in(path, "deletions")), "{left:?}");
}

/// Gives what a test has put into the store to the user who runs the commands.
fn give(site: &Site, path: &Path) {
    let own = path
        .ancestors()
        .take_while(|path| *path != site.store.path());
    own.for_each(|path| host().give_to_user(path));
}

/// Writes a lease as another host's process would.
fn write_lease(site: &Site, backups: &[&str], age: Duration) -> PathBuf {
    let cluster = site.cluster.system_identifier();
    let folder = site
        .store
        .path()
        .join(cluster)
        .join("leases/0123456789abcdef");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("00001.json");
    let content = serde_json::json!({
        "format": 1, "user": "restore on db9, process 7", "backups": backups, "wal": [], "makes": null,
        "holds_for_seconds": 900, "walhalla_version": "0.1.0",
    });
    std::fs::write(&path, content.to_string()).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(SystemTime::now() - age).unwrap();
    give(site, &path);
    path
}

#[test]
fn what_somebody_uses_stays_until_the_lease_ends() {
    let site = Site::make();
    let used = site.back_up(&[]);
    let unused = site.back_up(&[]);
    site.back_up(&[]);
    let lease = write_lease(&site, &[&used], Duration::from_mins(14));
    let words = ["delete", "backup", &used, "--confirm"];
    site.walhalla
        .run(&words)
        .exits_with(1)
        .says(&["in use", "db9"]);
    site.walhalla
        .run(&["delete", "everything", "--confirm"])
        .exits_with(1)
        .says(&["in use", "db9"]);
    let done = site.delete(&["retain", "1", "--confirm"]);
    assert_eq!(ids(&done, true), [unused]);
    assert!(lease.exists());
    site.verify();
    // By the store's clock nobody renewed it for too long.
    write_lease(&site, &[&used], Duration::from_mins(16));
    let done = site.delete(&["retain", "1", "--confirm"]);
    assert_eq!(ids(&done, true), [used]);
    assert!(!lease.exists());
    site.verify();
}

#[test]
fn what_cannot_be_read_stops_a_deletion() {
    let site = Site::make();
    let first = site.back_up(&[]);
    site.back_up(&[]);
    let spoil = |path: &Path, text: &str, says: &[&str]| {
        let kept = std::fs::read(path).ok();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        give(&site, path);
        let before = site.objects();
        site.walhalla
            .run(&["delete", "retain", "1", "--confirm"])
            .exits_with(1)
            .says(says);
        assert_eq!(site.objects(), before);
        match kept {
            Some(kept) => std::fs::write(path, kept).unwrap(),
            None => std::fs::remove_file(path).unwrap(),
        }
    };
    let cluster = site.store.path().join(site.cluster.system_identifier());
    let entry = cluster.join(format!("backups/{first}/backup.json"));
    spoil(
        &entry,
        "{",
        &["nothing was deleted", &first, "copy of the store"],
    );
    let lease = cluster.join("leases/0123456789abcdef/00001.json");
    spoil(&lease, "{\"format\": 9}", &["lease"]);
    spoil(&cluster.join("leases/0123456789abcdef/x"), "", &["lease"]);
    spoil(
        &cluster.join(format!("marks/{first}/00001-forever")),
        "",
        &["mark"],
    );
    spoil(
        &cluster.join("deletions/0123456789abcdef.json"),
        "{}",
        &["record of a deletion"],
    );
    site.delete(&["retain", "1", "--confirm"]);
    site.verify();
}

#[test]
fn garbage_is_what_nothing_can_use() {
    let site = Site::make();
    site.write(0);
    site.cluster.archive_everything();
    let early = site.store.objects_named("00000001");
    assert!(!early.is_empty());
    let id = site.back_up(&[]);
    site.write(1);
    let last = site.cluster.archive_everything();
    let cluster = site.store.path().join(site.cluster.system_identifier());
    let day = Duration::from_hours(30);
    let mut left = Vec::new();
    for (name, age) in [
        ("20000101T000000Z-F", day),
        ("20000102T000000Z-F", Duration::ZERO),
    ] {
        let part = cluster.join(format!("backups/{name}/base/00001.tar.lz4"));
        let claim = cluster.join(format!("claims/{}", &name[..16]));
        let upload = part.with_file_name(".0123456789abcdef0123456789abcdef.tmp");
        for path in [part, claim, upload] {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "x").unwrap();
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
            give(&site, &path);
            left.push((path, age == day));
        }
    }
    let done = site.delete(&["garbage", "--confirm"]);
    assert_eq!(done["leftovers"], serde_json::json!(["20000101T000000Z-F"]));
    assert_eq!(done["totals"]["uploads"], 1);
    for (path, goes) in &left {
        assert_eq!(path.exists(), !goes, "{}", path.display());
    }
    assert!(early.iter().all(|path| !path.exists()), "{early:?}");
    assert_eq!(site.walhalla.backup_ids(), [id]);
    // The summary of a segment that is lost: the loss shows without it, as later segments are there.
    site.write(2);
    site.cluster.archive_everything();
    std::fs::remove_file(site.store.object_of(&last)).unwrap();
    assert_eq!(site.store.summaries_named(&last).len(), 1);
    site.delete(&["garbage", "--confirm"]);
    assert_eq!(site.store.summaries_named(&last), [] as [PathBuf; 0]);
    site.walhalla
        .run(&["wal-verify"])
        .exits_with(3)
        .says(&[&last]);
}

#[test]
fn a_killed_deletion_leaves_nothing_half_and_the_next_one_ends_it() {
    let site = Site::make();
    let mut kills = 0;
    for round in 0..KILLS {
        for number in 0..2 {
            site.write(3 * round + number);
            site.back_up(if number == 1 { &["--delta"] } else { &[] });
        }
        site.cluster.archive_everything();
        let words = ["delete", "retain", "1", "full", "--confirm"];
        let ending = Walhalla::kill_after(
            &mut site.walhalla.command(&words),
            random_moment_within(Duration::from_millis(60)),
        );
        kills += usize::from(matches!(ending, Ending::Killed));
        site.verify();
        let report = site.delete(&["retain", "1", "full", "--confirm"]);
        site.verify();
        assert_eq!(site.walhalla.backup_ids().len(), 2, "{report:#}");
        // A kill may leave an empty directory behind, and no object.
        let ids = site.walhalla.backup_ids();
        let is_listed = |path: &PathBuf| ids.iter().any(|id| is_in(path, id));
        let mut of_backups = site.objects();
        of_backups.retain(|path| is_in(path, "backups"));
        assert!(of_backups.iter().all(is_listed), "{of_backups:?}");
    }
    assert!(kills > 0, "each deletion was faster than its kill");
}

fn spawn(walhalla: &Walhalla, cluster: &Cluster, words: &[&str]) -> Child {
    let mut command = walhalla.command(words);
    let child = command
        .envs(cluster.connection())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    child.spawn().unwrap()
}

#[test]
fn deletions_beside_deltas_leave_chains_whole() {
    deletions_beside(&["backup-push", "PGDATA", "--delta", "--parent", "FIRST"]);
}

#[test]
fn deletions_beside_fetches_leave_chains_whole() {
    deletions_beside(&["backup-fetch", "FOLDER", "FIRST"]);
}

#[test]
fn deletions_beside_copies_leave_chains_whole() {
    deletions_beside(&["copy", "--to", "COPY", "--backup", "FIRST"]);
}

#[test]
fn deletions_beside_restores_leave_chains_whole() {
    deletions_beside(&[
        "restore",
        "FOLDER",
        "--backup",
        "FIRST",
        "--archive-mode",
        "off",
    ]);
}

/// Deletes the first of two backups while a command that needs it runs, from a random moment on.
fn deletions_beside(command: &[&str]) {
    seed_chance();
    let mut site = Site::make();
    // Where each delta outlives the deletion beside it, they all stand on one another.
    let unlimited = (2 * RACES).to_string();
    site.walhalla = site
        .walhalla
        .with_env("WALHALLA_DELTA_MAX_CHAIN", &unlimited);
    let data = site.cluster.data.to_str().unwrap().to_owned();
    fill(&site.cluster);
    let load = PgbenchLoad::start(&site.cluster);
    site.back_up(&[]);
    let to = site.area.path("beside");
    let copy = format!("file://{}", to.display());
    for _ in 0..RACES {
        // The deletion takes the first of two, unless who runs beside it holds it.
        let first = site.walhalla.newest_backup();
        site.back_up(&[]);
        let in_place = |word: &&'_ str| match *word {
            "PGDATA" => data.clone(),
            "FOLDER" => to.display().to_string(),
            "COPY" => copy.clone(),
            "FIRST" => first.clone(),
            word => word.to_owned(),
        };
        let words: Vec<String> = command.iter().map(in_place).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let beside = spawn(&site.walhalla, &site.cluster, &words);
        std::thread::sleep(random_moment_within(Duration::from_millis(600)));
        let deleted = site
            .walhalla
            .run(&["delete", "retain", "1", "--confirm", "--json"])
            .succeeds()
            .json();
        let output = beside.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        let was_planned = ids(&deleted, true).contains(&&*first);
        let went = was_planned && deleted["spared"] == serde_json::json!([]);
        // What was refused was refused before anything was written; what went on found all that it needs. Two that see each
        // other in the same moment both give way: the backup is spared, and who needs it is refused.
        assert!(
            output.status.success()
                || (was_planned && text.contains("is being deleted"))
                || (went && (text.contains("deleted") || text.contains("no backup")))
                || (words[0] == "restore" && text.contains("cannot be reached")),
            "{words:?}: {text}"
        );
        site.walhalla.run(&["backup-list"]).succeeds();
        site.walhalla.run(&["verify", "--all"]).succeeds();
        if words[0] == "copy" && output.status.success() {
            for verify in [&["verify", "--all"][..], &["wal-verify", "--deep"]] {
                let words = [verify, &["--store", &copy]].concat();
                site.walhalla.run(&words).succeeds();
            }
        }
        if to.exists() {
            site.area.remove("beside");
        }
    }
    load.stop(&site.cluster);
    site.verify();
}

#[test]
fn a_store_that_refuses_is_heard_key_by_key() {
    let area = Area::new();
    let store = Store::s3_denying(&area, &["s3:DeleteObject"]);
    let walhalla = Walhalla::new(&area, &store);
    let mut cluster = Cluster::create(&area, "primary", Shape::small(17));
    walhalla.archive_from(&mut cluster);
    let first = walhalla.back_up(&cluster);
    walhalla.back_up(&cluster);
    let refused = walhalla
        .run(&["delete", "retain", "1", "--confirm"])
        .exits_with(1);
    refused.says(&[
        &format!("{first}/backup.json"),
        "was not deleted",
        "refused to delete",
    ]);
    assert_eq!(walhalla.backup_ids().len(), 2);
    walhalla.run(&["verify", "--all"]).succeeds();
}

#[test]
fn clusters_of_one_store_are_told_apart_and_deleted_apart() {
    let site = Site::make();
    let old = site.back_up(&[]);
    let mut upgraded = Cluster::create_unrelated(&site.area, "upgraded", Shape::small(18));
    site.walhalla.archive_from(&mut upgraded);
    let data = upgraded.data.to_str().unwrap().to_owned();
    site.walhalla
        .run_with(&upgraded, &["backup-push", &data])
        .succeeds();
    let several = site.walhalla.run(&["delete", "retain", "1"]).exits_with(1);
    let (first, second) = (
        site.cluster.system_identifier(),
        upgraded.system_identifier(),
    );
    several.says(&[&first, &second, "PostgreSQL 17", "PostgreSQL 18", &old]);
    let pinned = site.walhalla.with_env("WALHALLA_CLUSTER", &second);
    let id = pinned.newest_backup();
    pinned
        .run(&["delete", "retain", "1", "--confirm"])
        .succeeds();
    assert_eq!(pinned.backup_ids(), [id]);
    pinned
        .run(&["delete", "everything", "--confirm"])
        .succeeds();
    let other = site.walhalla.with_env("WALHALLA_CLUSTER", &first);
    assert_eq!(other.backup_ids(), [old]);
    other.run(&["verify", "--all"]).succeeds();
}
