//! Whether the archived WAL of a backup is that of the server that was backed up.
//!
//! Another server of the same identity may have archived segments of the same names first. So what is archived is compared
//! with what is in `pg_wal` while it is there, and a record in it must name the backup ([`read_backup_wal`]).

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use jiff::Timestamp;
use walhalla_postgres::wal::cluster::Cluster;
use walhalla_postgres::wal::reader::Record;
use walhalla_postgres::wal::segment_reader::ReadSegment;
use walhalla_postgres::{Lsn, SegmentName, WalFileName};

use super::Error;
use crate::archive::proof::{BackupWal, read_backup_wal};
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
    let shown = read_backup_wal(backup, &names, |name, last, show| {
        let path = wal_folder.join(name.to_string());
        read(archiver, &path, *name, backup, last, show)
    });
    match shown {
        Ok(BackupWal { is_own: false, .. }) => Err(Error::NotOwnWal {
            start: backup.start_lsn,
            stop: backup.stop_lsn,
        }),
        Ok(shown) => Ok(shown.last_transaction.filter(|_| of_standby)),
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

/// Reads a segment from `pg_wal` or, where it is not there any more or is a standby's, from the archive.
fn read(
    archiver: &Archiver,
    path: &Path,
    name: SegmentName,
    backup: &BackupEntry,
    last: Option<ReadSegment>,
    show: &mut dyn FnMut(&Cluster, &Record),
) -> Result<ReadSegment, wal::Error> {
    let history = backup.timeline_history();
    if backup.of_standby != Some(true) && path.exists() {
        let cluster = archiver.origin.cluster;
        let show = |record: &Record| show(&cluster, record);
        return segment::read_local(path, cluster, name, &history, last, None, show);
    }
    let file = WalFileName::Segment(name);
    let repository = archiver.repository;
    let Some(found) = repository.find_wal(file)? else {
        let archive = repository.url(&repository.layout().wal(file, Packing::NONE).key);
        return Err(wal::Error::NotArchived { file, archive });
    };
    segment::read(repository, name, &found, &history, last, show)
}
