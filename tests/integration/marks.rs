//! `backup-mark`: what is said of backups after they were taken, and what a delta's permanence does to its chain.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use walhalla::repository::{BackupEntry, BackupId, BackupKind};

use crate::support::{Area, Cluster, Shape, Store, Walhalla};

struct Site {
    store: Store,
    walhalla: Walhalla,
    cluster: Cluster,
    area: Area,
}

impl Site {
    fn make() -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut cluster = Cluster::create(&area, "primary", Shape::small(17));
        walhalla.archive_from(&mut cluster);
        Self {
            store,
            walhalla,
            cluster,
            area,
        }
    }

    fn back_up(&self) -> String {
        self.walhalla.back_up(&self.cluster)
    }

    #[track_caller]
    fn mark(&self, id: &str, flag: &str) -> Value {
        let args = ["backup-mark", id, flag, "--json"];
        self.walhalla.run(&args).succeeds().json()
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        self.walhalla.run(args).succeeds().json()
    }

    /// The ids of the backups that the list shows as permanent.
    #[track_caller]
    fn permanent(&self) -> Vec<String> {
        let list = self.json(&["backup-list", "--json"]);
        let permanent = list.as_array().unwrap().iter();
        let permanent = permanent.filter(|backup| backup["permanent"] == true);
        permanent
            .map(|backup| backup["id"].as_str().unwrap().to_owned())
            .collect()
    }

    fn folder(&self, id: &str) -> PathBuf {
        let mut entries = self.store.objects_named("backup.json");
        entries.retain(|path| path.parent().unwrap().ends_with(id));
        entries.remove(0).parent().unwrap().to_owned()
    }

    /// Makes a backup that was taken as a full one the delta of another; returns its id.
    fn as_delta(&self, id: &str, parent: &str) -> String {
        let folder = self.folder(id);
        let json = folder.join("backup.json");
        let mut entry = BackupEntry::parse(&std::fs::read(&json).unwrap()).unwrap();
        entry.id = BackupId::new(id_time(id), BackupKind::Delta);
        entry.kind = BackupKind::Delta;
        entry.parent = Some(parent.parse().unwrap());
        std::fs::write(&json, entry.to_text().unwrap()).unwrap();
        let delta = entry.id.to_string();
        std::fs::rename(&folder, folder.with_file_name(&delta)).unwrap();
        delta
    }
}

fn id_time(id: &str) -> jiff::Timestamp {
    let text = id.split_at(16).0;
    jiff::fmt::temporal::DateTimeParser::new()
        .parse_timestamp(text)
        .unwrap()
}

/// The marks of the store, by their names, in order.
fn marks(store: &Store) -> Vec<String> {
    let is_mark = |path: &PathBuf| path.iter().any(|folder| folder == "marks");
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let objects = store.objects_named("");
    let marks = objects.iter().filter(|path| is_mark(path));
    let mut names: Vec<String> = marks.map(|path| name(path)).collect();
    names.sort();
    names
}

#[test]
fn the_newest_mark_counts_and_saying_it_again_changes_nothing() {
    let site = Site::make();
    let id = site.back_up();
    let written = std::fs::read(site.folder(&id).join("backup.json")).unwrap();
    assert!(site.permanent().is_empty());
    assert_eq!(site.mark(&id, "--impermanent")["changed"], false);
    assert_eq!(marks(&site.store), [""; 0]);

    let marked = site.mark(&id, "--permanent");
    let expected = json!({ "id": id, "permanent": true, "changed": true });
    assert_eq!(marked, expected);
    assert_eq!(site.permanent(), [id.as_str()]);
    let again = site.mark("LATEST", "--permanent");
    let expected = json!({ "id": id, "permanent": true, "changed": false });
    assert_eq!(again, expected);
    assert_eq!(marks(&site.store), ["00001-permanent"]);
    let said = ["backup-mark", &id, "--permanent"];
    let said = site.walhalla.run(&said).succeeds().stdout;
    assert_eq!(said, format!("backup {id} is permanent already\n"));

    let shown = site.json(&["backup-show", &id, "--json"]);
    assert_eq!(shown["permanent"], true, "{shown:#}");
    let text = site.walhalla.run(&["backup-list"]).succeeds().stdout;
    assert!(text.contains("PERMANENT") && text.contains("yes"), "{text}");

    let said = ["backup-mark", "LATEST", "--impermanent"];
    let said = site.walhalla.run(&said).succeeds().stdout;
    assert_eq!(said, format!("backup {id} is impermanent now\n"));
    assert!(site.permanent().is_empty());
    site.mark(&id, "--permanent");
    assert_eq!(site.permanent(), [id.as_str()]);
    let names = ["00001-permanent", "00002-impermanent", "00003-permanent"];
    assert_eq!(marks(&site.store), names);

    // Marks are objects beside the backup, which stays as it was, and nothing that verify stumbles on.
    let now = std::fs::read(site.folder(&id).join("backup.json")).unwrap();
    assert_eq!(now, written);
    let report = site.json(&["verify", "--all", "--json"]);
    assert_eq!(report["problems"], json!([]), "{report:#}");
    assert_eq!(report["notes"], json!([]), "{report:#}");
    let mark = std::fs::read(site.store.objects_named("00002-").remove(0)).unwrap();
    let mark: Value = serde_json::from_slice(&mark).unwrap();
    assert_eq!(mark["backup"], json!(id), "{mark:#}");
    assert_eq!(mark["permanent"], false, "{mark:#}");
    assert!(mark["time"].is_string() && mark["walhalla_version"].is_string());
}

