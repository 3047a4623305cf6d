//! Summaries are derived: lost, spoiled, or made in another order, they change no plan.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{
    Area, Cluster, Shape, Store, Walhalla, copy_tree, create_fill_segment, host, run, seed_chance,
    with_a_byte_changed,
};

const SEGMENT_BYTES: u64 = 1 << 20;

/// A backup, and after it transactions whose ends lie on borders of segments.
struct Bordered {
    primary: Cluster,
    walhalla: Walhalla,
    store: Store,
    /// Every WAL file as the server wrote it.
    raw: PathBuf,
    targets: Vec<Target>,
    area: Area,
}

struct Target {
    args: Vec<String>,
    /// The first segment that recovery does not need.
    after: u64,
}

impl Bordered {
    fn make() -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let shape = Shape {
            version: 17,
            segment_mb: 1,
        };
        let primary = Cluster::create(&area, "primary", shape);
        let mut bordered = Self {
            primary,
            walhalla,
            store,
            raw: area.make_dir("raw"),
            targets: Vec::new(),
            area,
        };
        bordered.start();
        bordered.write();
        bordered.primary.archive_everything();
        bordered.primary.stop();
        bordered
    }

    fn start(&mut self) {
        let raw = format!("archive_command = 'cp %p {}/%f && ", self.raw.display());
        let settings = self.walhalla.archive_settings();
        let settings = settings.replace("archive_command = '", &raw);
        self.primary.configure(&settings);
        self.primary.configure("max_prepared_transactions = 5");
        self.primary.start();
        create_fill_segment(&self.primary);
        self.primary.sql("create table written (body text)");
        // Rows of a temporary table take a transaction's number and no WAL.
        self.primary.sql(
            "create function many_subtransactions(number int) returns void language plpgsql as $$
             begin
                 create temporary table nothing (body int) on commit drop;
                 for at in 1..number loop
                     begin
                         insert into nothing values (at);
                     exception when division_by_zero then null;
                     end;
                 end loop;
             end $$",
        );
        self.walhalla.back_up(&self.primary);
    }

    fn write(&mut self) {
        let insert = "insert into written values ('')";
        for leave in [8, 16, 24, 32] {
            self.end_on_border(&format!("begin; {insert}"), leave, "commit", 1);
            self.end_on_border(&format!("begin; {insert}"), leave, "rollback", 1);
        }
        let prepare = format!("begin; {insert}; prepare transaction 'one'");
        self.end_on_border(&prepare, 24, "commit prepared 'one'", 1);
        // So long that too little of it is in the summary after the border, and longer than a segment.
        for (subtransactions, segments) in [(20_000, 1), (290_000, 2)] {
            let many = format!("begin; {insert}; select many_subtransactions({subtransactions})");
            self.end_on_border(&many, 16, "commit", segments);
        }
        self.name_on_border();
    }

    /// Runs `sql`, and `end` so that its record begins before a border and ends so many segments later.
    fn end_on_border(&mut self, sql: &str, leave: u64, end: &str, segments: u64) {
        let xid = "select 'xid ' || coalesce(pg_current_xact_id_if_assigned()::text, \
                   (select transaction::text from pg_prepared_xacts))";
        let shown = self.psql(&format!(
            "{sql}; {xid}; select fill_segment({leave}); select 'at ' || pg_current_wal_insert_lsn(); {end}"
        ));
        let xid = after(&shown, "xid ");
        let at = offset(after(&shown, "at "));
        assert_eq!(
            SEGMENT_BYTES - at % SEGMENT_BYTES,
            leave,
            "left of a segment"
        );
        if end == "rollback" {
            return;
        }
        self.targets.push(Target {
            args: vec!["--target-xid".to_owned(), xid.to_owned()],
            after: at / SEGMENT_BYTES + segments + 1,
        });
    }

    fn name_on_border(&mut self) {
        let shown = self.psql(
            "select fill_segment(40); select 'at ' || pg_current_wal_insert_lsn(); \
             select pg_create_restore_point('border')",
        );
        let at = offset(after(&shown, "at "));
        for args in [
            ["--target-name", "border"],
            ["--target-lsn", after(&shown, "at ")],
        ] {
            self.targets.push(Target {
                args: args.map(str::to_owned).to_vec(),
                after: at / SEGMENT_BYTES + 2,
            });
        }
    }

    /// Runs each statement by itself, in one session.
    fn psql(&self, sql: &str) -> String {
        let script = self
            .area
            .write("script.sql", sql.replace("; ", ";\n") + ";\n");
        let mut psql = self.primary.client("psql");
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-f"]);
        run(psql.arg(script)).succeeds().stdout
    }

    /// The plans of all targets, and what was said of them.
    fn plans(&self, walhalla: &Walhalla) -> (Vec<Value>, Vec<String>) {
        let outcomes = self.targets.iter().map(|target| {
            let mut args = vec!["plan", "--json"];
            args.extend(target.args.iter().map(String::as_str));
            let outcome = walhalla.run(&args).succeeds();
            (outcome.json(), outcome.stderr)
        });
        outcomes.unzip()
    }

    fn plans_end_where_the_records_do(&self, plans: &[Value]) {
        for (plan, target) in plans.iter().zip(&self.targets) {
            let last = plan["segments"].as_array().unwrap().last().unwrap();
            let last = u64::from_str_radix(&last.as_str().unwrap()[16..], 16).unwrap();
            assert_eq!(last + 1, target.after, "{:?}: {plan:#}", target.args);
        }
    }

    /// Spoils each summary; the plans must be the same, and the damage told where there is any.
    fn spoil(
        &self,
        what: &str,
        plans: &[Value],
        mut spoiled: impl FnMut(&Path) -> Option<Vec<u8>>,
    ) {
        let good = contents(&self.store);
        let new: Vec<_> = good.keys().map(|path| (path, spoiled(path))).collect();
        for (path, content) in new {
            match content {
                Some(content) => write(path, &content),
                None => std::fs::remove_file(path).unwrap(),
            }
        }
        let is_missing = what == "missing";
        let (found, said) = self.plans(&self.walhalla);
        for (at, (found, plan)) in found.iter().zip(plans).enumerate() {
            assert_eq!(found, plan, "{what}, {:?}", self.targets[at].args);
            let told = said[at].matches("the segment is read instead").count();
            assert_eq!(told == 0, is_missing, "{what}: {}", said[at]);
        }
        for (path, content) in good {
            write(&path, &content);
        }
    }
}

