//! Restores every backup, to the end of the archive and to moments, and compares what comes back.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;

use super::life::{Life, knows_checksums, run_pg_checksums};
use super::model::{LOCATIONS, chance, one_of};
use super::pages::{Comparison, Relations};
use super::sessions::{ask, databases, run_session};
use super::state::State;
use crate::support::{Cluster, run};

/// How many backups are compared page by page, and how many moments are restored to.
const BY_PAGES: usize = 2;
const MOMENTS: usize = 2;

/// A life that ended, to be compared with what its backups bring back.
pub struct Judge {
    life: Life,
    relations: Relations,
    end: State,
    restores: usize,
    pages: usize,
}

/// Where a restore is to end.
struct Goal {
    args: Vec<String>,
    state: State,
    looks_at_pages: bool,
    has_checksums: bool,
    what: String,
}

impl Judge {
    /// Ends the life. Its files stay as they are when the server stops, but for its tablespaces, which are elsewhere.
    pub fn of(mut life: Life) -> Self {
        let relations = Relations::of(&life.cluster);
        let end = life.end();
        keep_tablespaces(&life);
        Self {
            life,
            relations,
            end,
            restores: 0,
            pages: 0,
        }
    }

    /// Says what was compared.
    pub fn judge(mut self) -> String {
        let by_pages = self.draw_for_pages();
        for at in 0..self.life.backups.len() {
            let goal = self.end_from(at, by_pages.contains(&at));
            self.reach(&goal);
        }
        for _ in 0..MOMENTS {
            if let Some(goal) = self.draw_moment() {
                self.reach(&goal);
            }
        }
        let backups = &self.life.backups;
        format!(
            "{} backups, {} of them deltas; {} restores, {} pages compared",
            backups.len(),
            backups.iter().filter(|backup| backup.is_delta).count(),
            self.restores,
            self.pages
        )
    }

    /// The newest backup, and others.
    fn draw_for_pages(&mut self) -> Vec<usize> {
        let backups = &self.life.backups;
        let mut some: Vec<usize> = (0..backups.len()).collect();
        some.retain(|at| !self.life.is_left(backups[*at].taken));
        let newest = some.pop();
        self.life.rng.shuffle(&mut some);
        newest.into_iter().chain(some).take(BY_PAGES).collect()
    }

    /// From a backup to the end of the archive, or of the branch that it is on.
    fn end_from(&mut self, at: usize, looks_at_pages: bool) -> Goal {
        let life = &mut self.life;
        let backup = &life.backups[at];
        let mut args = vec!["--backup".to_owned(), backup.id.clone()];
        let mut what = format!("the end, from {}", backup.id);
        let is_left = life.is_left(backup.taken);
        let left = life.left.as_ref().filter(|left| {
            let is_before = backup.taken < left.fork;
            is_left || is_before && !looks_at_pages && chance(&mut life.rng, 25)
        });
        if let Some(left) = left {
            args.extend(["--target-timeline".to_owned(), left.timeline.clone()]);
            let _ = write!(what, " along timeline {}", left.timeline);
        }
        Goal {
            args,
            state: left.map_or(&self.end, |left| &left.end).clone(),
            looks_at_pages,
            has_checksums: backup.has_checksums,
            what,
        }
    }

    /// To a moment, from any of the backups before it.
    fn draw_moment(&mut self) -> Option<Goal> {
        let life = &mut self.life;
        let moment = one_of(&mut life.rng, &life.moments)?;
        let is_left = life.is_left(moment.taken);
        let before = life.backups.iter().filter(|backup| {
            backup.taken < moment.taken && (is_left || !life.is_left(backup.taken))
        });
        let before: Vec<String> = before.map(|backup| backup.id.clone()).collect();
        let id = one_of(&mut life.rng, &before)?;
        let mut args = vec!["--backup".to_owned(), id.clone()];
        let targets = [
            ("--target-name", &moment.name),
            ("--target-time", &moment.time),
            ("--target-lsn", &moment.lsn),
        ];
        // 9.6 stops at no LSN.
        let targets = &targets[..if life.version < 10 { 2 } else { 3 }];
        let (option, value) = one_of(&mut life.rng, targets)?;
        args.extend([option, value, "--target-action", "promote"].map(str::to_owned));
        if let Some(left) = life.left.as_ref().filter(|_| is_left) {
            args.extend(["--target-timeline".to_owned(), left.timeline.clone()]);
        }
        Some(Goal {
            args,
            state: moment.state,
            looks_at_pages: false,
            has_checksums: false,
            what: format!("{} by {option}, from {id}", moment.name),
        })
    }

