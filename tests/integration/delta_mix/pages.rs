//! Compares the files of a restored cluster with those of the original, page by page. Both are stopped.
//!
//! Free space maps are left out: they are hints that no WAL keeps. Of a table that is not logged, the init fork has to be
//! the original's, and the table itself what the init fork is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::mask::{Kind, PAGE_BYTES, Page};
use super::sessions::{ask, databases};
use crate::support::Cluster;

/// The relations of every database, by the paths of their files.
pub struct Relations(BTreeMap<String, Relation>);

struct Relation {
    name: String,
    kind: Kind,
    is_unlogged: bool,
}

/// What differs between two data directories.
pub struct Comparison<'a> {
    original: &'a Path,
    restored: &'a Path,
    differences: Vec<String>,
    pub pages: usize,
}

impl Relations {
    pub fn of(cluster: &Cluster) -> Self {
        let sql = "select pg_relation_filepath(c.oid), relpersistence, coalesce(amname, relkind::text), \
                   current_database() || '.' || c.oid::regclass from pg_class c left join pg_am a on a.oid = relam \
                   where relpersistence <> 't' and pg_relation_filepath(c.oid) is not null";
        let mut relations = BTreeMap::new();
        for database in databases(cluster) {
            for line in ask(cluster, &database, sql) {
                let fields: Vec<&str> = line.splitn(4, '|').collect();
                let relation = Relation {
                    name: fields[3].to_owned(),
                    kind: Kind::parse(fields[2]),
                    is_unlogged: fields[1] == "u",
                };
                relations.insert(fields[0].to_owned(), relation);
            }
        }
        Self(relations)
    }

    /// The directories that hold them, relative to the data directory.
    fn directories(&self) -> BTreeSet<&Path> {
        let paths = self.0.keys().map(|path| Path::new(path).parent().unwrap());
        paths.collect()
    }
}

impl<'a> Comparison<'a> {
    pub fn of(relations: &Relations, original: &'a Path, restored: &'a Path) -> Self {
        let mut comparison = Self {
            original,
            restored,
            differences: Vec::new(),
            pages: 0,
        };
        for (path, relation) in &relations.0 {
            comparison.compare_relation(path, relation);
        }
        for directory in relations.directories() {
            comparison.compare_map(directory);
            comparison.find_extra_files(directory);
        }
        comparison.find_extra_databases(relations);
        comparison
    }

    /// What differs, or nothing.
    pub fn differences(&self) -> String {
        let count = self.differences.len();
        let shown = self.differences.iter().take(20).cloned();
        if count == 0 {
            return String::new();
        }
        format!(
            "{count} differences, first\n  {}",
            shown.collect::<Vec<_>>().join("\n  ")
        )
    }

    fn compare_relation(&mut self, path: &str, relation: &Relation) {
        let init = format!("{path}_init");
        if relation.is_unlogged {
            let (original, restored) = (self.original.join(&init), self.restored.join(&init));
            self.compare_files(relation, &original, &restored);
            self.compare_files(relation, &restored, &self.restored.join(path));
            return;
        }
        let [original, restored] = [self.original, self.restored].map(|data| data.join(path));
        self.compare_files(relation, &original, &restored);
        if relation.kind == Kind::Heap {
            self.compare_visibility(relation, path);
        }
    }

    /// None of the relations here is so large that it has a second file.
    fn compare_files(&mut self, relation: &Relation, original: &Path, restored: &Path) {
        let shown = format!("{} ({})", relation.name, restored.display());
        let (Ok(original), Ok(restored)) = (fs::read(original), fs::read(restored)) else {
            let is_there = [original.exists(), restored.exists()];
            self.differ(format!(
                "{shown}: original and restored exist: {is_there:?}"
            ));
            return;
        };
        let count = original.len().max(restored.len()).div_ceil(PAGE_BYTES);
        for number in 0..count {
            let (one, other) = (page(&original, number), page(&restored, number));
            self.pages += 1;
            if let Some(what) = difference(relation.kind, number, one, other) {
                self.differ(format!("{shown} block {number} of {count}: {what}"));
            }
        }
    }

