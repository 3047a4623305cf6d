//! An archive of three timelines, written by servers that do a little of everything.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use walhalla_postgres::Lsn;

use crate::support::{Area, Cluster, Shape, Store, Walhalla, create_fill_segment, run};

/// ```text
/// timeline 1 ─load─ A ─load─┬─load─ B ─load─┬─load─▶
///                           │               └─ timeline 3 ─load─▶
///                           └─ timeline 2 ─load─ C ─load─▶
/// ```
pub struct Branches {
    pub walhalla: Walhalla,
    /// Every WAL file as the servers wrote it.
    pub raw: PathBuf,
    /// Oldest first.
    pub backups: Vec<Backup>,
    /// Transactions that left rows in the table `written`, by the timeline at whose end they were there.
    pub written: BTreeMap<u32, BTreeSet<u32>>,
    pub area: Area,
}

#[derive(Clone)]
pub struct Backup {
    pub id: String,
    pub timeline: u32,
    pub start_lsn: Lsn,
    pub stop_lsn: Lsn,
    pub stop_time: Timestamp,
    /// Its files, with neither WAL nor recovery settings.
    pub files: PathBuf,
}

/// The name that two restore points have.
pub const TWICE: &str = "twice";
/// The timeline that `latest` is.
pub const LATEST: u32 = 3;

impl Branches {
    pub fn grow() -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut branches = Self {
            walhalla,
            raw: area.make_dir("raw"),
            backups: Vec::new(),
            written: BTreeMap::new(),
            area,
        };
        branches.first();
        branches.second();
        branches.third();
        branches.backups = branches.list_backups();
        branches
    }

    fn first(&mut self) {
        let shape = Shape {
            version: 17,
            segment_mb: 1,
        };
        let mut server = Cluster::create(&self.area, "first", shape);
        server.configure("max_prepared_transactions = 50");
        let raw = format!("archive_command = 'cp %p {}/%f && ", self.raw.display());
        let settings = self.walhalla.archive_settings();
        server.configure(&settings.replace("archive_command = '", &raw));
        server.start();
        // Every recovery copies what is left.
        server.sql("update pg_database set datistemplate = false where datname <> 'postgres'");
        server.sql("drop database template0");
        server.sql("drop database template1");
        server.sql(
            "create table written (xid xid8 default pg_current_xact_id(), body text not null)",
        );
        create_fill_segment(&server);
        self.load(&server, "before");
        self.back_up(&server);
        self.load(&server, "one");
        Self::point_to_fork(&server, "fork_2");
        self.load(&server, "two");
        self.back_up(&server);
        self.load(&server, "three");
        Self::point_to_fork(&server, "fork_3");
        self.load(&server, "four");
        self.end(1, server);
    }

    fn second(&mut self) {
        let server = self.fork("second", "fork_2");
        self.load(&server, "five");
        self.back_up(&server);
        self.load(&server, "six");
        self.end(2, server);
    }

    fn third(&mut self) {
        let server = self.fork("third", "fork_3");
        self.load(&server, "seven");
        self.end(3, server);
    }

    /// Recovery of a hot standby reads open prepared transactions from `pg_wal`, by the segment's name on the timeline
    /// that is replayed (xlogutils.c, `wal_segment_open`); of the segment in which the next one begins it has only that
    /// one's. So none may be there.
    fn point_to_fork(server: &Cluster, name: &str) {
        server.switch_segment();
        for name in [TWICE, name] {
            server.sql(&format!("select pg_create_restore_point('{name}')"));
        }
    }

    fn fork(&self, name: &str, point: &str) -> Cluster {
        let target = [
            "--target-name",
            point,
            "--target-timeline",
            "1",
            "--target-action",
            "promote",
        ];
        let mut server = self
            .walhalla
            .restore_archiving(&self.area, 17, name, &target);
        server.start();
        server.wait_until_promoted();
        server
    }

    fn end(&mut self, timeline: u32, mut server: Cluster) {
        let last = server.archive_everything();
        assert!(last.starts_with(&format!("{timeline:08X}")), "{last}");
        let written = server.sql("select distinct xid from written");
        let written = written.lines().map(|xid| xid.parse().unwrap()).collect();
        self.written.insert(timeline, written);
        server.stop();
    }

    /// A backup while others write.
    fn back_up(&self, server: &Cluster) {
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    server.sql("insert into written (body) values ('during a backup')");
                }
            });
            self.walhalla.back_up(server);
            is_done.store(true, Ordering::Relaxed);
        });
    }

    /// Every kind of verse, and some more by chance; beside them transactions that take long.
    fn load(&self, server: &Cluster, tag: &str) {
        let mut kinds: Vec<usize> = (0..VERSES.len()).collect();
        kinds.extend((0..20).map(|_| fastrand::usize(..COMMON)));
        fastrand::shuffle(&mut kinds);
        let verses = kinds.iter().enumerate();
        let verses = verses.map(|(at, kind)| VERSES[*kind].replace("TAG", &format!("{tag}_{at}")));
        let script = self
            .area
            .write(&format!("{tag}.sql"), verses.collect::<String>());
        std::thread::scope(|scope| {
            let long = "begin; insert into written (body) values ('long'); select pg_sleep(0.4); \
                        insert into written (body) values ('long'); commit";
            scope.spawn(|| (0..2).for_each(|_| drop(server.sql(long))));
            let mut psql = server.client("psql");
            psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f"]);
            run(psql.arg(script)).succeeds();
        });
    }

    fn list_backups(&self) -> Vec<Backup> {
        let list = self.walhalla.run(&["backup-list", "--json"]).succeeds();
        let list = list.json();
        let list = list.as_array().unwrap().iter().map(|backup| {
            let text = |field: &str| backup[field].as_str().unwrap().to_owned();
            let files = self.area.path(&format!("files-{}", text("id")));
            self.walhalla
                .run(&["backup-fetch", files.to_str().unwrap(), &text("id")])
                .succeeds();
            Backup {
                id: text("id"),
                timeline: backup["timeline"].as_u64().unwrap().try_into().unwrap(),
                start_lsn: text("start_lsn").parse().unwrap(),
                stop_lsn: text("stop_lsn").parse().unwrap(),
                stop_time: text("stop_time").parse().unwrap(),
                files,
            }
        });
        list.collect()
    }
}