#[test]
fn a_backup_that_was_taken_as_permanent_can_be_left_to_the_rules_again() {
    let site = Site::make();
    let data = site.cluster.data.to_str().unwrap();
    let push = ["backup-push", data, "--permanent"];
    site.walhalla.run_with(&site.cluster, &push).succeeds();
    assert_eq!(site.permanent(), [site.walhalla.newest_backup()]);
    assert_eq!(site.mark("LATEST", "--permanent")["changed"], false);
    assert_eq!(site.mark("LATEST", "--impermanent")["changed"], true);
    assert!(site.permanent().is_empty());
}

#[test]
fn what_cannot_be_marked_is_refused_and_leaves_no_mark() {
    let site = Site::make();
    site.walhalla
        .run(&["backup-mark", "LATEST", "--permanent"])
        .exits_with(1);
    site.back_up();
    for id in ["20200101T000000Z-F", "yesterday"] {
        site.walhalla
            .run(&["backup-mark", id, "--permanent"])
            .exits_with(1)
            .says(&[id, "there is no backup", "hint: `walhalla backup-list`"]);
    }
    for flags in [&[][..], &["--permanent", "--impermanent"]] {
        let args = [&["backup-mark", "LATEST"], flags].concat();
        site.walhalla.run(&args).exits_with(2);
    }
    assert_eq!(marks(&site.store), [""; 0]);
}

#[test]
fn of_markers_at_the_same_moment_each_succeeds_and_no_mark_is_lost() {
    let site = Site::make();
    let id = site.back_up();
    let mark_all = |flags: &[&str]| {
        let run = |flag: &&str| site.mark(&id, flag)["changed"] == true;
        std::thread::scope(|scope| {
            let markers: Vec<_> = flags
                .iter()
                .map(|flag| scope.spawn(move || run(flag)))
                .collect();
            let changed = markers.into_iter().map(|marker| marker.join().unwrap());
            changed.filter(|changed| *changed).count()
        })
    };
    // Who comes second finds it done.
    assert_eq!(mark_all(&["--permanent"; 6]), 1);
    assert_eq!(marks(&site.store), ["00001-permanent"]);
    let both = ["--permanent", "--impermanent"].repeat(4);
    let made = mark_all(&both);
    let names = marks(&site.store);
    assert_eq!(names.len(), made + 1, "{names:?}");
    let is_permanent = !site.permanent().is_empty();
    let newest = names.last().unwrap();
    assert_eq!(newest.ends_with("-permanent"), is_permanent, "{names:?}");
}

