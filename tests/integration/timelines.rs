//! Restores across the switch from one timeline to the next.
//!
//! ```text
//! timeline 1 ──first backup──●fork──────────●left_behind
//!                            └─ timeline 2 ──●after_fork──second backup──●end
//! ```

use serde_json::Value;

use crate::support::{Area, Cluster, Dump, Moment, Shape, Store, Walhalla, fill, make_history};

struct Branched {
    area: Area,
    store: Store,
    walhalla: Walhalla,
    version: u32,
    first_backup: String,
    second_backup: String,
    left_behind: Moment,
    after_fork: Moment,
    end: Moment,
}

impl Branched {
    fn make(version: u32) -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut old = Cluster::create(&area, "old", Shape::of(version));
        walhalla.archive_from(&mut old);
        fill(&old);
        let first_backup = walhalla.back_up(&old);
        let fork = make_history(&old, "fork");
        let left_behind = make_history(&old, "left_behind");
        old.archive_everything();
        old.stop();

        let target = ["--target-name", "fork", "--target-action", "promote"];
        let mut new = walhalla.restore_archiving(&area, version, "new", &target);
        new.start();
        new.wait_until_promoted();
        new.dump().assert_same_as(&fork.dump, "at the fork");
        let after_fork = make_history(&new, "after_fork");
        let second_backup = walhalla.back_up(&new);
        let end = make_history(&new, "end");
        let last = new.archive_everything();
        assert!(
            last.starts_with("00000002"),
            "still on the old timeline: {last}"
        );
        new.stop();
        Self {
            area,
            store,
            walhalla,
            version,
            first_backup,
            second_backup,
            left_behind,
            after_fork,
            end,
        }
    }

    fn ends_with(&self, name: &str, args: &[&str], expected: &Dump) {
        let mut restored = self.walhalla.restore(&self.area, self.version, name, args);
        restored.start();
        restored.wait_until_promoted();
        restored.dump().assert_same_as(expected, name);
        restored.amcheck();
        restored.stop();
    }

    fn reaches(&self, name: &str, target: &[&str], expected: &Dump) {
        self.ends_with(
            name,
            &[target, &["--target-action", "promote"]].concat(),
            expected,
        );
    }

    fn check(&self) {
        self.plan_crosses_the_switch();
        self.ends_with("the-end", &[], &self.end.dump);
        self.ends_with(
            "across-to-the-end",
            &["--backup", &self.first_backup],
            &self.end.dump,
        );
        self.reaches(
            "across-to-a-point",
            &["--target-name", &self.after_fork.name],
            &self.after_fork.dump,
        );
        self.ends_with(
            "the-old-end",
            &["--target-timeline", "1"],
            &self.left_behind.dump,
        );
        let old_xid = [
            "--target-timeline",
            "1",
            "--target-xid",
            &self.left_behind.xid,
        ];
        self.reaches("on-the-old-timeline", &old_xid, &self.left_behind.dump);
    }

    fn plan(&self, args: &[&str]) -> Value {
        let all = [&["plan", "--json"], args].concat();
        self.walhalla.run(&all).succeeds().json()
    }

    fn plan_crosses_the_switch(&self) {
        let plan = self.plan(&["--backup", &self.first_backup]);
        let segments = plan["segments"].as_array().unwrap();
        for timeline in ["00000001", "00000002"] {
            let is_of_timeline = |name: &Value| name.as_str().unwrap().starts_with(timeline);
            assert!(
                segments.iter().any(is_of_timeline),
                "nothing of {timeline}: {plan:#}"
            );
        }
        assert_eq!(plan["timelines"].as_array().unwrap().len(), 2, "{plan:#}");
    }
}

