//! The server's own WAL summaries, read as `pg_walsummary` reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use walhalla::wal::server_summaries::{Gap, Known, changes};
use walhalla_postgres::block_table::BlockTableDamage;
use walhalla_postgres::summary::Changes;
use walhalla_postgres::{History, Lsn, TimelineId, Version};

use crate::support::{Area, Cluster, Shape, eventually, host, run};

/// What is known of each fork, by `pg_walsummary`'s name of it: its limit and its blocks.
type Forks = BTreeMap<String, (Option<u32>, BTreeSet<u32>)>;

/// A server that summarizes its WAL.
struct Summarizing {
    cluster: Cluster,
    version: Version,
    first: Lsn,
    _area: Area,
}

impl Summarizing {
    fn make(version: u32) -> Self {
        let area = Area::new();
        let mut cluster = Cluster::create(&area, "primary", Shape::of(version));
        cluster.configure("summarize_wal = on\nmax_wal_size = 4GB\ncheckpoint_timeout = 1d");
        cluster.start();
        let mut made = Self {
            cluster,
            version: Version::parse(&version.to_string()).unwrap(),
            first: Lsn::ZERO,
            _area: area,
        };
        made.first = made.checkpoint();
        made
    }

    fn sql(&self, sql: &str) {
        self.cluster.sql(sql);
    }

    /// Where the redo of a new checkpoint begins; all before it is summarized.
    fn checkpoint(&self) -> Lsn {
        self.sql("checkpoint");
        let redo = self
            .cluster
            .sql("select redo_lsn from pg_control_checkpoint()");
        let sql = format!("select summarized_lsn >= '{redo}' from pg_get_wal_summarizer_state()");
        eventually("WAL to be summarized", Duration::from_mins(1), || {
            self.cluster.sql(&sql) == "t"
        });
        redo.parse().unwrap()
    }

    /// Changes of every kind, a checkpoint after each.
    fn write(&self) -> Lsn {
        let steps = [
            // More than 4,096 blocks of one relation, so that they are a bitmap.
            "create table wide (id int, body text); alter table wide alter body set storage plain;
             insert into wide select id, repeat('x', 3000) from generate_series(1, 10000) id",
            "create index on wide (id); update wide set id = -id where id % 37 = 0",
            "create table narrow as select id from generate_series(1, 100000) id;
             create unlogged table fleeting (id int primary key)",
            "delete from wide where ctid >= '(3000,0)'",
            "vacuum (truncate) wide",
            "insert into wide select id, repeat('y', 3000) from generate_series(1, 900) id",
            "truncate narrow; insert into narrow select generate_series(1, 5000)",
            "drop table narrow; begin; create table undone (id int); insert into undone values (1); rollback",
        ];
        for step in steps {
            self.sql(step);
            self.checkpoint();
        }
        for strategy in ["file_copy", "wal_log"] {
            self.sql(&format!(
                "create database by_{strategy} template template0 strategy {strategy}"
            ));
            self.checkpoint();
        }
        self.sql("drop database by_file_copy");
        self.checkpoint()
    }

    fn changes(&self, history: &History, from: Lsn, to: Lsn) -> Known {
        changes(&self.cluster.data, self.version, history, from, to).unwrap()
    }

    /// What is known when all is there.
    fn known(&self, history: &History, from: Lsn, to: Lsn) -> Forks {
        match self.changes(history, from, to) {
            Known::Changes(changes) => forks_of(&changes),
            Known::Nothing(gap) => panic!("from {from} to {to}: {gap}"),
        }
    }

    /// The summaries and the WAL that each is of, in order.
    fn files(&self) -> Vec<(PathBuf, Lsn, Lsn)> {
        let folder = self.cluster.data.join("pg_wal").join("summaries");
        let mut names: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.len() == 48)
            .collect();
        names.sort_unstable();
        let lsn = |digits| Lsn(u64::from_str_radix(digits, 16).unwrap());
        let places = names
            .iter()
            .map(|name| (folder.join(name), lsn(&name[8..24]), lsn(&name[24..40])));
        places.collect()
    }

    /// A summary as `pg_walsummary` shows it.
    fn shown(&self, file: &Path) -> Forks {
        let program = host().server_program(self.cluster.version, "pg_walsummary");
        let shown = run(host().command(program).arg("-i").arg(file)).succeeds();
        let mut forks = Forks::new();
        for line in shown.stdout.lines() {
            let (fork, what) = line.split_once(": ").unwrap();
            let (limit, blocks) = forks.entry(fork.to_owned()).or_default();
            match what.split_once(' ').unwrap() {
                ("limit", number) => *limit = Some(number.parse().unwrap()),
                ("block", number) => assert!(blocks.insert(number.parse().unwrap()), "{line}"),
                _ => panic!("{line}"),
            }
        }
        forks.retain(|fork, _| !fork.ends_with("FORK vm"));
        forks
    }
}

