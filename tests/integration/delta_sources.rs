//! Whatever tells the changed blocks, none that changed is left out: WAL, the server's summaries, and page LSNs are
//! compared on one cluster, block by block, with copies of its files before and after, and with what PostgreSQL's own
//! `pg_basebackup --incremental` takes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{Area, Cluster, Shape, Store, Walhalla, host, run};

const BLOCK_BYTES: usize = 8192;
/// `INCREMENTAL_MAGIC` (basebackup_incremental.h).
const MAGIC: u32 = 0xd3ae_1f0d;
/// The directories that hold the relations' files.
const RELATIONS: [&str; 3] = ["base", "global", "pg_tblspc"];

/// A cluster that changed after a backup.
struct Changed {
    cluster: Cluster,
    walhalla: Walhalla,
    store: Store,
    /// The backup, and copies of the files at its time and now.
    parent: String,
    before: PathBuf,
    after: PathBuf,
    area: Area,
}

/// What a delta holds of a file.
enum Carried {
    Whole,
    Blocks {
        named: BTreeSet<usize>,
        /// Blocks from here on are not the parent's.
        truncated_to: usize,
    },
}

/// What a delta holds of each file of a permanent relation's main fork.
struct Delta {
    source: String,
    files: BTreeMap<PathBuf, Carried>,
}

/// Some of each kind of relation, in a database, a tablespace and another database.
const BEFORE: [&str; 19] = [
    "create table kept as select g, md5(g::text) as body from generate_series(1, 20000) g",
    "create table changed as select g, md5(g::text) as body, array[g, g % 7] as list, int4range(g, g + 5) as span, \
     point(g, g % 100) as place from generate_series(1, 10000) g",
    "create index on changed using btree (body)",
    "create index on changed using hash (g)",
    "create index on changed using gin (list)",
    "create index on changed using gist (span)",
    "create index on changed using spgist (place)",
    "create index on changed using brin (g) with (pages_per_range = 2)",
    "create table cut as select * from kept",
    "create table truncated as select * from kept",
    "create table rewritten as select * from kept",
    "create table replaced as select * from kept",
    "create table read as select * from kept",
    "create table far tablespace far as select * from kept",
    "create unlogged table unlogged as select * from kept",
    "create sequence counter",
    "create database moved",
    "create database dropped",
    "vacuum",
];

/// What changes. `kept` does not.
const BETWEEN: [&str; 24] = [
    "update changed set body = md5(body), g = g + 20000 where g % 50 = 0",
    "delete from changed where g % 31 = 0",
    "insert into changed select g, md5(g::text), array[g], int4range(g, g + 1), point(g, 1) \
     from generate_series(40000, 41000) g",
    "delete from cut where g > 5000",
    "vacuum cut",
    "insert into cut select g, md5(g::text) from generate_series(60000, 63000) g",
    "truncate truncated",
    "insert into truncated select * from kept where g < 3000",
    "begin; truncate far; rollback",
    "update far set body = 'a' where g = 7777",
    "drop table replaced",
    "create table replaced as select * from kept where g % 3 = 0",
    "vacuum full rewritten",
    "begin; delete from read where g > 19000; rollback",
    "select count(*) from read",
    "select count(nextval('counter')) from generate_series(1, 100)",
    "alter database moved set tablespace far",
    "alter database moved set tablespace pg_default",
    "drop database dropped",
    "create database made COPIED",
    "update unlogged set body = 'b'",
    "vacuum freeze changed",
    "reindex table pg_class",
    "vacuum full pg_shdepend",
];