/// ```text
/// timeline 1 ──first backup──●fork──second backup──●end
///                            └─ timeline 2: a copy that was promoted, and archived
/// ```
#[test]
fn a_promoted_copy_does_not_draw_restores_away_from_the_server_that_goes_on() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    walhalla.archive_from(&mut primary);
    fill(&primary);
    walhalla.back_up(&primary);
    make_history(&primary, "fork");
    primary.archive_everything();

    let target = ["--target-name", "fork", "--target-action", "promote"];
    let mut copy = walhalla.restore_archiving(&area, 17, "copy", &target);
    copy.start();
    copy.wait_until_promoted();
    make_history(&copy, "elsewhere");
    let last = copy.archive_everything();
    assert!(
        last.starts_with("00000002"),
        "the copy does not archive: {last}"
    );
    copy.stop();

    let second_backup = walhalla.back_up(&primary);
    let end = make_history(&primary, "end");
    primary.archive_everything();
    primary.stop();
    let plan = walhalla.run(&["plan", "--json"]).succeeds().json();
    assert_eq!(plan["backup_chain"], serde_json::json!([second_backup]));
    assert_eq!(plan["timelines"], serde_json::json!([1]));
    let mut restored = walhalla.restore(&area, 17, "restored", &[]);
    restored.start();
    restored.wait_until_promoted();
    restored
        .dump()
        .assert_same_as(&end.dump, "the server that went on");
    restored.stop();
}

/// The switch's segment exists on both timelines; the old one's goes on past the switch.
#[test]
fn a_restore_never_replays_the_old_timeline_past_the_switch() {
    let branched = Branched::make(17);
    let first = branched
        .walhalla
        .run(&["plan", "--json", "--target-timeline", "2"])
        .succeeds()
        .json();
    let segments = first["segments"].as_array().unwrap();
    let switched = segments
        .iter()
        .find(|name| name.as_str().unwrap().starts_with("00000002"))
        .unwrap();
    let stored = branched.store.objects_named(switched.as_str().unwrap());
    std::fs::remove_file(&stored[0]).unwrap();
    let backup = branched.first_backup.as_str();
    branched
        .walhalla
        .run(&["plan", "--target-timeline", "2", "--backup", backup])
        .exits_with(4)
        .says(&[switched.as_str().unwrap(), "is missing"]);
}

#[test]
fn what_postgresql_conf_says_of_an_earlier_recovery_does_not_decide_the_restore() {
    for version in [13, 15, 18] {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut primary = Cluster::create(&area, "primary", Shape::of(version));
        primary.configure(
            "recovery_target_time = '2020-01-01 00:00:00+00'\nrecovery_min_apply_delay = '1h'\n",
        );
        walhalla.archive_from(&mut primary);
        fill(&primary);
        walhalla.back_up(&primary);
        let point = make_history(&primary, "point");
        make_history(&primary, "later");
        primary.archive_everything();
        primary.stop();
        let target = ["--target-name", "point", "--target-action", "promote"];
        let mut restored = walhalla.restore(&area, version, "restored", &target);
        restored.start();
        restored.wait_until_promoted();
        restored.dump().assert_same_as(&point.dump, "at the point");
        restored.stop();
    }
}

/// ```text
/// timeline 1 ──backup──●point──────●switch
///                      │           └─ timeline 2 ──▶
///                      └─ timeline 3, restored along 2 ──backup──●end
/// ```
#[test]
fn a_server_that_was_restored_to_before_the_switch_goes_on() {
    for version in [10, 17] {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut primary = Cluster::create(&area, "primary", Shape::of(version));
        walhalla.archive_from(&mut primary);
        fill(&primary);
        walhalla.back_up(&primary);
        let point = make_history(&primary, "point");
        primary.archive_everything();
        primary.stop();
        primary.promote();
        make_history(&primary, "elsewhere");
        primary.archive_everything();
        primary.stop();

        let target = ["--target-name", "point", "--target-action", "promote"];
        let mut new = walhalla.restore_archiving(&area, version, "new", &target);
        new.start();
        new.wait_until_promoted();
        new.dump().assert_same_as(&point.dump, "at the point");
        let end = make_history(&new, "end");
        let last = new.archive_everything();
        assert!(last.starts_with("00000003"), "{last}");
        walhalla.back_up(&new);
        new.stop();

        for backup in walhalla.backup_ids() {
            let args = ["--backup", &backup];
            let mut restored = walhalla.restore(&area, version, &backup, &args);
            restored.start();
            restored.wait_until_promoted();
            restored.dump().assert_same_as(&end.dump, &backup);
        }
    }
}

