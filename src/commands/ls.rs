//! `walhalla ls`

use jiff::Timestamp;
use serde::Serialize;
use walhalla_postgres::WalFileName;
use walhalla_providers::{ObjectInfo, ObjectKey};

use super::{Context, Outcome};
use crate::cli::Ls;
use crate::error::Error;
use crate::output;
use crate::output::look::{bytes, counted, time};
use crate::output::table::{Table, number, text};
use crate::repository::Layout;
use crate::repository::layout::{BackupObject, Key, TailObject, TailPart};
use crate::repository::marks::Permanence;
use crate::repository::owed::Owed;
use crate::session::StoreSession;

/// Rows that one table holds: a store may have a million objects, and the first of them are shown at once.
const ROWS_AT_ONCE: usize = 1000;

/// A row of `ls --json`.
#[derive(Serialize)]
struct Row {
    /// The key of an object, or a folder with a slash at its end.
    key: String,
    size_bytes: Option<u64>,
    modified: Option<Timestamp>,
    what: String,
}

/// How many objects were listed.
#[derive(Default)]
struct Sum {
    folders: u64,
    objects: u64,
    bytes: u64,
}

pub(super) fn run(context: &Context, arguments: &Ls) -> Result<Outcome, Error> {
    let session = context.session()?;
    let prefix = arguments.prefix.trim_start_matches('/');
    let mut listing = Listing {
        is_json: context.global.json,
        all: Vec::new(),
        sum: Sum::default(),
        prefix,
    };
    if arguments.recursive {
        listing.objects(&session, prefix)?;
    } else {
        listing.level(&session, &as_folder(prefix))?;
    }
    listing.end()?;
    Ok(Outcome::Done)
}

/// A prefix of whole names: `wal` means `wal/`.
fn as_folder(prefix: &str) -> String {
    if prefix.is_empty() || prefix.ends_with('/') {
        prefix.to_owned()
    } else {
        format!("{prefix}/")
    }
}

struct Listing<'a> {
    is_json: bool,
    all: Vec<Row>,
    sum: Sum,
    prefix: &'a str,
}

impl Listing<'_> {
    /// One level: folders, and the objects beside them.
    fn level(&mut self, session: &StoreSession, folder: &str) -> Result<(), Error> {
        let mut pages = session.level(folder);
        while let Some(page) = session.wait(pages.next_page())? {
            for key in page.folders {
                let name = key.strip_prefix(folder).unwrap_or(&key);
                let what = folder_in_words(folder, name.trim_end_matches('/')).to_owned();
                self.sum.folders += 1;
                self.add(Row {
                    key,
                    size_bytes: None,
                    modified: None,
                    what,
                })?;
            }
            for info in &page.objects {
                self.object(info)?;
            }
        }
        Ok(())
    }

    /// Every object whose key begins with a prefix.
    fn objects(&mut self, session: &StoreSession, prefix: &str) -> Result<(), Error> {
        let mut pages = session.pages(prefix, None);
        while let Some(page) = session.wait(pages.next_page())? {
            for info in &page.objects {
                self.object(info)?;
            }
        }
        Ok(())
    }

    fn object(&mut self, info: &ObjectInfo) -> Result<(), Error> {
        self.sum.objects += 1;
        self.sum.bytes += info.size_bytes;
        self.add(Row {
            key: info.key.to_string(),
            size_bytes: Some(info.size_bytes),
            modified: Some(info.modified),
            what: in_words(&info.key),
        })
    }

    fn add(&mut self, row: Row) -> Result<(), Error> {
        self.all.push(row);
        if !self.is_json && self.all.len() == ROWS_AT_ONCE {
            self.print()?;
        }
        Ok(())
    }

    fn print(&mut self) -> Result<(), output::Error> {
        let mut table = Table::new(&[
            number("SIZE", 0),
            text("STORED", 2),
            text("WHAT", 1),
            text("KEY", 0),
        ]);
        for row in self.all.drain(..) {
            table.row([
                row.size_bytes.map_or_else(|| "-".to_owned(), bytes),
                row.modified.map_or_else(|| "-".to_owned(), time),
                row.what,
                row.key,
            ]);
        }
        table.print()
    }

    fn end(mut self) -> Result<(), output::Error> {
        if self.is_json {
            return output::json(&self.all);
        }
        if !self.all.is_empty() {
            self.print()?;
        }
        let Sum {
            folders,
            objects,
            bytes: stored,
        } = self.sum;
        output::line(&match (folders, objects) {
            (0, 0) => format!("nothing begins with {:?}", self.prefix),
            (_, 0) => counted(folders, "folder"),
            (0, _) => format!("{}, {}", counted(objects, "object"), bytes(stored)),
            (_, _) => format!(
                "{} and {}, {}",
                counted(folders, "folder"),
                counted(objects, "object"),
                bytes(stored)
            ),
        })
    }
}