impl Changed {
    fn make(version: u32) -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut cluster = Cluster::create(&area, "primary", Shape::small(version));
        if version >= 17 {
            cluster.configure("summarize_wal = on");
        }
        walhalla.archive_from(&mut cluster);
        let far = area.make_dir("far").display().to_string();
        cluster.sql(&format!("create tablespace far location '{far}'"));
        do_all(&cluster, &BEFORE);
        let parent = walhalla.back_up(&cluster);
        let before = copy_files(&area, &cluster, "before");
        do_all(&cluster, &BETWEEN);
        cluster.sql("checkpoint");
        let after = copy_files(&area, &cluster, "after");
        cluster.archive_everything();
        Self {
            cluster,
            walhalla,
            store,
            parent,
            before,
            after,
            area,
        }
    }

    /// Takes a delta by this source and unpacks it with stock tools.
    fn take(&self, source: &str) -> Delta {
        let data = self.cluster.data.to_str().unwrap();
        let args = ["backup-push", data, "--delta", "--parent", &self.parent];
        let args = [&args[..], &["--changed-blocks", source]].concat();
        self.walhalla.run_with(&self.cluster, &args).succeeds();
        let id = self.walhalla.newest_backup();
        let dir = self.area.make_dir(&format!("by-{source}"));
        for part in self.store.objects_named("") {
            let path = part.display().to_string();
            if path.contains(&id) && path.ends_with(".tar.lz4") {
                let unpack = format!("lz4 -dc {path} | tar x -C {}", dir.display());
                run(host()
                    .command("bash")
                    .args(["-eu", "-o", "pipefail", "-c", &unpack]))
                .succeeds();
            }
        }
        Delta::read(source, &dir)
    }

    /// What PostgreSQL takes of the same parent, by the manifest that is stored with it.
    fn take_by_postgresql(&self) -> Delta {
        let manifests = self.store.objects_named("backup_manifest.lz4");
        let of_parent = |path: &&PathBuf| path.display().to_string().contains(&self.parent);
        let stored = manifests.iter().find(of_parent).unwrap().display();
        let manifest = self.area.path("manifest").display().to_string();
        let unpack = format!("lz4 -dc {stored} > {manifest}");
        run(host().command("bash").args(["-eu", "-c", &unpack])).succeeds();
        let dir = self.area.path("by-postgresql");
        let far = self.area.path("far").display().to_string();
        run(self
            .cluster
            .client("pg_basebackup")
            .args(["-X", "none", "-c", "fast", "-i", &manifest, "-T"])
            .arg(format!("{far}={far}-by-postgresql"))
            .arg("-D")
            .arg(&dir))
        .succeeds();
        Delta::read("PostgreSQL", &dir)
    }

    fn assert_complete(&self, delta: &Delta) {
        let missing: Vec<String> = relation_files(&self.after)
            .iter()
            .flat_map(|path| self.missing(delta, path))
            .collect();
        let (count, source) = (missing.len(), &delta.source);
        let shown = missing[..count.min(20)].join("\n  ");
        assert!(count == 0, "by {source} {count} are missing:\n  {shown}");
    }

    /// What of a file a restore of the delta would not bring back.
    fn missing(&self, delta: &Delta, path: &Path) -> Vec<String> {
        let (named, truncated_to) = match delta.files.get(path) {
            None => return vec![format!("{} as a whole", path.display())],
            Some(Carried::Whole) => return Vec::new(),
            Some(Carried::Blocks {
                named,
                truncated_to,
            }) => (named, *truncated_to),
        };
        let before = fs::read(self.before.join(path)).unwrap_or_default();
        let after = fs::read(self.after.join(path)).unwrap();
        let block = |file: &[u8], at: usize| {
            let bytes = file.get(at * BLOCK_BYTES..(at + 1) * BLOCK_BYTES);
            bytes.unwrap_or(&[0; BLOCK_BYTES]).to_vec()
        };
        let count = after.len() / BLOCK_BYTES;
        let is_lost = |at: &usize| {
            let kept = if *at < truncated_to { &before[..] } else { &[] };
            !named.contains(at) && block(kept, *at) != block(&after, *at)
        };
        let lost = (0..count).filter(is_lost);
        let shown = path.display();
        let mut missing: Vec<String> = lost
            .map(|at| format!("{shown} block {at} of {count}"))
            .collect();
        let end = named.last().map_or(0, |last| last + 1);
        if end.max(truncated_to) != count {
            missing.push(format!(
                "{shown}: {count} blocks, not {end}, {truncated_to}"
            ));
        }
        missing
    }

    /// How many blocks there are.
    fn blocks(&self) -> usize {
        let files = relation_files(&self.after);
        files.iter().map(|path| self.blocks_of(path)).sum()
    }

    fn blocks_of(&self, path: &Path) -> usize {
        let size = fs::metadata(self.after.join(path)).map_or(0, |file| file.len());
        usize::try_from(size).unwrap() / BLOCK_BYTES
    }

    /// How many blocks a delta carries, whole files counted.
    fn weight(&self, delta: &Delta) -> usize {
        let weights = delta.files.iter().map(|(path, carried)| match carried {
            Carried::Blocks { named, .. } => named.len(),
            Carried::Whole => self.blocks_of(path),
        });
        weights.sum()
    }
}

impl Delta {
    fn read(source: &str, dir: &Path) -> Self {
        let mut files = BTreeMap::new();
        for path in relation_files(dir) {
            let name = path.file_name().unwrap().to_str().unwrap();
            let (path, carried) = match name.strip_prefix("INCREMENTAL.") {
                Some(name) => (path.with_file_name(name), Carried::read(&dir.join(&path))),
                None => (path, Carried::Whole),
            };
            assert!(files.insert(path, carried).is_none());
        }
        Self {
            source: source.to_owned(),
            files,
        }
    }
}

