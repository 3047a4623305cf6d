//! `walhalla find`

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use serde::Serialize;
use walhalla_postgres::SegmentNo;
use walhalla_postgres::wal::event::Outcome as End;
use walhalla_postgres::wal::record::RelationFiles;

use super::{Context, Outcome};
use crate::archive::{Archive, Tails};
use crate::cli;
use crate::error::Error;
use crate::find::{Find, Query, Relation, Relations, What, find};
use crate::output::{self, look};
use crate::repository::{BackupEntry, BackupId};
use crate::restore::target::shell_bytes;
use crate::restore::window::{usable_end, windows};

/// The directory that printed restore commands make, if none is named.
pub(super) const INTO: &str = "restored";
/// Relations that a line of text names; JSON has all.
const SHOWN_RELATIONS: usize = 3;

/// What makes the restored cluster a copy to look at. While recovery pauses just before a `DROP` commits, its lock keeps
/// everybody from the table, which a promotion ends; and the copy must not archive as if it went on for the original.
const COPY: &str = "--target-action promote --archive-mode off";

/// A row of `find --json`.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    kind: &'static str,
    time: Option<jiff::Timestamp>,
    lsn: walhalla_postgres::Lsn,
    xid: u32,
    timeline: u32,
    segment: walhalla_postgres::SegmentName,
    detail: String,
    relations: Vec<Relation>,
    wal_bytes: Option<u64>,
    restore_before: Option<String>,
}

/// What is printed besides what was found: the directory that restore commands make, and the cluster that they name.
#[derive(Clone, Copy)]
pub(super) struct Printed<'a> {
    pub(super) into: &'a Path,
    pub(super) cluster: &'a cli::Cluster,
}

pub(super) fn run(context: &Context, arguments: &cli::Find) -> Result<Outcome, Error> {
    let repository = context.repository(&arguments.cluster)?;
    repository.must_be_known()?;
    let printed = Printed {
        into: &arguments.into,
        cluster: &arguments.cluster,
    };
    let backups = repository.usable_backups()?;
    let archive = Archive::new(&repository, &backups, context.reading())?.with_tails(Tails::Used);
    let query = Query::from(arguments);
    let rows = rows(context, &archive, &backups, &query, printed)?;
    if context.global.json {
        output::json(&rows)?;
    } else if rows.is_empty() {
        output::line("nothing of that kind is in the archive")?;
    }
    if !context.global.json {
        rows.iter().try_for_each(print)?;
        print_end(&archive, &backups)?;
    }
    Ok(Outcome::Done)
}

/// Says up to when the archive knows anything: what was done a minute ago may be on its way.
fn print_end(archive: &Archive, backups: &[BackupEntry]) -> Result<(), Error> {
    let ends = windows(archive, backups)?;
    if let Some(end) = ends.iter().filter_map(|window| window.to).max() {
        let newest = backups.iter().max_by_key(|backup| backup.stop_time);
        let switch = newest.map_or("pg_switch_wal()", |newest| {
            newest.postgres_version.segment_switch()
        });
        output::line(&format!(
            "the newest commit in the archive is of {}; for what happened later, run SELECT {switch} on the server, and look again",
            look::time(end)
        ))?;
    }
    Ok(())
}

/// What happened, oldest first.
pub(super) fn rows(
    context: &Context,
    archive: &Archive,
    backups: &[BackupEntry],
    query: &Query,
    printed: Printed,
) -> Result<Vec<Row>, Error> {
    let finds = find(archive, backups, query)?;
    let relations = Relations::new(archive.repository, backups);
    let commands = Commands {
        front: front(context, printed),
        beside: beside(printed.into)?,
        archive,
        ends: RefCell::default(),
    };
    let rows = finds.iter().map(|find| row(find, &relations, &commands));
    rows.collect()
}

impl From<&cli::Find> for Query {
    fn from(arguments: &cli::Find) -> Self {
        Self {
            dropped: arguments.dropped,
            truncated: arguments.truncated,
            restore_points: arguments.restore_points,
            xid: arguments.xid,
            from: arguments.from,
            to: arguments.to,
        }
    }
}