/// What is in a folder.
fn folder_in_words(parent: &str, name: &str) -> &'static str {
    let depth = parent.split('/').filter(|it| !it.is_empty()).count();
    let kind = parent.split('/').nth(1).unwrap_or_default();
    match (depth, kind, name) {
        (0, _, "walhalla-check") => "left by a check; can be deleted",
        (0, _, name) if name.parse::<walhalla_postgres::SystemIdentifier>().is_ok() => "a cluster",
        (1, _, "wal") => "archived WAL, by timeline",
        (1, _, "summary") => "summaries of WAL, by timeline",
        (1, _, "backups") => "base backups",
        (1, _, "claims") => "ids of backups that are taken",
        (1, _, "marks") => "which backups are permanent",
        (1, _, "gaps") => "segments that were dropped",
        (1, _, "leases") => "what runs now",
        (1, _, "deletions") => "what was deleted",
        (1, _, "owed") => "what a mirror is owed",
        (1, _, "reports") => "how verifications and drills ended",
        (2, "wal" | "summary", _) => "a timeline",
        (2, "backups", _) => "a backup",
        (3, "backups", "base") => "parts of the backup",
        (3, "wal", _) => "a segment that was not finished",
        _ => "",
    }
}

/// What an object is.
fn in_words(key: &ObjectKey) -> String {
    let cluster = key
        .as_str()
        .split('/')
        .next()
        .and_then(|name| name.parse().ok());
    let Some(cluster) = cluster else {
        return String::new();
    };
    match Layout::new(cluster).parse(key) {
        Key::Wal(file, _) => match file {
            WalFileName::Segment(_) => "WAL segment".to_owned(),
            WalFileName::Partial(..) => "unfinished WAL segment".to_owned(),
            WalFileName::History(_) => "history of a timeline".to_owned(),
            WalFileName::BackupHistory(..) => "backup history file".to_owned(),
        },
        Key::Summary(..) => "summary of a WAL segment".to_owned(),
        Key::Tail(TailObject { part, .. }, _) => match part {
            TailPart::Log => "received begin of a WAL segment".to_owned(),
            TailPart::Piece(..) => "received piece of a WAL segment".to_owned(),
        },
        Key::Backup(_, object) => match object {
            BackupObject::Entry => "entry of a backup".to_owned(),
            BackupObject::Manifest(_) => "manifest of a backup".to_owned(),
            BackupObject::Index(_) => "index of a backup".to_owned(),
            BackupObject::Relations(_) => "list of a backup's relations".to_owned(),
            BackupObject::Part(..) => "part of a backup".to_owned(),
        },
        Key::Claim(_) => "claim of a backup's id".to_owned(),
        Key::Mark(id, mark) => match mark.permanence {
            Permanence::Permanent => format!("{id} is permanent"),
            Permanence::Impermanent => format!("{id} is not permanent"),
        },
        Key::Gap(_) => "record of dropped segments".to_owned(),
        Key::Lease(..) => "lease".to_owned(),
        Key::Deletion(_) => "record of a deletion".to_owned(),
        Key::Owed(_, owed) => match owed {
            Owed::Wal(_) => "WAL file owed to a mirror".to_owned(),
            Owed::Backup(_) => "backup owed to a mirror".to_owned(),
        },
        Key::Report(kind, _) => format!("report of {kind}"),
        Key::Foreign(_) => "not Walhalla's".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(key: &str) -> String {
        in_words(&ObjectKey::new(key).unwrap())
    }

    #[test]
    fn each_object_is_named_by_what_it_is() {
        let cluster = "7443178563127885315";
        for (key, expected) in [
            ("wal/00000001/00000001000000000000002A.lz4", "WAL segment"),
            ("wal/00000002/00000002.history.lz4", "history of a timeline"),
            (
                "backups/20261130T104000Z-F/backup.json",
                "entry of a backup",
            ),
            (
                "backups/20261130T104000Z-F/base/00001.tar.lz4",
                "part of a backup",
            ),
            ("wal/00000001/other", "not Walhalla's"),
        ] {
            assert_eq!(what(&format!("{cluster}/{key}")), expected, "{key}");
        }
        assert_eq!(what("elsewhere/file"), "");
    }

    #[test]
    fn folders_are_named_by_what_is_in_them() {
        assert_eq!(folder_in_words("", "7443178563127885315"), "a cluster");
        assert_eq!(
            folder_in_words("7443178563127885315/", "wal"),
            "archived WAL, by timeline"
        );
        assert_eq!(
            folder_in_words("7443178563127885315/wal/", "00000001"),
            "a timeline"
        );
    }
}
