//! Files of changed blocks, written for `pg_combinebackup` and read as it reads those of the server.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use walhalla::contents::delta_file::{Header, delta_name, whole_name};
use walhalla::contents::merged::{Merged, Skip};

use crate::support::{Area, Cluster, Shape, copy_tree, host, run, seed_chance};

const BLOCK: u32 = 8192;
const BLOCKS_PER_FILE: u32 = 131_072;
const MOST_BLOCKS: u32 = 24;

struct Layer(File);

impl Read for Layer {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Skip for Layer {
    fn skip(&mut self, count: u64) -> std::io::Result<()> {
        let count = i64::try_from(count).unwrap();
        self.0.seek(SeekFrom::Current(count)).map(|_| ())
    }
}

/// The file of a relation that backups, the newest first, make together.
fn merged(newest_first: &[PathBuf], relation: &Path) -> Vec<u8> {
    let mut layers = Vec::new();
    for backup in newest_first {
        let whole = backup.join(relation);
        if let Ok(bottom) = File::open(&whole) {
            let size_bytes = bottom.metadata().unwrap().len();
            let mut merged = Merged::new(layers, Layer(bottom), size_bytes, BLOCK);
            let mut content = Vec::new();
            merged.read_to_end(&mut content).unwrap();
            return content;
        }
        let mut delta = File::open(backup.join(delta_name(relation))).unwrap();
        let size_bytes = delta.metadata().unwrap().len();
        let header = Header::read(&mut delta, BLOCK, BLOCKS_PER_FILE).unwrap();
        assert_eq!(header.file_bytes(BLOCK), size_bytes);
        layers.push((header, Layer(delta)));
    }
    panic!("{} is whole nowhere", relation.display())
}

/// Lets `pg_combinebackup` put backups together, the oldest first.
fn combine(version: u32, backups: &[PathBuf], out: &Path) {
    let program = host().server_program(version, "pg_combinebackup");
    let mut command = host().command(program);
    command.args(["--no-sync", "--no-manifest", "-o"]);
    run(command.arg(out).args(backups)).succeeds();
}

fn relations(backup: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for folder in ["base/1", "base/5", "global"] {
        for entry in std::fs::read_dir(backup.join(folder)).unwrap() {
            let path = Path::new(folder).join(entry.unwrap().file_name());
            paths.extend(whole_name(&path));
        }
    }
    paths
}

fn assert_same(version: u32, oldest_first: &[PathBuf], out: &Path) -> usize {
    combine(version, oldest_first, out);
    let newest_first: Vec<_> = oldest_first.iter().rev().cloned().collect();
    let relations = relations(&newest_first[0]);
    for relation in &relations {
        let expected = std::fs::read(out.join(relation)).unwrap();
        assert!(
            merged(&newest_first, relation) == expected,
            "{} differs",
            relation.display()
        );
    }
    relations.len()
}

/// Files of chance in directories that are backups as far as `pg_combinebackup` looks.
struct MadeUp {
    cluster: Cluster,
    area: Area,
}

impl MadeUp {
    fn backup(&self, number: u32) -> PathBuf {
        let root = self.area.make_dir(&format!("backup{number}"));
        for folder in ["global", "base/1", "base/5", "pg_tblspc"] {
            self.area.make_dir(&format!("backup{number}/{folder}"));
        }
        for file in ["PG_VERSION", "global/pg_control"] {
            copy_tree(&self.cluster.data.join(file), &root.join(file));
        }
        let mut label =
            format!("START WAL LOCATION: 0/{number}000028 (file x)\nSTART TIMELINE: 1\n");
        if number > 1 {
            let parent = number - 1;
            let from = format!("INCREMENTAL FROM LSN: 0/{parent}000028\n");
            label = [&label, &*from, "INCREMENTAL FROM TLI: 1\n"].concat();
        }
        std::fs::write(root.join("backup_label"), label).unwrap();
        root
    }

