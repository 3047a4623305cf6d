//! What `plan` and `restore` know before they touch anything.

use std::path::Path;

use crate::support::{
    Area, Cluster, Moment, Outcome, Shape, Store, Walhalla, fill, host, make_history, run,
};

/// A backup, and an archive of many segments after it.
struct Archived {
    walhalla: Walhalla,
    early: Moment,
    /// A segment between the early and the late moment.
    middle: String,
    late: Moment,
    last: String,
    store: Store,
    area: Area,
}

impl Archived {
    fn make() -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut primary = Cluster::create(
            &area,
            "primary",
            Shape {
                version: 17,
                segment_mb: 1,
            },
        );
        walhalla.archive_from(&mut primary);
        fill(&primary);
        walhalla.back_up(&primary);
        let early = make_history(&primary, "early");
        primary.switch_segment();
        primary.sql("insert into ledger values ('middle', '')");
        let middle = primary.switch_segment();
        let late = make_history(&primary, "late");
        let last = primary.archive_everything();
        primary.stop();
        Self {
            walhalla,
            early,
            middle,
            late,
            last,
            store,
            area,
        }
    }

    fn plan(&self, args: &[&str]) -> Outcome {
        self.walhalla.run(&[&["plan", "--json"], args].concat())
    }

    fn restore_into(&self, dir: &Path, args: &[&str]) -> Outcome {
        self.walhalla
            .run(&[&["restore", dir.to_str().unwrap()], args].concat())
    }

    fn lose_segment(&self, name: &str) {
        let objects = self.store.objects_named(&format!("{name}."));
        assert!(!objects.is_empty(), "{name} is not in the store");
        for object in objects {
            std::fs::remove_file(object).unwrap();
        }
    }
}

#[test]
fn plan_names_a_missing_segment_and_restore_touches_nothing() {
    let archived = Archived::make();
    archived.lose_segment(&archived.middle);
    let target = ["--target-name", &archived.late.name];

    let plan = archived.plan(&target).exits_with(4);
    let json = plan.json();
    assert_eq!(json["reachable"], false, "{plan}");
    assert!(
        json["reason"].to_string().contains(&archived.middle),
        "{plan}"
    );
    archived
        .walhalla
        .run(&[&["plan"], &target[..]].concat())
        .exits_with(4)
        .says(&[&archived.middle, "hint:"]);

    let dir = archived.area.path("restored");
    archived
        .restore_into(&dir, &target)
        .exits_with(4)
        .says(&[&archived.middle]);
    archived
        .restore_into(&dir, &[])
        .exits_with(4)
        .says(&[&archived.middle]);
    assert!(
        !dir.exists() || is_empty(&dir),
        "an unreachable target, and something was written"
    );
}

#[test]
fn a_target_before_the_missing_segment_can_be_reached() {
    let archived = Archived::make();
    archived.lose_segment(&archived.middle);
    let json = archived
        .plan(&["--target-lsn", &archived.early.lsn])
        .succeeds()
        .json();
    assert_eq!(json["reachable"], true);
    let target = ["--target-lsn", archived.early.lsn.as_str()];
    let mut restored = archived
        .walhalla
        .restore(&archived.area, 17, "restored", &target);
    restored.start();
    restored.wait_until_paused();
    restored
        .dump()
        .assert_same_as(&archived.early.dump, "before the gap");
}

#[test]
fn a_target_that_the_archive_does_not_reach_is_refused() {
    let archived = Archived::make();
    let dir = archived.area.path("restored");
    for target in [
        ["--target-lsn", "FF/0"],
        ["--target-lsn", "0/1000028"],
        ["--target-time", "2001-01-01 00:00:00+00"],
        ["--target-timeline", "7"],
    ] {
        archived.plan(&target).exits_with(4);
        archived.restore_into(&dir, &target).exits_with(4);
    }
    assert!(
        !dir.exists() || is_empty(&dir),
        "an unreachable target, and something was written"
    );
}

