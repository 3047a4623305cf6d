//! A server that was put back to an older state of its disk: it has the timeline and the positions of the one that it was
//! before, and another past. A backup of the past that was lost is no base for a delta.

use crate::support::{Area, Cluster, Outcome, Shape, Store, Walhalla, copy_tree};

/// A server that was put back to before its full backup, and went on with its archiving switched off for a while.
struct PutBack {
    cluster: Cluster,
    walhalla: Walhalla,
    lost: String,
    area: Area,
}

impl PutBack {
    fn make(version: u32, settings: &str) -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut cluster = Cluster::create(&area, "primary", Shape::small(version));
        cluster.configure(settings);
        walhalla.archive_from(&mut cluster);
        cluster
            .sql("create table t as select g as i, 'first' as who from generate_series(1, 5000) g");
        cluster.sql("create table filler (g int)");
        cluster.sql("checkpoint");
        cluster.archive_everything();
        cluster.stop();
        copy_tree(&cluster.data, &area.path("snapshot"));
        cluster.start();
        cluster.sql("update t set who = 'lost' where i % 2 = 0");
        cluster.sql("checkpoint");
        let lost = walhalla.back_up(&cluster);
        cluster.archive_everything();
        cluster.stop();
        std::fs::rename(area.path("primary"), area.path("lost")).unwrap();
        std::fs::rename(area.path("snapshot"), area.path("primary")).unwrap();

        // What the archiver is held up by is passed over.
        cluster.configure("archive_command = 'true'");
        cluster.start();
        cluster.sql("update t set who = 'kept' where i % 3 = 0");
        for _ in 0..10 {
            cluster.sql("insert into filler select generate_series(1, 2000)");
            cluster.archive_everything();
            cluster.sql("checkpoint");
        }
        cluster.configure(&walhalla.archive_settings());
        for _ in 0..3 {
            cluster.sql("insert into filler select generate_series(1, 10)");
            cluster.archive_everything();
            cluster.sql("checkpoint");
        }
        Self {
            cluster,
            walhalla,
            lost,
            area,
        }
    }

    fn back_up(&self, args: &[&str]) -> Outcome {
        let data = self.cluster.data.to_str().unwrap();
        let args = [&["backup-push", data, "--delta"], args].concat();
        self.walhalla.run_with(&self.cluster, &args)
    }

    /// The backup is a full one, and comes back as the server was.
    fn assert_whole(mut self, version: u32) {
        let expected = self
            .cluster
            .sql("select who, count(*) from t group by 1 order by 1");
        self.cluster.stop();
        let newest = self.walhalla.newest_backup();
        assert!(newest != self.lost && newest.ends_with("-F"), "{newest}");
        let args = ["--backup", newest.as_str(), "--target-immediate"];
        let mut restored = self
            .walhalla
            .restore(&self.area, version, "restored", &args);
        restored.start();
        let found = restored.sql("select who, count(*) from t group by 1 order by 1");
        assert_eq!(found, expected);
        restored.stop();
    }
}

#[test]
fn a_delta_does_not_stand_on_a_backup_of_the_past_that_was_lost() {
    let put_back = PutBack::make(15, "");
    put_back
        .back_up(&["--parent", &put_back.lost])
        .exits_with(1)
        .says(&["nothing shows that it is in this server's past"]);
    let outcome = put_back.back_up(&[]).succeeds();
    outcome.says(&["nothing shows", "a full backup is taken"]);
    put_back.assert_whole(15);
}

#[test]
fn page_lsns_alone_do_not_show_whose_the_parent_is() {
    let put_back = PutBack::make(15, "");
    let outcome = put_back.back_up(&["--changed-blocks", "pages"]).succeeds();
    outcome.says(&["nothing shows", "a full backup is taken"]);
    put_back.assert_whole(15);
}

#[test]
fn the_servers_own_summaries_do_not_show_whose_the_parent_is() {
    let put_back = PutBack::make(17, "summarize_wal = on");
    let outcome = put_back.back_up(&["--changed-blocks", "server"]).succeeds();
    outcome.says(&["nothing shows", "a full backup is taken"]);
    put_back.assert_whole(17);
}

/// The backup history file in `pg_wal` is the server's own word for its last backup, where WAL cannot be read.
#[test]
fn the_servers_own_word_for_a_backup_is_enough() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut cluster = Cluster::create(&area, "primary", Shape::small(15));
    walhalla.archive_from(&mut cluster);
    cluster.sql("create table t as select generate_series(1, 1000) as i");
    walhalla.back_up(&cluster);
    let first = cluster.archive_everything();
    for _ in 0..5 {
        cluster.sql("insert into t values (1)");
        cluster.archive_everything();
        cluster.sql("checkpoint");
    }
    // Some of the WAL since then is nowhere.
    std::fs::remove_file(store.object_of(&first)).unwrap();
    for summary in store.summaries_named(&first) {
        std::fs::remove_file(summary).unwrap();
    }
    assert!(!cluster.segment_path(&first).exists());
    let data = cluster.data.to_str().unwrap();
    let outcome = walhalla.run_with(&cluster, &["backup-push", data, "--delta"]);
    outcome.succeeds().says(&["page LSNs"]);
    assert!(walhalla.newest_backup().ends_with("-D"));
    cluster.stop();
}