    fn content(blocks: usize) -> Vec<u8> {
        let bytes = (0..blocks).flat_map(|_| vec![fastrand::u8(1..); BLOCK as usize]);
        bytes.collect()
    }

    /// A relation in each of the backups. `pg_combinebackup` heeds no older truncation length than the newest.
    fn relation(backups: &[PathBuf], relation: &Path) {
        let (full, deltas) = backups.split_first().unwrap();
        let blocks = fastrand::usize(..=MOST_BLOCKS as usize);
        std::fs::write(full.join(relation), Self::content(blocks)).unwrap();
        let newest_length = fastrand::u32(..=MOST_BLOCKS);
        for (at, delta) in deltas.iter().enumerate() {
            let density = fastrand::f64();
            let is_newest = at + 1 == deltas.len();
            let length = if is_newest {
                newest_length
            } else {
                fastrand::u32(newest_length..=MOST_BLOCKS)
            };
            let header = Header {
                truncation_block_length: length,
                blocks: (0..MOST_BLOCKS)
                    .filter(|_| fastrand::f64() < density)
                    .collect(),
            };
            let content = Self::content(header.blocks.len());
            let bytes = [header.to_bytes(BLOCK), content].concat();
            std::fs::write(delta.join(delta_name(relation)), bytes).unwrap();
        }
    }
}

#[test]
fn pg_combinebackup_makes_of_delta_files_what_is_merged() {
    seed_chance();
    let area = Area::new();
    let cluster = Cluster::create(&area, "cluster", Shape::of(17));
    let made_up = MadeUp { cluster, area };
    let backups: Vec<PathBuf> = (1..=4).map(|number| made_up.backup(number)).collect();
    for number in 0..60 {
        let name = format!("base/5/{}", 16384 + number);
        MadeUp::relation(&backups, Path::new(&name));
    }
    MadeUp::relation(&backups, Path::new("global/1262"));
    MadeUp::relation(&backups, Path::new("base/1/1259.1"));
    let out = made_up.area.path("out");
    assert_eq!(assert_same(17, &backups, &out), 62);
}

fn deltas_of_the_server_are_merged_as_pg_combinebackup_does(version: u32) {
    let area = Area::new();
    let mut cluster = Cluster::create(&area, "primary", Shape::of(version));
    cluster.configure("summarize_wal = on\ncheckpoint_timeout = 1d");
    cluster.start();
    cluster.sql(
        "create table big as select id, repeat('x', 500) body from generate_series(1, 60000) id;
         create index on big (id)",
    );
    let mut backups: Vec<PathBuf> = Vec::new();
    let steps: [&[&str]; 4] = [
        &[],
        &["update big set body = 'y' where id % 997 = 0"],
        &[
            "delete from big where id > 30000",
            "vacuum (truncate) big",
            "create table more as select * from big",
        ],
        &["insert into big select id, repeat('z', 500) from generate_series(1, 20000) id"],
    ];
    for step in steps {
        for sql in step {
            cluster.sql(sql);
        }
        let backup = area.path(&format!("backup{}", backups.len()));
        let mut command = cluster.client("pg_basebackup");
        command
            .args(["--no-sync", "-c", "fast", "-X", "none", "-D"])
            .arg(&backup);
        if let Some(parent) = backups.last() {
            let parent = parent.join("backup_manifest");
            command.arg(format!("--incremental={}", parent.display()));
        }
        run(&mut command).succeeds();
        backups.push(backup);
    }
    assert!(assert_same(version, &backups, &area.path("out")) > 100);
}

#[test]
fn deltas_of_a_server_are_merged_as_pg_combinebackup_does_on_17() {
    deltas_of_the_server_are_merged_as_pg_combinebackup_does(17);
}

#[test]
fn deltas_of_a_server_are_merged_as_pg_combinebackup_does_on_18() {
    deltas_of_the_server_are_merged_as_pg_combinebackup_does(18);
}