/// The directory for the tablespaces of a copy in `into`: beside it, as PostgreSQL wants none within.
pub(super) fn beside(into: &Path) -> Result<PathBuf, Error> {
    let mut path = super::absolute(into)?.into_os_string();
    path.push(".tablespaces");
    Ok(path.into())
}

/// What a restore command begins with, so that it runs as it is printed.
pub(super) fn front(context: &Context, printed: Printed) -> String {
    let program = std::env::args_os().next();
    let mut words: Vec<OsString> = vec![program.unwrap_or_else(|| "walhalla".into())];
    if let Some(config) = &context.global.config {
        words.extend(["--config".into(), config.into()]);
    }
    if let Some(store) = &context.global.store {
        words.extend(["--store".into(), store.into()]);
    }
    words.extend(["restore".into(), printed.into.into()]);
    if let Some(cluster) = printed.cluster.system_identifier {
        words.extend(["--system-identifier".into(), cluster.to_string().into()]);
    }
    let quoted: Vec<String> = words
        .iter()
        .map(|word| shell_bytes(word.as_bytes()))
        .collect();
    quoted.join(" ")
}

fn row(find: &Find, relations: &Relations, commands: &Commands) -> Result<Row, Error> {
    let described = described(find, relations);
    let backup = relations.backup_before(&find.history, find.lsn);
    let restore_before = backup
        .map(|backup| commands.before(find, backup))
        .transpose()?;
    Ok(Row {
        kind: kind(&find.what),
        time: find.time,
        lsn: find.lsn,
        xid: find.xid,
        timeline: find.timeline,
        segment: find.segment,
        detail: detail(find, &described, relations),
        relations: described,
        wal_bytes: match find.what {
            What::End(_, bytes) => Some(bytes),
            _ => None,
        },
        restore_before: restore_before.flatten(),
    })
}

/// Options that put each tablespace of the backup beside the copy: the original's places are in use as a rule.
pub(super) fn tablespaces(backup: &BackupEntry, beside: &Path) -> String {
    let options = backup.tablespaces.iter().map(|tablespace| {
        let place = beside.join(tablespace.oid.to_string());
        let option = [
            format!("{}=", tablespace.oid).as_bytes(),
            place.as_os_str().as_bytes(),
        ]
        .concat();
        format!(" --tablespace-map {}", shell_bytes(&option))
    });
    options.collect()
}

/// Restore commands for finds.
struct Commands<'a> {
    /// What each begins with.
    front: String,
    /// Where tablespaces of the copy go.
    beside: PathBuf,
    archive: &'a Archive<'a>,
    /// The last segment that each backup reaches on a timeline.
    ends: RefCell<HashMap<(BackupId, u32), Option<SegmentNo>>>,
}

impl Commands<'_> {
    /// The command that stops just before a find, if the WAL from `backup` to there is whole.
    fn before(&self, find: &Find, backup: &BackupEntry) -> Result<Option<String>, Error> {
        let size = backup.wal_segment_size;
        let key = (backup.id.clone(), find.timeline);
        let known = self.ends.borrow().get(&key).copied();
        let end = if let Some(end) = known {
            end
        } else {
            let end = usable_end(self.archive, backup, &find.history)?;
            self.ends.borrow_mut().insert(key, end);
            end
        };
        let is_whole = end >= find.segment.number(size);
        let target = target_before(find, backup).filter(|_| is_whole);
        Ok(target.map(|target| {
            format!(
                "{} {target} --target-timeline {}{} {COPY}",
                self.front,
                find.timeline,
                tablespaces(backup, &self.beside)
            )
        }))
    }
}

/// The options that stop just before a find. Before 10 PostgreSQL stops at no LSN, but before the end of a transaction.
fn target_before(find: &Find, backup: &BackupEntry) -> Option<String> {
    if backup.postgres_version.has_lsn_target() {
        return Some(format!("--target-lsn {} --target-exclusive", find.lsn));
    }
    match &find.what {
        // A database's files go before its transaction ends, and a cut is no transaction's.
        What::DropDatabase(_) | What::Cut(..) => None,
        What::RestorePoint(name) => Some(format!("--target-name {}", shell_bytes(name.as_bytes()))),
        What::Drop(_) | What::Truncate(_) | What::Rewrite(_) | What::End(..) => {
            Some(format!("--target-xid {} --target-exclusive", find.xid))
        }
    }
}

