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
use walhalla_postgres::{History, Lsn, SegmentName, WalFileName};

use super::Error;
use crate::archive::proof::{BackupWal, Told, read_backup_wal};
use crate::contents::assembly::Facts;
use crate::contents::manifest::WalRange;
use crate::failure::Failure as _;
use crate::pipeline::Packing;
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
    backup: &Facts,
) -> Result<Option<(Lsn, Timestamp)>, Error> {
    let size = backup.wal_segment_size;
    let WalRange {
        timeline,
        start,
        end: stop,
    } = backup.range;
    let numbers = size.segment_of(start).0..=size.segment_before(stop).0;
    let names: Vec<SegmentName> = numbers
        .map(|number| walhalla_postgres::SegmentNo(number).on(timeline, size))
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
    let shown = read_backup_wal(told(backup), &names, |name, last, show| {
        let path = wal_folder.join(name.to_string());
        read(archiver, &path, *name, backup, last, show)
    });
    match shown {
        Ok(BackupWal { is_own: false, .. }) => Err(Error::NotOwnWal { start, stop }),
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

fn told(backup: &Facts) -> Told {
    let (time, lsn) = backup.replayed;
    Told {
        start: backup.range.start,
        stop: backup.range.end,
        times: backup.times,
        of_standby: backup.of_standby,
        checkpoint: backup.checkpoint_lsn,
        transaction: lsn.zip(time),
    }
}

/// Compares an archived segment, up to the backup's end, with the server's own, if that is still there; returns whether it was.
fn compare(
    archiver: &Archiver,
    path: &Path,
    name: SegmentName,
    backup: &Facts,
) -> Result<bool, Error> {
    let Some(before) = inode(path) else {
        return Ok(false);
    };
    let size = backup.wal_segment_size;
    let stop = backup.range.end;
    let begin = name.number(size).map(|number| number.start(size));
    let needed_bytes = stop.0 - begin.unwrap_or(stop).0;
    let file = WalFileName::Segment(name);
    let compared = if needed_bytes < size.bytes() {
        match archiver.has_begin(path, name, needed_bytes) {
            // Without the identity a digest of the whole may tell; the end of a standby's file is where the stream is.
            Ok(false) if backup.of_standby != Some(true) => archiver.is_archived(path, file, None),
            compared => compared,
        }
    } else {
        archiver.is_archived(path, file, None)
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
    backup: &Facts,
    last: Option<ReadSegment>,
    show: &mut dyn FnMut(&Cluster, &Record),
) -> Result<ReadSegment, wal::Error> {
    let history = History {
        timeline: backup.range.timeline,
        ancestors: backup.history.clone(),
    };
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
