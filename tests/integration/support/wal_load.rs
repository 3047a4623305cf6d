//! WAL with every kind of record in it, from the loads and the misfortunes that servers meet.

use std::path::PathBuf;

use walhalla_postgres::SegmentSize;

use super::{Area, Cluster, Shape, run};

/// The WAL of a cluster, kept as the server wrote it.
pub struct WrittenWal {
    pub segment_size: SegmentSize,
    /// From the first one to where the cluster was stopped.
    pub first_timeline: Vec<PathBuf>,
    /// From the one in which the cluster was promoted.
    pub second_timeline: Vec<PathBuf>,
    /// Databases that were dropped: OIDs of the database and of its tablespaces.
    pub dropped_databases: Vec<(u32, Vec<u32>)>,
    /// When the last checkpoint was, by the server's control file, in seconds since 1970, and where.
    pub last_checkpoint: (i64, String),
}

/// A transaction that is replicated from elsewhere, and how it committed there. The origin is given back by hand: the
/// session ends later than its client, and no other one can have the origin until then.
const ORIGIN: &str = "begin; select pg_replication_origin_session_setup('elsewhere'); \
    select pg_replication_origin_xact_setup('1/2345678', '2026-01-02 03:04:05.678901+00'); \
    insert into bulk (g) values (5); commit; select pg_replication_origin_session_reset()";

/// Bulk loads, indexes of each kind, large rows, rewrites, DDL, two-phase commits.
const STATEMENTS: &[&str] = &[
    "create table bulk as select g, md5(g::text) as text, int4range(g, g + 5) as range, point(g, g) as point, \
     array[g, g % 7] as list from generate_series(1, 10000) g",
    "create index on bulk using btree (text)",
    "create index on bulk using hash (g)",
    "create index on bulk using gin (list)",
    "create index on bulk using gist (range)",
    "create index on bulk using spgist (point)",
    "create index on bulk using brin (g)",
    "checkpoint",
    "update bulk set g = g + 100000 where g % 10 = 0",
    "delete from bulk where g % 3 = 0 or g > 5000",
    "vacuum bulk",
    "insert into bulk select g, 'again' from generate_series(1, 1000) g",
    "alter table bulk add column born timestamptz default clock_timestamp()",
    "reindex table bulk",
    "vacuum full bulk",
    "vacuum full pg_class",
    "create materialized view seen as select g % 10 as digit, count(*) from bulk group by 1",
    "refresh materialized view seen",
    "create table large as select string_agg(md5(g::text), '') as text from generate_series(1, 30000) g",
    "create unlogged table unlogged as select generate_series(1, 1000) as g",
    "create index on unlogged (g)",
    "create sequence counter",
    "select count(nextval('counter')) from generate_series(1, 200)",
    "begin; insert into bulk (g) values (1); create table kept_with_it (a int); prepare transaction 'to be kept'",
    "begin; insert into bulk (g) values (2); create table dropped_with_it (a int); prepare transaction 'to be dropped'",
    "commit prepared 'to be kept'",
    "rollback prepared 'to be dropped'",
    "begin; insert into bulk (g) values (3); savepoint a; insert into bulk (g) values (4); rollback to a; commit",
    "begin; create table given_up as select * from bulk; savepoint a; insert into given_up (g) values (1); rollback",
    // The list of its subtransactions runs over a page border.
    "do $$ begin for i in 1..3000 loop begin insert into bulk (g) values (i); \
     exception when division_by_zero then null; end; end loop; end $$",
    "begin; select 1 from bulk where g = 1 for key share; savepoint a; update bulk set text = '' where g = 1; commit",
    "select g from bulk for update",
    "select pg_replication_origin_create('elsewhere')",
    ORIGIN,
    "select pg_replication_origin_advance('elsewhere', '1/23456789')",
    "select pg_logical_emit_message(true, 'test', 'a message')",
    "select pg_create_restore_point('a restore point')",
    "truncate large, unlogged",
];

