//! `walhalla status`: how an archive stands, for people, for Prometheus, for Nagios, and as a page.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::{
    Area, Cluster, Outcome, Shape, Store, Walhalla, eventually, fill, host, make_history,
};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_mins(1);

struct Site {
    area: Area,
    store: Store,
    walhalla: Walhalla,
    cluster: Cluster,
}

impl Site {
    fn make() -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut cluster = Cluster::create(&area, "primary", Shape::small(17));
        walhalla.archive_from(&mut cluster);
        Self {
            area,
            store,
            walhalla,
            cluster,
        }
    }

    fn back_up(&self, options: &[&str]) -> String {
        let data = self.cluster.data.to_str().unwrap();
        let arguments = [&["backup-push", data][..], options].concat();
        self.walhalla.run_with(&self.cluster, &arguments).succeeds();
        self.walhalla.newest_backup()
    }

    /// Takes a segment out of the archive, and what was made of it.
    fn lose(&self, segment: &str) {
        fs::remove_file(self.store.object_of(segment)).unwrap();
        for summary in self.store.summaries_named(segment) {
            fs::remove_file(summary).unwrap();
        }
    }
}

fn cluster_of(outcome: &Outcome) -> Value {
    let report = outcome.json();
    assert_eq!(report["clusters"].as_array().unwrap().len(), 1, "{report}");
    report["clusters"][0].clone()
}

#[test]
fn a_status_says_what_can_be_restored_and_fits_the_terminal() {
    let site = Site::make();
    let none = site.walhalla.run(&["status"]).exits_with(3);
    assert!(none.stdout.contains("no backup"), "{none}");
    fill(&site.cluster);
    let full = site.back_up(&["--label", "a|b"]);
    make_history(&site.cluster, "before");
    site.cluster.archive_everything();
    let delta = site.back_up(&["--delta"]);
    site.cluster.sql("CREATE TABLE later AS SELECT 1");
    site.cluster.archive_everything();

    let status = cluster_of(&site.walhalla.run(&["status", "--json"]).succeeds());
    assert_eq!(status["state"], "ok", "{status}");
    assert_eq!(status["newest_backup"]["id"], *delta);
    assert_eq!(status["newest_full_backup"]["id"], *full);
    assert_eq!(status["longest_chain"], 2);
    assert_eq!(
        status["backups"][1]["chain"],
        serde_json::json!([full, delta])
    );
    assert_eq!(
        status["timelines"][0]["coverage"].as_array().unwrap().len(),
        1
    );
    assert!(status["store_bytes"]["wal"].as_u64().unwrap() > 0);
    assert!(status["store_bytes"]["summaries"].as_u64().unwrap() > 0);
    assert_eq!(status["archiving"]["ready_segments"], Value::Null);

    let plain = site.walhalla.run(&["status", "--utc"]).succeeds();
    for part in [
        &*full,
        &*delta,
        "longest chain 2",
        "ok",
        "timeline 1",
        "━",
        "+00",
    ] {
        assert!(plain.stdout.contains(part), "{part}: {plain}");
    }
    // Nobody asked for colours.
    assert!(!plain.stdout.contains('\u{1b}'), "{plain}");
    let drawing = plain
        .stdout
        .lines()
        .filter(|line| line.starts_with("timeline"));
    assert!(drawing.clone().all(|line| line.chars().count() <= 80));
    assert!(drawing.clone().any(|line| line.contains('F')), "{plain}");

    let data = site.cluster.data.to_str().unwrap();
    let with_host = site.walhalla.run(&["status", "--pgdata", data, "--json"]);
    let with_host = cluster_of(&with_host.succeeds());
    assert_eq!(with_host["archiving"]["ready_segments"], 0);
}