fn kind(what: &What) -> &'static str {
    match what {
        What::Drop(_) => "drop",
        What::Truncate(_) => "truncate",
        What::Rewrite(_) => "rewrite",
        What::Cut(..) => "cut",
        What::DropDatabase(_) => "drop_database",
        What::RestorePoint(_) => "restore_point",
        What::End(End::Committed, _) => "commit",
        What::End(End::Aborted, _) => "abort",
    }
}

/// The relations that a row is about: tables first, then the largest.
fn described(find: &Find, relations: &Relations) -> Vec<Relation> {
    let files: &[RelationFiles] = match &find.what {
        What::Drop(files) | What::Truncate(files) | What::Rewrite(files) => files,
        What::Cut(files, _) => std::slice::from_ref(files),
        What::DropDatabase(_) | What::RestorePoint(_) | What::End(..) => &[],
    };
    let describe = |files: &RelationFiles| relations.relation(*files, &find.history, find.lsn);
    let mut described: Vec<Relation> = files.iter().map(describe).collect();
    described.sort_by_key(|relation| {
        (
            !relation.is_table(),
            std::cmp::Reverse(relation.size_bytes),
            relation.files,
        )
    });
    described
}

fn detail(find: &Find, described: &[Relation], relations: &Relations) -> String {
    match &find.what {
        What::Drop(_) => format!("dropped {}", list(described)),
        What::Truncate(_) => format!("truncated or reindexed {}", list(described)),
        What::Rewrite(_) => format!(
            "rewritten, or dropped with others created: {}",
            list(described)
        ),
        What::Cut(_, blocks) => format!("cut to {blocks} blocks: {}", list(described)),
        What::DropDatabase(database) => {
            let name = relations.database(*database, &find.history, find.lsn);
            let name = name.map_or_else(String::new, |name| format!(" {name}"));
            // The drop marks the row before it begins, and nobody can connect to a database so marked (dbcommands.c, `dropdb`).
            format!(
                "dropped database{name} ({database}); to open it in the copy: \
                 update pg_database set datconnlimit = -1 where oid = {database}"
            )
        }
        What::RestorePoint(name) => format!("restore point {name}"),
        What::End(End::Committed, bytes) => format!("committed, {} of WAL", HumanBytes(*bytes)),
        What::End(End::Aborted, bytes) => format!("rolled back, {} of WAL", HumanBytes(*bytes)),
    }
}

fn list(relations: &[Relation]) -> String {
    // With --wide there is no limit to a line.
    let most = look::columns().map_or(usize::MAX, |_| SHOWN_RELATIONS);
    let shown: Vec<String> = relations.iter().take(most).map(one).collect();
    let more = relations.len().saturating_sub(shown.len());
    let more = if more == 0 {
        String::new()
    } else {
        format!(" and {more} more")
    };
    format!("{}{more}", shown.join(", "))
}

/// `table public.orders in app (1663/16384/16390, 12 MiB)`
fn one(relation: &Relation) -> String {
    let mut text = match (relation.kind, &relation.name) {
        (Some(kind), Some(name)) => {
            let schema = relation.schema.as_ref().map(|schema| format!("{schema}."));
            format!("{kind} {}{name} ", schema.unwrap_or_default())
        }
        // It was created after the last backup before, which knows no name of it.
        _ => "a relation without a known name ".to_owned(),
    };
    if let Some(database) = &relation.database {
        text = format!("{text}in {database} ");
    }
    let size = relation
        .size_bytes
        .map(|bytes| format!(", {}", HumanBytes(bytes)));
    format!("{text}({}{})", relation.files, size.unwrap_or_default())
}

fn print(row: &Row) -> Result<(), output::Error> {
    let time = row.time.map_or_else(|| "-".to_owned(), look::precise_time);
    // A restore point is of no transaction.
    let xid = (row.xid != 0).then(|| format!("xid {}, ", row.xid));
    output::line(&format!(
        "{time}  {} (LSN {}, {}timeline {})",
        row.detail,
        row.lsn,
        xid.unwrap_or_default(),
        row.timeline
    ))?;
    match &row.restore_before {
        Some(command) => output::line(&format!("    before it: {command}")),
        None => output::line("    before it: no backup reaches it"),
    }
}
