//! Databases that were copied from and removed while a backup ran.
//!
//! `ALTER DATABASE … SET TABLESPACE`, and `CREATE DATABASE` by copies of files, have one record in the WAL, which replay
//! repeats: it copies the folder. Where that was removed during the backup (`DROP DATABASE` of the template) its files may
//! not be in it, and replay would make an empty database without a word (dbcommands.c, `dbase_redo`). PostgreSQL's own base
//! backups have the same fault.

use std::path::{Path, PathBuf};

use walhalla_postgres::summary::Note;
use walhalla_postgres::wal::event::Event;

use super::Error;
use super::request::Backup;
use crate::archive::{Archive, Reading};
use crate::failure::Failure as _;
use crate::repository::BackupEntry;
use crate::server::data_directory::Entry;

/// `DEFAULTTABLESPACE_OID` (pg_tablespace.dat).
const DEFAULT_TABLESPACE: u32 = 1663;

/// A database's folder, and what WAL calls it.
#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
    /// OIDs of the database and its tablespace.
    oids: (u32, u32),
}

/// The databases whose folders are among the directories.
pub(super) fn databases(directories: &[Entry]) -> Vec<Database> {
    let database = |directory: &Entry| {
        let oids = oids(&directory.path)?;
        let path = directory.path.clone();
        Some(Database { path, oids })
    };
    directories.iter().filter_map(database).collect()
}

/// `base/OID`, `pg_tblspc/OID/PG_…/OID`.
fn oids(path: &Path) -> Option<(u32, u32)> {
    let parts: Vec<&str> = path
        .iter()
        .map(|part| part.to_str())
        .collect::<Option<_>>()?;
    match parts.as_slice() {
        ["base", database] => Some((database.parse().ok()?, DEFAULT_TABLESPACE)),
        ["pg_tblspc", tablespace, _, database] => {
            Some((database.parse().ok()?, tablespace.parse().ok()?))
        }
        _ => None,
    }
}

impl Backup<'_> {
    /// Refuses a backup whose replay would copy a database that was removed while it ran. `before` are the databases that
    /// there were at its start; its WAL is archived. Without the identity each one that is gone counts.
    ///
    /// # Errors
    /// [`Error::MovedDatabase`]; those of reading summaries.
    pub(super) fn check_databases(
        &self,
        before: &[Database],
        entry: &BackupEntry,
    ) -> Result<(), Error> {
        let is_gone = |database: &&Database| !self.pgdata.join(&database.path).exists();
        let gone: Vec<&Database> = before.iter().filter(is_gone).collect();
        let Some(first) = gone.first() else {
            return Ok(());
        };
        let notes = match self.notes(entry) {
            Ok(notes) => notes,
            Err(error) if error.is_locked() => return Err(Error::MovedDatabase(first.oids.0)),
            Err(error) => return Err(error.into()),
        };
        match gone.iter().find(|database| is_lost(&notes, database.oids)) {
            Some(database) => Err(Error::MovedDatabase(database.oids.0)),
            None => Ok(()),
        }
    }

    /// What the backup's own WAL tells of databases.
    pub(super) fn notes(&self, entry: &BackupEntry) -> Result<Vec<Note>, crate::wal::Error> {
        let reading = Reading {
            threads: self.options.threads,
            show: self.options.show,
        };
        let archive = Archive::new(self.repository, std::slice::from_ref(entry), reading)?;
        let (size, history) = (entry.wal_segment_size, entry.timeline_history());
        let route = archive.route(&history, size, size.segment_of(entry.start_lsn))?;
        let own = route.stretch.to(size.segment_before(entry.stop_lsn));
        let mut notes = Vec::new();
        archive.walk(&own, |_, resolved| {
            let own = resolved.summary.notes.into_iter();
            notes.extend(own.filter(|note| (entry.start_lsn..entry.stop_lsn).contains(&note.lsn)));
            Ok::<_, crate::wal::Error>(true)
        })?;
        Ok(notes)
    }
}

/// A database that was copied by its files, and then removed.
pub(super) fn lost_database(notes: &[Note]) -> Option<u32> {
    let mut copied = notes.iter().filter_map(|note| match &note.event {
        Event::DatabaseCreated { copy_of, .. } => *copy_of,
        _ => None,
    });
    copied.find(|oids| is_lost(notes, *oids)).map(|oids| oids.0)
}

/// Whether the database was copied by its files, and then removed.
fn is_lost(notes: &[Note], (database, tablespace): (u32, u32)) -> bool {
    let mut later = notes.iter().skip_while(|note| {
        !matches!(&note.event, Event::DatabaseCreated { copy_of: Some(of), .. } if *of == (database, tablespace))
    });
    later.any(|note| {
        matches!(&note.event, Event::DatabaseDropped { database: dropped, tablespaces }
            if *dropped == database && tablespaces.contains(&tablespace))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhalla_postgres::Lsn;

    fn note(event: Event) -> Note {
        Note {
            lsn: Lsn(1),
            xid: 0,
            event,
        }
    }

    #[test]
    fn a_database_that_was_copied_and_then_removed_is_lost() {
        let copied = note(Event::DatabaseCreated {
            database: 7,
            tablespace: 1663,
            copy_of: Some((5, 1663)),
        });
        let dropped = |database, tablespace| {
            note(Event::DatabaseDropped {
                database,
                tablespaces: vec![tablespace],
            })
        };
        let lost = |notes: &[Note]| is_lost(notes, (5, 1663));
        assert!(lost(&[copied.clone(), dropped(5, 1663)]));
        assert!(!lost(&[dropped(5, 1663), copied.clone()]), "removed before");
        assert!(!lost(&[copied.clone(), dropped(5, 1700)]), "elsewhere");
        assert!(!lost(&[copied, dropped(6, 1663)]), "another");
        assert!(!lost(&[dropped(5, 1663)]), "never copied");
    }

    #[test]
    fn folders_of_databases_are_told_by_their_paths() {
        assert_eq!(oids(Path::new("base/5")), Some((5, 1663)));
        let path = Path::new("pg_tblspc/16400/PG_17_202406281/5");
        assert_eq!(oids(path), Some((5, 16400)));
        assert_eq!(oids(Path::new("base/pgsql_tmp")), None);
        assert_eq!(oids(Path::new("global")), None);
    }
}