#[test]
fn a_summary_that_is_missing_or_damaged_changes_no_plan() {
    seed_chance();
    let bordered = Bordered::make();
    let (plans, said) = bordered.plans(&bordered.walhalla);
    assert!(!said.concat().contains("read instead"), "{}", said.concat());
    bordered.plans_end_where_the_records_do(&plans);

    let read = |path: &Path| std::fs::read(path).unwrap();
    bordered.spoil("missing", &plans, |_| None);
    bordered.spoil("empty", &plans, |_| Some(Vec::new()));
    bordered.spoil("cut", &plans, |path| {
        let content = read(path);
        Some(content[..fastrand::usize(1..content.len())].to_vec())
    });
    bordered.spoil("changed", &plans, |path| {
        Some(with_a_byte_changed(&read(path)))
    });
    for _ in 0..3 {
        bordered.spoil("flipped", &plans, |path| {
            let mut content = read(path);
            let at = fastrand::usize(..content.len());
            content[at] ^= 1 << fastrand::u8(..8);
            Some(content)
        });
    }
    let paths: Vec<PathBuf> = contents(&bordered.store).into_keys().collect();
    bordered.spoil("another's", &plans, |path| {
        let own = paths.iter().position(|other| other == path).unwrap();
        Some(read(&paths[(own + 1) % paths.len()]))
    });
}

#[test]
fn summaries_are_the_same_in_whatever_order_and_by_whatever_command_they_are_made() {
    seed_chance();
    let bordered = Bordered::make();
    let (plans, _) = bordered.plans(&bordered.walhalla);
    let pushed_in_order = of_segments(&bordered.store);

    let other = bordered.area.path("other");
    copy_tree(bordered.store.path(), &other);
    let other = Store::Directory(other);
    let walhalla = Walhalla::on_host(&bordered.area, "elsewhere", &other, "");
    let mut segments: Vec<String> = pushed_in_order
        .keys()
        .map(|name| name[..24].to_owned())
        .collect();
    segments.reverse();
    for _ in 0..2 {
        for folder in ["wal", "summary"] {
            remove_folder(&other, folder);
        }
        push_all(&bordered, &walhalla, &segments);
        assert!(
            of_segments(&other) == pushed_in_order,
            "pushed in the order {segments:?}"
        );
        assert_eq!(bordered.plans(&walhalla).0, plans);
        fastrand::shuffle(&mut segments);
    }
    remove_folder(&other, "summary");
    let report = walhalla.run(&["wal-summarize", "--json"]).succeeds().json();
    assert_eq!(report["made"], pushed_in_order.len(), "{report:#}");
    assert_eq!(report["segments"], pushed_in_order.len(), "{report:#}");
    assert!(
        of_segments(&other) == pushed_in_order,
        "made by wal-summarize"
    );
    assert_eq!(bordered.plans(&walhalla).0, plans);
}

fn push_all(bordered: &Bordered, walhalla: &Walhalla, segments: &[String]) {
    let data = &bordered.primary.data;
    for segment in segments {
        let path = format!("pg_wal/{segment}");
        write(
            &data.join(&path),
            &std::fs::read(bordered.raw.join(segment)).unwrap(),
        );
        walhalla.run_in(data, &["wal-push", &path]).succeeds();
    }
}

/// The summaries in the store, by name, as they are stored.
fn of_segments(store: &Store) -> BTreeMap<String, Vec<u8>> {
    let name = |path: PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    let summaries = contents(store).into_iter();
    summaries
        .map(|(path, content)| (name(path), content))
        .collect()
}

fn contents(store: &Store) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = store.summaries_named("").into_iter();
    let summaries: BTreeMap<_, _> = paths
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    assert!(summaries.len() > 10, "{summaries:?}");
    summaries
}

fn remove_folder(store: &Store, folder: &str) {
    let mut clusters = std::fs::read_dir(store.path()).unwrap().flatten();
    let cluster = clusters.find(|entry| entry.path().join(folder).exists());
    std::fs::remove_dir_all(cluster.unwrap().path().join(folder)).unwrap();
}

fn write(path: &Path, content: &[u8]) {
    std::fs::write(path, content).unwrap();
    host().give_to_user(path);
}

/// What follows `mark` in its line.
fn after<'a>(text: &'a str, mark: &str) -> &'a str {
    text.lines()
        .find_map(|line| line.strip_prefix(mark))
        .unwrap()
}

fn offset(lsn: &str) -> u64 {
    lsn.parse::<walhalla_postgres::Lsn>().unwrap().0
}