impl Carried {
    /// Magic, number of blocks, length after truncation, numbers of the blocks (basebackup_incremental.c,
    /// `GetIncrementalHeaderSize`).
    fn read(file: &Path) -> Self {
        let bytes = fs::read(file).unwrap();
        let word = |at: usize| u32::from_le_bytes(bytes[4 * at..4 * at + 4].try_into().unwrap());
        assert_eq!(word(0), MAGIC, "{}", file.display());
        let [count, truncated_to] = [word(1), word(2)].map(|word| word.try_into().unwrap());
        let named: BTreeSet<usize> = (0..count)
            .map(|at| word(3 + at).try_into().unwrap())
            .collect();
        assert_eq!(named.len(), count, "{} names one twice", file.display());
        // The blocks begin on a block's border.
        let header_bytes = match 12 + 4 * count {
            size if count > 0 => size.next_multiple_of(BLOCK_BYTES),
            size => size,
        };
        assert_eq!(
            bytes.len(),
            header_bytes + count * BLOCK_BYTES,
            "length of {}",
            file.display()
        );
        Self::Blocks {
            named,
            truncated_to,
        }
    }
}

fn do_all(cluster: &Cluster, statements: &[&str]) {
    let strategy = if cluster.version < 15 {
        ""
    } else {
        "strategy file_copy"
    };
    for statement in statements {
        cluster.sql(&statement.replace("COPIED", strategy));
    }
}

/// A copy of the relations' files, with those in the tablespace. Nothing changes them meanwhile, while the
/// server's own writers go on elsewhere, as the summarizer in `pg_wal`.
fn copy_files(area: &Area, cluster: &Cluster, name: &str) -> PathBuf {
    cluster.sql("checkpoint");
    let copy = area.make_dir(name);
    run(host()
        .command("cp")
        .args(["-a", "--dereference"])
        .args(RELATIONS.map(|dir| cluster.data.join(dir)))
        .arg(&copy))
    .succeeds();
    copy
}

/// The files of permanent relations' main forks below a data directory, whole or as a delta has them.
fn relation_files(data: &Path) -> Vec<PathBuf> {
    let unlogged = files_below(data);
    let mut files = files_below(data);
    files.retain(|path| is_main_fork(path) && !unlogged.contains(&init_fork_of(path)));
    files
}

fn files_below(data: &Path) -> Vec<PathBuf> {
    let mut left = RELATIONS.map(PathBuf::from).to_vec();
    let mut files = Vec::new();
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(data.join(&dir)).unwrap() {
            let path = dir.join(entry.unwrap().file_name());
            if data.join(&path).is_dir() {
                left.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files
}

fn is_main_fork(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    let name = name.strip_prefix("INCREMENTAL.").unwrap_or(name);
    name.chars().all(|letter| letter.is_ascii_digit())
}

fn init_fork_of(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap().to_str().unwrap();
    path.with_file_name(format!("{name}_init"))
}

fn compare_sources(version: u32, sources: &[&str]) {
    let changed = Changed::make(version);
    let mut deltas: Vec<Delta> = sources.iter().map(|source| changed.take(source)).collect();
    if version >= 17 {
        deltas.push(changed.take_by_postgresql());
    }
    let weights: BTreeMap<&str, usize> = deltas
        .iter()
        .map(|delta| (&*delta.source, changed.weight(delta)))
        .collect();
    println!(
        "{version}: blocks by each source: {weights:?}, of {}",
        changed.blocks()
    );
    for delta in &deltas {
        changed.assert_complete(delta);
    }
    // A tenth is for catalogs, which each backup changes, and for what is sent whole.
    let (least, most) = (
        weights.values().min().unwrap(),
        weights.values().max().unwrap(),
    );
    assert!(*most <= least + least / 10, "{weights:?}");
    if let Some(server) = weights.get("server") {
        assert!(server.abs_diff(weights["wal"]) < 20, "{weights:?}");
    }
    assert!(*most < changed.blocks() * 3 / 4, "{weights:?}");
}

#[test]
fn no_source_leaves_a_changed_block_out_on_13() {
    compare_sources(13, &["wal", "pages"]);
}

#[test]
fn no_source_leaves_a_changed_block_out_on_17() {
    compare_sources(17, &["wal", "server", "pages"]);
}

#[test]
fn no_source_leaves_a_changed_block_out_on_18() {
    compare_sources(18, &["wal", "server", "pages"]);
}

#[test]
fn no_source_leaves_a_changed_block_out_on_19() {
    compare_sources(19, &["wal", "server", "pages"]);
}