/// Its rows are in the WAL of the first timeline when the server, on the second, writes them to a file of their own.
#[test]
fn a_transaction_stays_prepared_over_two_switches() {
    for version in [13, 18] {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut primary = Cluster::create(&area, "primary", Shape::small(version));
        primary.configure("max_prepared_transactions = 5");
        walhalla.archive_from(&mut primary);
        fill(&primary);
        walhalla.back_up(&primary);
        primary
            .sql("begin; insert into ledger values ('prepared', ''); prepare transaction 'open'");
        for _ in 0..2 {
            primary.archive_everything();
            primary.stop();
            primary.promote();
        }
        let end = make_history(&primary, "end");
        primary.archive_everything();
        primary.stop();

        let mut restored = walhalla.restore(&area, version, "restored", &[]);
        for timeline in [2, 3] {
            let history = format!("restored.walhalla-wal/{timeline:08X}.history");
            assert!(area.path(&history).exists(), "{history} is not staged");
        }
        restored.start();
        restored.wait_until_promoted();
        restored
            .dump()
            .assert_same_as(&end.dump, "over two switches");
        restored.sql("commit prepared 'open'");
    }
}

#[test]
fn restores_cross_a_timeline_switch_or_stay_on_the_old_timeline_on_13() {
    Branched::make(13).check();
}

#[test]
fn restores_cross_a_timeline_switch_or_stay_on_the_old_timeline_on_17() {
    Branched::make(17).check();
}

#[test]
fn a_backup_of_a_newer_timeline_is_not_taken_for_a_target_on_the_older_one() {
    let branched = Branched::make(18);
    let newest = branched.plan(&[]);
    assert!(
        newest["backup_chain"][0]
            .to_string()
            .contains(&branched.second_backup),
        "{newest:#}"
    );
    let old = branched.plan(&["--target-timeline", "1"]);
    assert!(
        old["backup_chain"][0]
            .to_string()
            .contains(&branched.first_backup),
        "{old:#}"
    );

    let wrong = [
        "plan",
        "--json",
        "--target-timeline",
        "1",
        "--backup",
        &branched.second_backup,
    ];
    branched.walhalla.run(&wrong).exits_with(4);
}

/// ```text
/// timeline 1 ──backup──●fork─┬─ of the segment: 1 and 2 archive a `.partial` file each
///                            └─ 2 ─┬─
///                                  └─ 3 ──●end
/// ```
#[test]
fn a_timeline_without_a_segment_of_its_own_is_reached_along_the_next_one() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut server = Cluster::create(&area, "server", Shape::of(17));
    walhalla.archive_from(&mut server);
    fill(&server);
    walhalla.back_up(&server);
    server.switch_segment();
    let fork = make_history(&server, "fork");
    server.crash();
    server.promote();
    server.crash();
    server.promote();
    make_history(&server, "end");
    let last = server.archive_everything();
    assert!(last.starts_with("00000003"), "{last}");
    server.stop();

    for target in [["--target-lsn", &fork.lsn], ["--target-xid", &fork.xid]] {
        let along_2 = [&["plan", "--json", "--target-timeline", "2"], &target[..]].concat();
        let refused = walhalla.run(&along_2).exits_with(4).json();
        let (option, value) = (target[0], target[1]);
        assert_eq!(
            refused["nearest"],
            format!("{option} {value} --target-timeline 3"),
            "{refused:#}"
        );
        let reason = refused["reason"].as_str().unwrap();
        assert!(
            reason.contains("timeline 3 holds the same WAL"),
            "{refused:#}"
        );
        let along_3 = [&target[..], &["--target-timeline", "3"]].concat();
        let mut restored = walhalla.restore(&area, 17, &format!("at{option}"), &along_3);
        restored.start();
        restored.wait_until_paused();
        restored.dump().assert_same_as(&fork.dump, option);
    }
}