    /// Restores, recovers and compares.
    fn reach(&mut self, goal: &Goal) {
        self.life.journal.note(&format!("restore {}", goal.what));
        self.life.empty_tablespaces();
        let args: Vec<&str> = goal.args.iter().map(String::as_str).collect();
        let life = &self.life;
        let mut restored = life
            .walhalla
            .restore(&life.area, life.version, "restored", &args);
        // Nobody looks before the pages are compared: a look may prune them.
        restored.configure("hot_standby = off");
        restored.start();
        restored.wait_until_ready();
        if goal.looks_at_pages {
            self.compare_pages(&mut restored, goal);
        }
        State::of(&restored).assert_same_as(&goal.state, &goal.what);
        check_relations(&restored);
        if goal.looks_at_pages {
            use_it(&restored);
        }
        drop(restored);
        self.life.area.remove("restored");
        self.restores += 1;
    }

    fn compare_pages(&mut self, restored: &mut Cluster, goal: &Goal) {
        restored.stop();
        let original = &self.life.cluster.data;
        let comparison = Comparison::of(&self.relations, original, &restored.data);
        let differences = comparison.differences();
        assert!(differences.is_empty(), "{}: {differences}", goal.what);
        self.pages += comparison.pages;
        if goal.has_checksums && knows_checksums(self.life.version, &restored.data) {
            run_pg_checksums(self.life.version, &restored.data, "--check");
        }
        restored.start();
    }
}

/// Moves the original's tablespaces, as restores put theirs where they were.
fn keep_tablespaces(life: &Life) {
    let links = life.cluster.data.join("pg_tblspc");
    for at in 0..LOCATIONS {
        let [from, to] = ["space", "kept"].map(|name| life.area.path(&format!("{name}{at}")));
        fs::rename(&from, &to).unwrap();
        life.area.make_dir(&format!("space{at}"));
        for entry in fs::read_dir(&links).unwrap() {
            let link = entry.unwrap().path();
            if fs::read_link(&link).unwrap() == from {
                fs::remove_file(&link).unwrap();
                symlink(&to, &link).unwrap();
            }
        }
    }
}

/// Checks heaps and indexes of every database, and that tables that are not logged are there and empty.
fn check_relations(cluster: &Cluster) {
    if cluster.version >= 14 {
        run(cluster.client("pg_amcheck").args([
            "--all",
            "--heapallindexed",
            "--no-dependent-toast",
        ]))
        .succeeds();
    }
    for database in databases(cluster) {
        if (10..14).contains(&cluster.version) {
            // Before 11 amcheck looks at the index only.
            let heap_too = if cluster.version < 11 { "" } else { ", true" };
            ask(
                cluster,
                &database,
                &CHECK_INDEXES.replace("HEAP_TOO", heap_too),
            );
        }
        ask(cluster, &database, CHECK_UNLOGGED);
    }
}

const CHECK_INDEXES: &str = "select bt_index_check(i.indexrelidHEAP_TOO) from pg_index i \
     join pg_class c on c.oid = i.indexrelid join pg_am a on a.oid = c.relam \
     where a.amname = 'btree' and c.relpersistence = 'p' and i.indisvalid";

/// The indexes of an empty table are those of its init forks.
const CHECK_UNLOGGED: &str = "do $$ declare one regclass; found bigint; begin \
     for one in select oid from pg_class where relpersistence = 'u' and relkind = 'r' loop \
     execute format('select count(*) from %s', one) into found; \
     if found <> 0 then raise 'rows in %', one; end if; \
     execute format('insert into %s (id, n, body, list, span, place) \
     select g, g, g::text, array[g], int4range(g, g + 1), point(g, g) from generate_series(1, 100) g', one); \
     end loop; end $$";

/// Rows find room by the free space maps, and vacuum finds its way by the visibility maps.
fn use_it(cluster: &Cluster) {
    let insert = "do $$ declare one regclass; begin \
         for one in select attrelid from pg_attribute join pg_class c on c.oid = attrelid \
         where attname = 'span' and relkind = 'r' loop \
         execute format('insert into %s (id, n, body, list, span, place) \
         select g, g, g::text, array[g], int4range(g, g + 1), point(g, g) from generate_series(1, 100) g', one); \
         end loop; end $$";
    for database in databases(cluster) {
        run_session(
            cluster,
            &database,
            &[insert.to_owned(), "vacuum".to_owned()],
        );
    }
}
