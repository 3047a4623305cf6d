//! Reports of verifications in the store.

use std::path::PathBuf;

use serde_json::Value;

use crate::support::{Area, Cluster, Shape, Store, Walhalla, give_rights_back, make_read_only};

struct Site {
    walhalla: Walhalla,
    store: Store,
    cluster: Cluster,
    _area: Area,
}

impl Site {
    fn make() -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut cluster = Cluster::create(&area, "primary", Shape::small(17));
        walhalla.archive_from(&mut cluster);
        walhalla.back_up(&cluster);
        cluster.archive_everything();
        Self {
            walhalla,
            store,
            cluster,
            _area: area,
        }
    }

    fn folder(&self, kind: &str) -> PathBuf {
        let cluster = self.store.path().join(self.cluster.system_identifier());
        cluster.join("reports").join(kind)
    }

    fn paths(&self, kind: &str) -> Vec<PathBuf> {
        let Ok(found) = self.folder(kind).read_dir() else {
            return Vec::new();
        };
        let mut paths: Vec<PathBuf> = found.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    }

    fn newest(&self, kind: &str) -> Value {
        let newest = self.paths(kind).pop().unwrap();
        serde_json::from_slice(&std::fs::read(newest).unwrap()).unwrap()
    }
}

#[test]
fn each_verification_leaves_a_report_of_how_it_ended() {
    let site = Site::make();
    let id = site.walhalla.newest_backup();
    site.walhalla.run(&["verify"]).succeeds();
    let report = site.newest("verify");
    assert_eq!(report["format"], 1);
    assert_eq!(report["result"], "ok");
    assert_eq!(report["problems"], 0);
    assert_eq!(report["backups"], serde_json::json!([id]));
    assert_eq!(report["drill"], Value::Null);
    site.walhalla.run(&["wal-verify", "--deep"]).succeeds();
    assert_eq!(site.newest("wal-verify")["result"], "ok");

    let part = site.store.objects_named("00001.tar").pop().unwrap();
    let mut bytes = std::fs::read(&part).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&part, bytes).unwrap();
    site.walhalla.run(&["verify"]).exits_with(3);
    let paths = site.paths("verify");
    let mut reports: Vec<Value> = { paths.iter() }
        .map(|path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
        .collect();
    reports.retain(|report| report["result"] == "failed");
    assert_eq!(reports.len(), 1);
    assert_eq!(reports[0]["problems"], 1, "{}", reports[0]);
}

#[test]
fn who_can_only_read_verifies_without_a_report() {
    let site = Site::make();
    let cluster = site.store.path().join(site.cluster.system_identifier());
    make_read_only(&cluster);
    let outcome = site.walhalla.run(&["verify"]);
    give_rights_back(&cluster);
    outcome
        .succeeds()
        .says(&["the report of this verify could not be stored"]);
    assert_eq!(site.paths("verify"), Vec::<PathBuf>::new());
}

#[test]
fn a_deletion_keeps_the_newest_20_reports_of_each_kind() {
    let site = Site::make();
    site.walhalla.run(&["verify"]).succeeds();
    site.walhalla.run(&["wal-verify"]).succeeds();
    let folder = site.folder("verify");
    for day in 1..=25 {
        let name = format!("202601{day:02}T030000Z-0123456789abcdef.json");
        std::fs::write(folder.join(name), "{}").unwrap();
    }
    let words = ["delete", "garbage", "--confirm", "--json"];
    let outcome = site.walhalla.run(&words).succeeds().json();
    assert_eq!(
        outcome["totals"]["small"]["goes"]["objects"], 6,
        "{outcome:#}"
    );
    let left = site.paths("verify");
    assert_eq!(left.len(), 20);
    assert!(
        left[0].to_string_lossy().contains("20260107T030000Z"),
        "{left:?}"
    );
    assert_eq!(site.paths("wal-verify").len(), 1);
}