#[test]
fn a_gap_is_critical_until_a_backup_begins_after_it() {
    let site = Site::make();
    fill(&site.cluster);
    site.back_up(&[]);
    site.cluster.sql("CREATE TABLE lost AS SELECT 1");
    let lost = site.cluster.archive_everything();
    site.cluster.sql("CREATE TABLE kept AS SELECT 1");
    site.cluster.archive_everything();
    site.lose(&lost);

    let outcome = site.walhalla.run(&["status", "--json"]).exits_with(3);
    let status = cluster_of(&outcome);
    assert_eq!(status["state"], "critical");
    let what = status["problems"][0]["what"].as_str().unwrap();
    assert!(what.contains(&lost) && what.contains("missing"), "{what}");
    let hint = status["problems"][0]["hint"].as_str().unwrap();
    assert!(hint.contains("backup-push"), "{hint}");
    assert_eq!(status["timelines"][0]["gaps"][0]["segments"], 1);

    site.back_up(&[]);
    let status = cluster_of(&site.walhalla.run(&["status", "--json"]).succeeds());
    assert_eq!(status["state"], "warning", "{status}");
    let plain = site.walhalla.run(&["status"]).succeeds();
    assert!(plain.stdout.contains("warning"), "{plain}");
}

#[test]
fn nagios_is_answered_in_its_own_way() {
    let site = Site::make();
    fill(&site.cluster);
    let nagios = |options: &[&str]| {
        let words = [&["status", "--nagios"][..], options].concat();
        site.walhalla.run(&words)
    };
    let none = nagios(&[]).exits_with(2);
    assert!(none.stdout.starts_with("WALHALLA CRITICAL - "), "{none}");
    site.back_up(&[]);
    site.cluster.archive_everything();
    let fine = nagios(&[
        "--max-age",
        "26h",
        "--max-full-age",
        "8d",
        "--max-wal-age",
        "1h",
    ]);
    let fine = fine.succeeds();
    assert_eq!(fine.stdout.lines().count(), 1, "{fine}");
    assert!(fine.stdout.starts_with("WALHALLA OK - "), "{fine}");
    for figure in ["'backup_age'=", "s;;93600;0", "'wal_age'=", "'store'="] {
        assert!(fine.stdout.contains(figure), "{figure}: {fine}");
    }
    for limit in ["--max-age", "--max-full-age", "--max-wal-age"] {
        eventually("something is older than a second", LONG, || {
            let late = nagios(&[limit, "1s"]);
            late.stdout.starts_with("WALHALLA CRITICAL - ") && late.stdout.contains("is allowed")
        });
    }
    // What cannot be told is neither well nor bad.
    let away = site
        .walhalla
        .with_env("WALHALLA_STORE", "file:///nowhere/at/all");
    let unknown = away.run(&["status", "--nagios"]).exits_with(3);
    assert!(
        unknown.stdout.starts_with("WALHALLA UNKNOWN - "),
        "{unknown}"
    );
    site.walhalla
        .run(&["status", "--max-age", "soon"])
        .exits_with(2);
}

/// Names of metrics in a text, as PromQL writes them.
fn metric_names(text: &str) -> BTreeSet<String> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    text.split(|letter| !is_part(letter))
        .filter(|word| word.starts_with("walhalla_") && word.len() > "walhalla_".len())
        .map(str::to_owned)
        .collect()
}