/// Makes a cluster, writes every kind of record, lets it crash within a record and promotes it.
pub fn write_every_kind(area: &Area, version: u32, settings: &str) -> WrittenWal {
    let shape = Shape::small(version);
    let mut cluster = Cluster::create(area, "primary", shape);
    configure_for_wal(&cluster);
    cluster.configure(&format!("track_commit_timestamp = on\n{settings}"));
    cluster.start();
    cluster.pgbench(&["-i", "-s", "1", "-q"]);
    cluster.pgbench(&["-c", "2", "-t", "200"]);
    for statement in STATEMENTS {
        cluster.sql(statement);
    }
    write_compressed_images(&cluster);
    let dropped_databases = make_and_drop_databases(area, &cluster);
    run_backup(&cluster);
    cluster.sql("drop table bulk, large, unlogged cascade");
    crash_within_a_record(&mut cluster);
    let last = cluster.switch_segment();
    let first_timeline = segments_of(&cluster, '1', &last);
    cluster.stop();

    cluster.promote();
    cluster.pgbench(&["-c", "2", "-t", "50", "-N"]);
    cluster.sql("checkpoint");
    let last = cluster.switch_segment();
    let second_timeline = segments_of(&cluster, '2', &last);
    let last_checkpoint = cluster.sql(
        "select extract(epoch from checkpoint_time)::bigint, redo_lsn from pg_control_checkpoint()",
    );
    cluster.stop();
    let (seconds, redo) = last_checkpoint.split_once('|').unwrap();
    WrittenWal {
        segment_size: SegmentSize::new(u64::from(shape.segment_mb) << 20).unwrap(),
        first_timeline,
        second_timeline,
        dropped_databases,
        last_checkpoint: (seconds.parse().unwrap(), redo.to_owned()),
    }
}

/// All WAL is kept, and a crash can leave a record half written ([`crash_within_a_record`]).
pub fn configure_for_wal(cluster: &Cluster) {
    let keep = if cluster.version < 13 {
        "wal_keep_segments = 1000"
    } else {
        "wal_keep_size = 4GB"
    };
    cluster.configure(&format!(
        "max_prepared_transactions = 5\nwal_compression = on\nmax_wal_size = 4GB\nwal_buffers = 32kB\n\
         wal_writer_delay = 10s\ncheckpoint_timeout = 1h\n{keep}"
    ));
}

/// Images of blocks by each method that the version knows.
fn write_compressed_images(cluster: &Cluster) {
    for (method, since) in [("lz4", 15), ("zstd", 16), ("off", 9)] {
        if cluster.version >= since {
            cluster.sql("checkpoint");
            cluster.sql(&format!(
                "set wal_compression = {method}; update pgbench_tellers set tbalance = tbalance + 1; \
                 update pgbench_accounts set abalance = abalance + 1 where aid % 500 = 0"
            ));
        }
    }
}

/// By both strategies, in two tablespaces, moved and dropped.
fn make_and_drop_databases(area: &Area, cluster: &Cluster) -> Vec<(u32, Vec<u32>)> {
    let folder = area.make_dir("tablespace");
    cluster.sql(&format!(
        "create tablespace own location '{}'",
        folder.display()
    ));
    cluster.sql("create database kept");
    if cluster.version >= 15 {
        for strategy in ["wal_log", "file_copy"] {
            cluster.sql(&format!(
                "create database by_{strategy} strategy {strategy}"
            ));
        }
    }
    cluster.sql("create database dropped");
    let mut psql = cluster.client("psql");
    psql.args(["-X", "-d", "dropped", "-c"])
        .arg("create table elsewhere tablespace own as select 1 as a");
    run(&mut psql).succeeds();
    cluster.sql("create table elsewhere tablespace own as select 1 as a; drop table elsewhere");
    let oids = cluster.sql(
        "select d.oid || '|' || t.oid from pg_database d, pg_tablespace t where datname = 'dropped' and spcname = 'own'",
    );
    let (database, tablespace) = oids.split_once('|').unwrap();
    cluster.sql("drop database dropped");
    vec![(
        database.parse().unwrap(),
        vec![1663, tablespace.parse().unwrap()],
    )]
}

fn run_backup(cluster: &Cluster) {
    // One statement each in one transaction: a backup is its session's.
    cluster.sql(if cluster.version < 15 {
        "select pg_start_backup('test', true, false); select pg_stop_backup(false, false)"
    } else {
        "select pg_backup_start('test', true); select pg_backup_stop(false)"
    });
}

/// A record that is longer than the WAL buffers, so that its beginning is on disk and its end is not: in the crash the
/// WAL ends within it, on a page border.
pub fn crash_within_a_record(cluster: &mut Cluster) {
    cluster.sql("select pg_logical_emit_message(false, 'test', repeat('cut', 30000))");
    cluster.crash();
    cluster.start();
}

/// The segments of a timeline up to the given one.
pub fn segments_of(cluster: &Cluster, timeline: char, last: &str) -> Vec<PathBuf> {
    let folder = cluster.wal_folder();
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.len() == 24 && name.chars().nth(7) == Some(timeline))
        .filter(|name| name.as_str() <= last)
        .collect();
    names.sort();
    names.iter().map(|name| folder.join(name)).collect()
}