/// How many of the verses are cheap enough to come more than once.
const COMMON: usize = 9;
/// What a server may do; `TAG` is another word each time.
const VERSES: [&str; 15] = [
    "insert into written (body) values ('a'); insert into written (body) values ('b'); \
     insert into written (body) values ('c');\n",
    "begin; insert into written (body) values ('x'); rollback;\n",
    "begin; insert into written (body) values ('a'); savepoint s; insert into written (body) values ('x'); \
     rollback to s; insert into written (body) values ('b'); savepoint t; insert into written (body) values ('c'); \
     release t; commit;\n",
    "begin; insert into written (body) values ('x'); savepoint s; insert into written (body) values ('x'); \
     release s; rollback;\n",
    "begin; insert into written (body) values ('a'); prepare transaction 'TAG'; \
     insert into written (body) values ('b'); commit prepared 'TAG';\n",
    "begin; insert into written (body) values ('x'); prepare transaction 'TAG'; \
     insert into written (body) values ('b'); rollback prepared 'TAG';\n",
    "select pg_create_restore_point('point_TAG');\n",
    "select pg_sleep(0.1);\n",
    "insert into written (body) select (select string_agg(md5((g * h)::text), '') from generate_series(1, 50) h) \
     from generate_series(1, 60) g;\n",
    "begin; insert into written (body) values ('x'); prepare transaction 'TAG';\n",
    "select pg_logical_emit_message(false, 'test', ''); select pg_switch_wal();\n",
    "begin; insert into written (body) values ('a'); select fill_segment(24); commit;\n",
    "begin; insert into written (body) values ('x'); select fill_segment(16); rollback;\n",
    "select fill_segment(40); select pg_create_restore_point('border_TAG');\n",
    "begin; insert into written (body) values ('a'); prepare transaction 'TAG'; select fill_segment(32); \
     commit prepared 'TAG';\n",
];