fn forks_of(changes: &Changes) -> Forks {
    let forks = changes.iter().map(|((relation, fork), changed)| {
        let name = format!(
            "TS {}, DB {}, REL {}, FORK {fork}",
            relation.tablespace, relation.database, relation.number
        );
        let blocks = changed.blocks.iter().cloned().flatten();
        (name, (changed.limit, blocks.collect()))
    });
    forks.collect()
}

/// What is true after both, in this order.
fn with(mut before: Forks, later: Forks) -> Forks {
    for (fork, (limit, blocks)) in later {
        let (own_limit, own_blocks) = before.entry(fork).or_default();
        if let Some(limit) = limit {
            *own_limit = Some(own_limit.map_or(limit, |own| own.min(limit)));
            own_blocks.retain(|block| *block < limit);
        }
        own_blocks.extend(blocks);
    }
    before
}

fn are_read_as_pg_walsummary_reads_them(version: u32) {
    let server = Summarizing::make(version);
    let last = server.write();
    let root = History::root(TimelineId::FIRST);
    let mut all = Forks::new();
    let mut most_blocks = 0;
    let files = server.files();
    for (file, begin, end) in &files {
        let shown = server.shown(file);
        most_blocks = most_blocks.max(
            shown
                .values()
                .map(|(_, blocks)| blocks.len())
                .max()
                .unwrap_or(0),
        );
        assert!(
            server.known(&root, *begin, *end) == shown,
            "{} is read otherwise",
            file.display()
        );
        if *begin >= server.first {
            all = with(all, shown);
        }
    }
    assert!(files.len() > 10 && most_blocks > 4096, "no bitmap");
    assert!(server.known(&root, server.first, last) == all);
    tells_of_what_is_missing(&server, &root, last);
    goes_over_to_the_next_timeline(server, last);
}

fn tells_of_what_is_missing(server: &Summarizing, root: &History, last: Lsn) {
    let gap = |from, to| match server.changes(root, from, to) {
        Known::Nothing(gap) => gap,
        Known::Changes(_) => panic!("known from {from} to {to}"),
    };
    let later = Lsn(last.0 + 1);
    assert!(matches!(gap(server.first, later), Gap::Missing { at, .. } if at == last));
    let files = server.files();
    let (file, begin, _) = &files[files.len() - 3];
    let bytes = std::fs::read(file).unwrap();
    let mut spoiled = bytes.clone();
    spoiled[bytes.len() / 2] ^= 4;
    std::fs::write(file, spoiled).unwrap();
    assert!(matches!(gap(server.first, last), Gap::Damaged { path, .. } if path == *file));
    std::fs::write(file, &bytes[..bytes.len() - 1]).unwrap();
    let damage = BlockTableDamage::Short;
    assert!(
        matches!(gap(server.first, last), Gap::Damaged { damage: found, .. } if found == damage)
    );
    std::fs::remove_file(file).unwrap();
    assert!(matches!(gap(server.first, last), Gap::Missing { at, .. } if at == *begin));
    std::fs::write(file, bytes).unwrap();
    server.known(root, server.first, last);
}

fn goes_over_to_the_next_timeline(mut server: Summarizing, first: Lsn) {
    server.sql("create table on_the_first (id int)");
    server.cluster.stop();
    server.cluster.promote();
    server.sql("create table on_the_second (id int)");
    let last = server.checkpoint();
    let second = TimelineId::FIRST.next().unwrap();
    let text = std::fs::read(server.cluster.data.join("pg_wal/00000002.history")).unwrap();
    let history = History::parse(second, &text).unwrap();
    let known = server.known(&history, first, last);
    for table in ["on_the_first", "on_the_second"] {
        let sql = format!(
            "select format('TS 1663, DB 5, REL %s, FORK main', pg_relation_filenode('{table}'))"
        );
        assert_eq!(known[&server.cluster.sql(&sql)].0, Some(0), "{table}");
    }
}

#[test]
fn server_summaries_are_read_as_pg_walsummary_reads_them_on_17() {
    are_read_as_pg_walsummary_reads_them(17);
}

#[test]
fn server_summaries_are_read_as_pg_walsummary_reads_them_on_18() {
    are_read_as_pg_walsummary_reads_them(18);
}

#[test]
fn server_summaries_are_read_as_pg_walsummary_reads_them_on_19() {
    are_read_as_pg_walsummary_reads_them(19);
}