#[test]
fn a_permanent_delta_keeps_its_chain_which_is_listed_verified_and_missed() {
    let site = Site::make();
    let full = site.back_up();
    let other = site.back_up();
    let delta = site.as_delta(&other, &full);
    let other = site.back_up();
    let leaf = site.as_delta(&other, &delta);

    let list = site.json(&["backup-list", "--json"]);
    assert_eq!(list[0]["parent"], Value::Null);
    assert_eq!(list[0]["chain"], json!([full]));
    assert_eq!(list[0]["dependents"], json!([delta, leaf]));
    assert_eq!(list[2]["parent"], json!(delta));
    assert_eq!(list[2]["chain"], json!([full, delta, leaf]));
    assert_eq!(list[2]["dependents"], json!([]));
    let shown = site.json(&["backup-show", &delta, "--json"]);
    assert_eq!(shown["chain"], json!([full, delta]));
    assert_eq!(shown["dependents"], json!([leaf]));
    let text = site.walhalla.run(&["backup-show", "LATEST"]).succeeds();
    let (_, chain) = text.stdout.split_once("a restore takes").unwrap();
    let chain: Vec<&str> = chain.split_whitespace().take(3).collect();
    assert_eq!(
        chain,
        [full.as_str(), delta.as_str(), leaf.as_str()],
        "{text}"
    );
    let text = site
        .walhalla
        .run(&["backup-list", "--wide"])
        .succeeds()
        .stdout;
    let line = text.lines().find(|line| line.contains(&leaf)).unwrap();
    assert!(text.contains("PARENT") && line.contains(&delta), "{text}");

    let said = ["backup-mark", &leaf, "--permanent"];
    let said = site.walhalla.run(&said).succeeds().stdout;
    assert!(said.contains(&full) && said.contains(&delta), "{said}");
    assert_eq!(site.permanent(), [&full, &delta, &leaf].map(String::as_str));
    let hint = format!("hint: first: walhalla backup-mark {leaf} --impermanent");
    for kept in [&full, &delta] {
        site.walhalla
            .run(&["backup-mark", kept, "--impermanent"])
            .exits_with(1)
            .says(&[kept, &leaf, &hint]);
    }
    // It may be said of the full backup itself too, and then stays when the delta's mark goes.
    assert_eq!(site.mark(&full, "--permanent")["changed"], true);
    site.mark(&leaf, "--impermanent");
    assert_eq!(site.permanent(), [full.as_str()]);
    site.mark(&full, "--impermanent");
    assert!(site.permanent().is_empty());

    for args in [&["verify", &leaf][..], &["verify"], &["verify", "LATEST"]] {
        let report = site.json(&[args, &["--json"]].concat());
        assert_eq!(report["backups"], 3, "{report:#}");
    }
    assert_eq!(site.json(&["verify", &full, "--json"])["backups"], 1);
}

#[test]
fn a_delta_whose_full_backup_is_gone_is_passed_over_and_told() {
    let site = Site::make();
    let full = site.back_up();
    let other = site.back_up();
    let delta = site.as_delta(&other, &full);
    let folder = site.folder(&full);
    let sound = site.back_up();
    let other = site.back_up();
    let leaf = site.as_delta(&other, &delta);
    let aside = folder.with_file_name("aside");
    std::fs::rename(&folder, &aside).unwrap();

    let list = site.walhalla.run(&["backup-list", "--json"]).exits_with(3);
    let list = list.says(&[&delta, &leaf, &full, "is missing"]).json();
    assert_eq!(list[0]["chain"], Value::Null);
    assert!(list[2]["chain_problem"].as_str().unwrap().contains(&full));
    assert_eq!(list[2]["reachable_segment"], Value::Null);
    let text = site.walhalla.run(&["backup-list"]).exits_with(3).stdout;
    assert!(text.contains("nothing: broken chain"), "{text}");
    site.walhalla
        .run(&["backup-show", &leaf])
        .exits_with(3)
        .says(&[&full]);

    // LATEST and a restore begin with what is whole.
    let plan = site.walhalla.run(&["plan", "--json"]).succeeds();
    let plan = plan.says(&[&leaf, &full, "is missing; the backup is passed over"]);
    assert_eq!(plan.json()["backup_chain"], json!([sound]));
    assert_eq!(site.mark("LATEST", "--permanent")["id"], json!(sound));
    let dir = site.area.path("fetched");
    site.walhalla
        .run(&["backup-fetch", dir.to_str().unwrap(), &leaf])
        .exits_with(1)
        .says(&[
            &format!("backup {leaf} cannot be restored: {full}, on which it stands, is missing"),
            "hint:",
        ]);
    assert!(!dir.exists());
    let report = site.walhalla.run(&["verify", &leaf, "--json"]);
    let report = report.exits_with(3).json();
    assert_eq!(report["backups"], 2, "{report:#}");
    let problem = &report["problems"][0];
    let object = problem["object"].as_str().unwrap();
    assert!(object.ends_with(&format!("backups/{full}/backup.json")));
    assert!(problem["what"].as_str().unwrap().contains("it is missing"));

    // Damage of the entry is told with the reason.
    std::fs::rename(&aside, &folder).unwrap();
    std::fs::write(folder.join("backup.json"), "{}").unwrap();
    site.walhalla
        .run(&["plan", "--backup", &leaf])
        .exits_with(1)
        .says(&[&full, "is damaged", "cause: ", "no backup entry"]);
}
