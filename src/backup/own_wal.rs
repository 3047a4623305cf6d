//! Whether the archived WAL of a backup is that of the server that was backed up.
//!
//! Another server of the same identity may have archived segments of the same names first. So what is archived is compared
//! with what is in `pg_wal` while it is there, and a record in it must name the backup ([`Proof`]).

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use jiff::Timestamp;
use walhalla_postgres::summary::Note;
use walhalla_postgres::wal::event::{Event, event};
use walhalla_postgres::wal::reader::Record;
use walhalla_postgres::wal::segment_check::{Cluster, SegmentCheck};
use walhalla_postgres::{Lsn, SegmentName, WalFileName};

use super::Error;
use crate::archive::proof::Proof;
use crate::failure::Failure as _;
use crate::pipeline::Packing;
use crate::repository::BackupEntry;
use crate::wal::archiver::Archiver;
use crate::wal::{self, segment};

/// How many segments from the start and up to the end are compared. The server archives in order, so the last ones speak
/// for those before; `pg_wal` keeps few.
const COMPARED: usize = 32;

/// Refuses WAL of another server under the names of the backup's segments, which are in the archive. Returns where the last
/// transaction in a standby's backup ended, and when, as far as that can be read here.
///
/// # Errors
/// [`Error::Wal`] where an archived segment differs from the server's own, or where a primary's last one could neither be
/// compared nor read; [`Error::NotOwnWal`] where no record names the backup.
pub(super) fn check(
    archiver: &Archiver,
    wal_folder: &Path,
    backup: &BackupEntry,
) -> Result<Option<(Lsn, Timestamp)>, Error> {
    let size = backup.wal_segment_size;
    let numbers = size.segment_of(backup.start_lsn).0..=size.segment_before(backup.stop_lsn).0;
    let names: Vec<SegmentName> = numbers
        .map(|number| walhalla_postgres::SegmentNo(number).on(backup.timeline, size))
        .collect();
    let of_standby = backup.of_standby == Some(true);
    let mut is_last_compared = false;
    let first_of_the_last = names.len().saturating_sub(COMPARED);
    for (index, name) in names.iter().enumerate() {
        if index < COMPARED || index >= first_of_the_last {
            let path = wal_folder.join(name.to_string());
            is_last_compared = compare(archiver, &path, *name, backup)?;
        }
    }
    match names_backup(archiver, wal_folder, backup, &names) {
        Ok((false, _)) => Err(Error::NotOwnWal {
            start: backup.start_lsn,
            stop: backup.stop_lsn,
        }),
        Ok((true, last)) => Ok(last.filter(|_| of_standby)),
        // Without the identity, the comparison of the last segment speaks for those that have left `pg_wal`.
        Err(error) if error.is_locked() && is_last_compared => Ok(None),
        Err(error) if error.is_locked() && of_standby => {
            tracing::warn!(
                "without an identity it cannot be seen here whether the archived WAL is that of this standby's primary: \
                 run `walhalla verify` where the identity is"
            );
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Compares an archived segment with the server's own, if that is still there; returns whether it was. Of a standby's, which
/// may end where the stream is, what it had replayed at the backup's end is compared.
fn compare(
    archiver: &Archiver,
    path: &Path,
    name: SegmentName,
    backup: &BackupEntry,
) -> Result<bool, Error> {
    let Some(before) = inode(path) else {
        return Ok(false);
    };
    let size = backup.wal_segment_size;
    let begin = name.number(size).map(|number| number.start(size));
    let known_bytes = backup.stop_lsn.0 - begin.unwrap_or(backup.stop_lsn).0;
    let compared = if backup.of_standby == Some(true) && known_bytes < size.bytes() {
        archiver.has_begin(path, name, known_bytes)
    } else {
        archiver.is_archived(path, WalFileName::Segment(name), None)
    };
    // The server may have given the file to a later segment meanwhile.
    if inode(path) != Some(before) {
        return Ok(false);
    }
    match compared {
        Err(error) if error.is_locked() => Ok(false),
        compared => Ok(compared?),
    }
}

fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|metadata| metadata.ino())
}

/// Whether records from the backup's start to its end name it, and the last transaction that ended before its end. Segments
/// in the middle are not read.
fn names_backup(
    archiver: &Archiver,
    wal_folder: &Path,
    backup: &BackupEntry,
    names: &[SegmentName],
) -> Result<(bool, Option<(Lsn, Timestamp)>), wal::Error> {
    let mut proof = Proof::of(backup);
    let (mut last, mut transaction): (Option<SegmentCheck>, _) = (None, None);
    // A record may run from the one before the last into the last.
    let end = names.len().saturating_sub(2);
    for (index, name) in names.iter().enumerate() {
        if proof.has_begun() && index < end {
            // The last one may be in what is not read.
            (last, transaction) = (None, None);
            continue;
        }
        let path = wal_folder.join(name.to_string());
        let see = |note: &Note| {
            proof.see(note);
            if let Event::TransactionEnd(end) = &note.event
                && note.lsn < backup.stop_lsn
            {
                transaction = Some((note.lsn, end.time));
            }
        };
        last = Some(read(archiver, &path, *name, backup, last.take(), see)?);
    }
    Ok((proof.holds(), transaction))
}

/// Reads a segment from `pg_wal` or, where it is not there any more or is a standby's, from the archive.
fn read(
    archiver: &Archiver,
    path: &Path,
    name: SegmentName,
    backup: &BackupEntry,
    last: Option<SegmentCheck>,
    mut show: impl FnMut(&Note),
) -> Result<SegmentCheck, wal::Error> {
    let history = backup.timeline_history();
    let version = backup.postgres_version;
    let mut see = |record: &Record| {
        if let Ok(Some(event)) = event(record, version) {
            let (lsn, xid) = (record.start, record.header.xid);
            show(&Note { lsn, xid, event });
        }
    };
    if backup.of_standby != Some(true) && path.exists() {
        let cluster = Cluster::from(archiver.control);
        return segment::read_local(path, cluster, name, &history, last, None, see);
    }
    let file = WalFileName::Segment(name);
    let repository = archiver.repository;
    let Some(found) = repository.find_wal(file)? else {
        let archive = repository.url(&repository.layout.wal(file, Packing::NONE).key);
        return Err(wal::Error::NotArchived { file, archive });
    };
    let show = |_: &Cluster, record: &Record| see(record);
    segment::read(repository, name, &found, &history, last, show)
}