#[test]
fn plan_lists_the_segments_in_replay_order_and_writes_nothing() {
    let archived = Archived::make();
    let before = archived.store.objects_named("");
    let json = archived.plan(&[]).succeeds().json();
    let segments: Vec<&str> = json["segments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    assert!(segments.is_sorted(), "{json:#}");
    assert!(segments.contains(&archived.middle.as_str()), "{json:#}");
    assert!(segments.contains(&archived.last.as_str()), "{json:#}");
    assert_eq!(json["timelines"].as_array().unwrap().len(), 1, "{json:#}");
    assert!(json["download_bytes"].as_u64().unwrap() > 0, "{json:#}");
    assert_eq!(archived.store.objects_named("").len(), before.len());
}

#[test]
fn a_target_time_without_an_offset_is_refused_with_its_two_readings() {
    let archived = Archived::make();
    for command in [vec!["plan"], vec!["restore", "/nonexistent/data"]] {
        let args = [
            command.as_slice(),
            &["--target-time", "2026-11-21 12:00:00"],
        ]
        .concat();
        // Three hours behind UTC, without needing a time zone database.
        let west = archived.walhalla.with_env("TZ", "<-03>3");
        west.run(&args)
            .exits_with(2)
            .says(&["2026-11-21 12:00:00+00", "2026-11-21 12:00:00-03"]);
    }
}

#[test]
fn a_target_time_is_understood_as_rfc_3339_too() {
    let archived = Archived::make();
    // PostgreSQL wrote `2026-11-21 07:26:36.123456+00`, and would not take this for `recovery_target_time`.
    let early = archived.early.time.replace(' ', "T").replace("+00", "Z");
    assert!(
        early.ends_with('Z'),
        "the server's time zone is not UTC: {early}"
    );
    let target = [
        "--target-time",
        early.as_str(),
        "--target-action",
        "promote",
    ];
    let mut restored = archived
        .walhalla
        .restore(&archived.area, 17, "restored", &target);
    restored.start();
    restored.wait_until_promoted();
    restored
        .dump()
        .assert_same_as(&archived.early.dump, "the early time");
}

#[test]
fn restore_refuses_a_directory_that_is_not_empty() {
    let archived = Archived::make();
    let dir = archived.area.make_dir("occupied");
    archived.area.write("occupied/keep.me", "still here");
    archived.restore_into(&dir, &[]).exits_within(1..=2).says(&[
        dir.to_str().unwrap(),
        "empty",
        "hint:",
    ]);
    let entries: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(entries, ["keep.me"]);
    assert_eq!(
        std::fs::read_to_string(dir.join("keep.me")).unwrap(),
        "still here"
    );
}

#[test]
fn restore_accepts_an_empty_directory_and_keeps_it_private() {
    let archived = Archived::make();
    archived.area.make_dir("restored");
    let mut restored = archived
        .walhalla
        .restore(&archived.area, 17, "restored", &[]);
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(&restored.data).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o700);
    restored.start();
    restored.wait_until_promoted();
}

#[test]
fn restore_onto_a_full_disk_fails_and_leaves_nothing_that_starts() {
    let archived = Archived::make();
    let disk = archived.area.make_dir("disk");
    // A file system of the test's own, in a mount namespace of its own: it goes with the last process in it.
    let script = r#"
        disk=$1; shift
        # In a chroot, whose root is no mount point, this cannot be had, and the last line has to do.
        mount --make-rprivate / 2>/dev/null
        mount -t tmpfs -o size=16m,mode=777 none "$disk" || exit 90
        "$@"
        code=$?
        if [ -e "$disk/data/global/pg_control" ]; then echo "pg_control is in place"; code=91; fi
        umount "$disk"
        exit $code"#;
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "--propagation", "unchanged"]);
    if !host().is_root {
        command.arg("--map-root-user");
    }
    command.args(["sh", "-c", script, "sh"]).arg(&disk);
    if host().is_root {
        let (uid, gid) = (host().uid.to_string(), host().gid.to_string());
        command.args([
            "setpriv",
            "--reuid",
            &uid,
            "--regid",
            &gid,
            "--clear-groups",
        ]);
    }
    let restore = archived
        .walhalla
        .command(&["restore", disk.join("data").to_str().unwrap()]);
    command.arg(restore.get_program()).args(restore.get_args());
    let outcome = run(&mut command);
    assert!(
        outcome.code != Some(90) && !outcome.stderr.contains("unshare:"),
        "this test has to mount a tmpfs: run it as root (in a container with CAP_SYS_ADMIN), \
         or allow user namespaces: {outcome}"
    );
    outcome.exits_with(1).says(&["pace", "hint:"]);
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}