    /// A bit too many hides rows from an index-only scan. So none is set whose page is not marked too, as PostgreSQL keeps
    /// it (visibilitymap.c), and none that the original has not.
    ///
    /// But an original that replayed `CREATE DATABASE … STRATEGY wal_log` has no bits where its pages are marked: the
    /// WAL leaves them out with what it takes for the hole of the map's page (bufmgr.c,
    /// `RelationCopyStorageUsingBuffer`). A backup of the server that ran the command has them, rightly.
    fn compare_visibility(&mut self, relation: &Relation, path: &str) {
        let [(before, marked_before), (after, marked_after)] =
            [self.original, self.restored].map(|data| visibility(&data.join(path)));
        for (number, bits) in after.iter().enumerate() {
            let before = before.get(number).copied().unwrap_or(0);
            let is_marked = |marked: &[bool]| marked.get(number).copied().unwrap_or(false);
            let was_lost = before == 0 && is_marked(&marked_before);
            let is_extra = bits & !before != 0 && !was_lost;
            if is_extra || *bits != 0 && !is_marked(&marked_after) {
                let marked = [&marked_before, &marked_after].map(|marked| is_marked(marked));
                self.differences.push(format!(
                    "{} ({path}) block {number}: the visibility map had {before}, has {bits}; \
                     the pages are marked: {marked:?}",
                    relation.name
                ));
            }
        }
    }

    fn compare_map(&mut self, directory: &Path) {
        let [original, restored] = [self.original, self.restored]
            .map(|data| fs::read(data.join(directory).join("pg_filenode.map")).ok());
        if original != restored {
            self.differ(format!("{}/pg_filenode.map", directory.display()));
        }
    }

    fn find_extra_files(&mut self, directory: &Path) {
        let [original, restored] =
            [self.original, self.restored].map(|data| relation_files(&data.join(directory)));
        for extra in restored.difference(&original) {
            self.differ(format!("{}/{extra} is too much", directory.display()));
        }
    }

    /// Directories of databases that are not there any more.
    fn find_extra_databases(&mut self, relations: &Relations) {
        let known = relations.directories();
        for place in known.iter().filter_map(|directory| directory.parent()) {
            for entry in fs::read_dir(self.restored.join(place))
                .into_iter()
                .flatten()
            {
                let name = entry.unwrap().file_name().into_string().unwrap();
                let is_database = name.parse::<u32>().is_ok() && !place.as_os_str().is_empty();
                if is_database && !known.contains(&*place.join(&name)) {
                    let path = place.join(&name);
                    if !self.original.join(&path).exists() {
                        self.differ(format!("{} is too much", path.display()));
                    }
                }
            }
        }
    }

    fn differ(&mut self, what: String) {
        self.differences.push(what);
    }
}

/// A page of a file; of zeros after its end.
fn page(file: &[u8], number: usize) -> Page {
    let bytes = file.get(number * PAGE_BYTES..(number + 1) * PAGE_BYTES);
    Page::new(bytes.unwrap_or(&[0; PAGE_BYTES]))
}

fn difference(kind: Kind, number: usize, original: Page, restored: Page) -> Option<String> {
    if original.is_void() && restored.is_void() {
        return None;
    }
    // Replay of `CREATE DATABASE … STRATEGY wal_log` leaves them blank, as it does visibility maps. A scan reads all then.
    let is_blank = original.is_blank_range_map() || restored.is_blank_range_map();
    if is_blank && original.lsn() == restored.lsn() {
        return None;
    }
    let number = number.try_into().unwrap();
    let lsns = [original.lsn(), restored.lsn()];
    let [original, restored] = [original, restored].map(|page| page.masked(kind, number));
    let at = original.difference(&restored)?;
    Some(format!(
        "{kind:?} pages differ at byte {at}: {} is {}; LSNs {lsns:x?}",
        original.around(at),
        restored.around(at)
    ))
}

/// The two bits of each page in the visibility map, and whether each page is marked all-visible itself.
fn visibility(heap: &Path) -> (Vec<u8>, Vec<bool>) {
    let mut map = heap.as_os_str().to_owned();
    map.push("_vm");
    let map = fs::read(map).unwrap_or_default();
    let bytes = map.chunks(PAGE_BYTES).flat_map(|page| &page[24..]);
    let bits = bytes.flat_map(|byte| [0, 2, 4, 6].map(|shift| byte >> shift & 3));
    let heap = fs::read(heap).unwrap_or_default();
    let pages = heap.chunks(PAGE_BYTES).map(Page::new);
    (
        bits.collect(),
        pages.map(|page| page.is_all_visible()).collect(),
    )
}

/// The files of relations in a directory, but for temporary ones, and for empty ones: that is how a dropped relation's
/// file waits for the next checkpoint (md.c, `mdunlinkfork`), and how a backup may find it although the WAL of the drop
/// is before its start.
fn relation_files(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    let filled = entries.filter(|entry| entry.metadata().unwrap().len() > 0);
    let names = filled.map(|entry| entry.file_name().into_string().unwrap());
    let is_relation = |name: &String| name.starts_with(|first: char| first.is_ascii_digit());
    let is_map = |name: &String| name.ends_with("_fsm") || name.ends_with("_vm");
    let names = names.filter(|name| is_relation(name) && !is_map(name));
    names.collect()
}
