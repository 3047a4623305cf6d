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