#[test]
fn metrics_are_those_that_rules_dashboard_and_book_name() {
    let site = Site::make();
    fill(&site.cluster);
    site.back_up(&[]);
    site.cluster.archive_everything();
    site.back_up(&["--delta"]);
    site.walhalla.run(&["verify", "--all"]).succeeds();
    let file = site.area.path("walhalla.prom");
    let data = site.cluster.data.to_str().unwrap();
    let option = format!("--prometheus={}", file.display());
    // A drill measures what two of them say, the server counts what one says.
    let programs = host().server_program(17, "postgres");
    let programs = programs.parent().unwrap().to_str().unwrap();
    let scratch = site.area.make_dir("scratch");
    let drill = ["drill", "--no-amcheck", "--pgbin", programs, "--scratch"];
    let drill = [&drill[..], &[scratch.to_str().unwrap()]].concat();
    site.walhalla.run(&drill).succeeds();
    site.walhalla
        .run_with(&site.cluster, &["status", "--pgdata", data, &option])
        .succeeds();
    let text = fs::read_to_string(&file).unwrap();
    let to_output = site.walhalla.run(&["status", "--prometheus"]).succeeds();
    assert!(
        to_output.stdout.contains("# HELP walhalla_backups"),
        "{to_output}"
    );
    let checked = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(fs::File::open(&file).unwrap())
        .output()
        .unwrap();
    let complaint = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{complaint}\n{text}");
    let of_cluster = format!("{{system_id=\"{}\"}}", site.cluster.system_identifier());
    for line in [
        "walhalla_store_up 1".to_owned(),
        format!("walhalla_wal_gaps{of_cluster} 0"),
        format!("walhalla_wal_ready_segments{of_cluster} 0"),
        format!("walhalla_backup_chain_length{of_cluster} 2"),
    ] {
        assert!(text.lines().any(|known| known == line), "{line} in {text}");
    }
    assert!(!text.contains("lsn="), "{text}");

    let help = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let printed: BTreeSet<String> = help
        .filter_map(|line| Some(line.split_once(' ')?.0.to_owned()))
        .collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (file, must_name_all) in [
        ("packaging/prometheus/walhalla.rules.yml", false),
        ("packaging/grafana/walhalla.json", false),
        ("docs/monitoring.md", true),
    ] {
        let named = metric_names(&fs::read_to_string(root.join(file)).unwrap());
        let of_daemon = [
            "walhalla_wal_archived_segments_total",
            "walhalla_wal_fetched_segments_total",
        ];
        let unknown: Vec<&String> = { named.difference(&printed) }
            .filter(|name| !of_daemon.contains(&name.as_str()))
            .collect();
        assert!(unknown.is_empty(), "{file} names {unknown:?}");
        let missing: Vec<&String> = printed.difference(&named).collect();
        assert!(
            !must_name_all || missing.is_empty(),
            "{file} lacks {missing:?}"
        );
    }
    let rules = root.join("packaging/prometheus/walhalla.rules.yml");
    let checked = Command::new("promtool")
        .args(["check", "rules"])
        .arg(rules)
        .output();
    let checked = checked.unwrap();
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stderr)
    );
}

/// The page is tried in a browser: clicks, keys, both themes, three widths.
#[test]
fn the_page_shows_the_command_for_the_moment_before_a_drop() {
    let site = Site::make();
    fill(&site.cluster);
    site.back_up(&["--label", "<script>document.title='run'</script>"]);
    make_history(&site.cluster, "kept");
    site.cluster.sql("CREATE TABLE precious AS SELECT 1");
    site.cluster.archive_everything();
    site.back_up(&["--delta"]);
    site.cluster.sql("DROP TABLE precious");
    site.cluster.archive_everything();
    let page = site.area.path("status.html");
    site.walhalla
        .run(&["status", "--html", page.to_str().unwrap()])
        .succeeds();
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.contains("dropped table public.precious"), "{text}");
    assert!(!text.contains("<script>document.title"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page/check_page.py");
    let output = Command::new("/usr/bin/python3")
        .arg(script)
        .arg(&page)
        .output();
    let output = output.unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_store_is_listed_level_by_level() {
    let site = Site::make();
    fill(&site.cluster);
    let id = site.back_up(&[]);
    let cluster = site.cluster.system_identifier();
    let top = site.walhalla.run(&["ls"]).succeeds();
    assert!(
        top.stdout.contains(&format!("{cluster}/")) && top.stdout.contains("a cluster"),
        "{top}"
    );
    let backup = format!("{cluster}/backups/{id}");
    let level = site.walhalla.run(&["ls", &backup, "--wide"]).succeeds();
    for part in [
        "backup.json",
        "entry of a backup",
        "manifest of a backup",
        "base/",
    ] {
        assert!(level.stdout.contains(part), "{part}: {level}");
    }
    let all = site.walhalla.run(&["ls", "-r", "--json"]).succeeds().json();
    let keys: Vec<&str> = { all.as_array().unwrap().iter() }
        .map(|row| row["key"].as_str().unwrap())
        .collect();
    assert!(
        keys.iter().any(|key| key.contains("/base/00001.tar")),
        "{keys:?}"
    );
    assert!(
        all.as_array()
            .unwrap()
            .iter()
            .all(|row| row["what"] != "not Walhalla's"),
        "{all}"
    );
    let none = site.walhalla.run(&["ls", "no/such"]).succeeds();
    assert!(none.stdout.contains("nothing begins with"), "{none}");
    // As WAL-G's users write it.
    site.walhalla
        .run(&["backup-list", "--detail", "--pretty"])
        .succeeds();
    site.walhalla
        .run(&["backup-mark", &id, "--permanent"])
        .succeeds();
    site.walhalla.run(&["backup-mark", "-i", &id]).succeeds();
}
