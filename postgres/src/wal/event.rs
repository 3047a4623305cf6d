//! What records mean to recovery and to people: ends of transactions, restore points, checkpoints, relations and
//! databases that come and go.
//!
//! Layouts are those of the headers named at each reader; where versions differ, [`Version`] says how.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::reader::Record;
use super::record::{
    Fork, RM_DBASE, RM_SMGR, RM_TABLESPACE, RM_XACT, RM_XLOG, RecordNotUnderstood, RelationFiles,
    Rest,
};
pub use super::text::ServerText;
use crate::{Limits, Lsn, Version};

/// What a record means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// A transaction committed or aborted.
    #[serde(skip)]
    TransactionEnd(TransactionEnd),
    /// `PREPARE TRANSACTION`: its end comes later, as that of a prepared one.
    #[serde(skip)]
    Prepared {
        /// The transaction.
        xid: u32,
        /// When, by the server's clock.
        time: Timestamp,
    },
    /// A checkpoint ended.
    Checkpoint(Checkpoint),
    /// Recovery ended, without a checkpoint: a promotion.
    EndOfRecovery(TimelineSwitch),
    /// `pg_create_restore_point`.
    RestorePoint {
        /// Its name.
        name: ServerText,
        /// When it was created.
        time: Timestamp,
    },
    /// `pg_backup_stop`: a backup that began at `start` is consistent from here on.
    BackupEnd {
        /// `START WAL LOCATION` of its label.
        start: Lsn,
    },
    /// The server came up with other settings.
    ParameterChange {
        /// `wal_level`; at 0, `minimal`, not all changes are in the WAL that follows.
        wal_level: u32,
        /// What a server that replays the WAL that follows must not be below.
        limits: Limits,
    },
    /// The rest of the segment is unused.
    Switch,
    /// The record at `overwritten` was given up: the WAL had ended within it.
    Overwrite {
        /// Where it began.
        overwritten: Lsn,
    },
    /// A relation's fork was created, empty.
    RelationCreated {
        /// The relation.
        relation: RelationFiles,
        /// The fork.
        fork: Fork,
    },
    /// A relation was cut.
    RelationTruncated(Truncation),
    /// A database was created.
    DatabaseCreated {
        /// Its OID.
        database: u32,
        /// OID of the tablespace it is in.
        tablespace: u32,
        /// The database whose files were copied, without a record of each block; `None` when each block has one.
        copy_of: Option<(u32, u32)>,
    },
    /// A database was dropped from tablespaces.
    DatabaseDropped {
        /// Its OID.
        database: u32,
        /// OIDs of the tablespaces.
        tablespaces: Vec<u32>,
    },
    /// A tablespace was created. Replay makes it at the same location again, wherever the cluster is restored.
    TablespaceCreated {
        /// Its OID.
        tablespace: u32,
        /// Where it is; empty of one inside the data directory (`allow_in_place_tablespaces`).
        location: ServerText,
    },
    /// A tablespace was dropped.
    TablespaceDropped {
        /// Its OID.
        tablespace: u32,
    },
}

/// The end of a transaction (xact.h, `xl_xact_commit` and `xl_xact_abort`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionEnd {
    /// Its number; of a prepared one, its own.
    pub xid: u32,
    /// By the server's clock.
    pub time: Timestamp,
    /// Commit or abort.
    pub outcome: Outcome,
    /// Its database and the tablespace of that; recorded at `wal_level = logical`, and with invalidations.
    pub database: Option<(u32, u32)>,
    /// Its subtransactions that ended with it.
    pub subtransactions: Vec<u32>,
    /// Relations whose files go with it.
    pub dropped: Vec<RelationFiles>,
    /// Number of cache invalidation messages.
    pub invalidations: u32,
    /// Whether it was prepared, with the name that it was given (recorded from 11 on, at `wal_level = logical`).
    pub prepared: Option<Option<String>>,
    /// Where a replicated one committed on its origin, and when.
    pub origin: Option<(Lsn, Timestamp)>,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It committed.
    Committed,
    /// It was rolled back.
    Aborted,
}

/// A checkpoint (pg_control.h, `CheckPoint`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Where replay begins after it.
    pub redo: Lsn,
    /// Timeline, and the one before if this checkpoint began it.
    pub timelines: TimelineSwitch,
    /// Whether the server was shut down with it, or came up.
    pub is_shutdown: bool,
    /// The next transaction's number.
    pub next_xid: u32,
}

/// The timeline that a record is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineSwitch {
    /// By the server's clock.
    pub time: Timestamp,
    /// `ThisTimeLineID`
    pub timeline: u32,
    /// `PrevTimeLineID`, another one where the timeline begins.
    pub previous: u32,
}

/// `xl_smgr_truncate` (storage_xlog.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Truncation {
    /// The relation.
    pub relation: RelationFiles,
    /// Blocks of the main fork that are left.
    pub blocks: u32,
    /// Whether the main fork was cut.
    pub main: bool,
    /// Whether the visibility map was.
    pub visibility_map: bool,
    /// Whether the free space map was.
    pub free_space_map: bool,
}

/// Microseconds from 1970 to PostgreSQL's epoch, 2000-01-01.
const EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;
/// `MAXFNAMELEN`
const NAME_BYTES: usize = 64;

/// What `record` means, if anything.
///
/// # Errors
/// [`RecordNotUnderstood`]: its data is not what its kind has.
pub fn event(record: &Record, version: Version) -> Result<Option<Event>, RecordNotUnderstood> {
    let read = match record.header.resource_manager {
        RM_XLOG => xlog,
        RM_XACT => transaction,
        RM_SMGR => storage,
        RM_DBASE => database,
        RM_TABLESPACE => tablespace,
        _ => return Ok(None),
    };
    read(record, version)
}

/// pg_control.h, `XLOG_*`.
fn xlog(record: &Record, version: Version) -> Result<Option<Event>, RecordNotUnderstood> {
    let data = || Ok(Rest(record.main_data(version)?));
    Ok(Some(match record.header.operation() {
        0x00 => Event::Checkpoint(checkpoint(data()?, true, version)?),
        0x10 => Event::Checkpoint(checkpoint(data()?, false, version)?),
        0x40 => Event::Switch,
        0x50 => Event::BackupEnd {
            start: lsn(&mut data()?)?,
        },
        0x60 => {
            let mut data = data()?;
            let limits = Limits::read(version, || data.u32())?;
            Event::ParameterChange {
                wal_level: data.u32()?,
                limits,
            }
        }
        0x70 => restore_point(data()?)?,
        0x90 => {
            let mut data = data()?;
            Event::EndOfRecovery(TimelineSwitch {
                time: time(data.i64()?)?,
                timeline: data.u32()?,
                previous: data.u32()?,
            })
        }
        0xD0 => Event::Overwrite {
            overwritten: lsn(&mut data()?)?,
        },
        _ => return Ok(None),
    }))
}

fn checkpoint(
    mut data: Rest,
    is_shutdown: bool,
    version: Version,
) -> Result<Checkpoint, RecordNotUnderstood> {
    let redo = lsn(&mut data)?;
    let (timeline, previous) = (data.u32()?, data.u32()?);
    // fullPageWrites, padding or wal_level; from 12 on nextXid has its epoch behind it, before 12 in front of it.
    data.bytes(version.checkpoint_next_xid_offset() - 16)?;
    let next_xid = data.u32()?;
    data.bytes(version.checkpoint_time_offset() - version.checkpoint_next_xid_offset() - 4)?;
    let seconds = data.i64()?;
    Ok(Checkpoint {
        redo,
        timelines: TimelineSwitch {
            time: Timestamp::from_second(seconds).map_err(|_| RecordNotUnderstood::Time)?,
            timeline,
            previous,
        },
        is_shutdown,
        next_xid,
    })
}

/// `xl_restore_point`
fn restore_point(mut data: Rest) -> Result<Event, RecordNotUnderstood> {
    let time = time(data.i64()?)?;
    let name = data.bytes(NAME_BYTES)?.split(|byte| *byte == 0).next();
    Ok(Event::RestorePoint {
        name: ServerText::new(name.unwrap_or_default()),
        time,
    })
}

/// xact.h, `XLOG_XACT_*`; the parts of a commit in their order: xactdesc.c, `ParseCommitRecord` and `ParseAbortRecord`.
fn transaction(record: &Record, version: Version) -> Result<Option<Event>, RecordNotUnderstood> {
    const OPERATION: u8 = 0x70;
    const HAS_INFO: u8 = 0x80;
    let (outcome, is_prepared) = match record.header.info & OPERATION {
        0x00 => (Outcome::Committed, false),
        0x10 => return prepared(record, version).map(Some),
        0x20 => (Outcome::Aborted, false),
        0x30 => (Outcome::Committed, true),
        0x40 => (Outcome::Aborted, true),
        _ => return Ok(None),
    };
    let mut data = Rest(record.main_data(version)?);
    let mut end = TransactionEnd {
        xid: record.header.xid,
        time: time(data.i64()?)?,
        outcome,
        database: None,
        subtransactions: Vec::new(),
        dropped: Vec::new(),
        invalidations: 0,
        prepared: None,
        origin: None,
    };
    if record.header.info & HAS_INFO != 0 {
        parts(&mut end, &mut data, version)?;
    }
    if is_prepared != end.prepared.is_some() {
        return Err(RecordNotUnderstood::Lengths);
    }
    Ok(Some(Event::TransactionEnd(end)))
}

/// What `xl_xact_xinfo` announces, in its order.
fn parts(
    end: &mut TransactionEnd,
    data: &mut Rest,
    version: Version,
) -> Result<(), RecordNotUnderstood> {
    let flags = data.u32()?;
    let has = |bit: u32| flags & 1 << bit != 0;
    if has(0) {
        end.database = Some((data.u32()?, data.u32()?));
    }
    if has(1) {
        end.subtransactions = list(data, 4, Rest::u32)?;
    }
    if has(2) {
        end.dropped = list(data, 12, relation)?;
    }
    if has(8) {
        let item_bytes = version.dropped_stats_bytes();
        list(data, item_bytes, |data| data.bytes(item_bytes).map(drop))?;
    }
    if has(3) {
        // sizeof(SharedInvalidationMessage)
        let messages = list(data, 16, |data| data.take::<16>().map(drop))?;
        end.invalidations = u32::try_from(messages.len()).unwrap_or(u32::MAX);
    }
    if has(4) {
        end.xid = data.u32()?;
        end.prepared = Some(None);
    }
    if has(7) {
        let length = data.0.iter().position(|byte| *byte == 0);
        let name = data.bytes(length.ok_or(RecordNotUnderstood::Short)?)?;
        data.byte()?;
        end.prepared = Some(Some(String::from_utf8_lossy(name).into_owned()));
    }
    if has(5) {
        end.origin = Some((lsn(data)?, time(data.i64()?)?));
    }
    Ok(())
}

/// A list behind its length.
fn list<'a, T>(
    data: &mut Rest<'a>,
    item_bytes: usize,
    mut item: impl FnMut(&mut Rest<'a>) -> Result<T, RecordNotUnderstood>,
) -> Result<Vec<T>, RecordNotUnderstood> {
    let items = usize::try_from(data.u32()?).unwrap_or(usize::MAX);
    let mut list = Rest(
        data.bytes(
            items
                .checked_mul(item_bytes)
                .ok_or(RecordNotUnderstood::Short)?,
        )?,
    );
    (0..items).map(|_| item(&mut list)).collect()
}

/// `xl_xact_prepare` (before 13 `TwoPhaseFileHeader`).
fn prepared(record: &Record, version: Version) -> Result<Event, RecordNotUnderstood> {
    let mut data = Rest(record.main_data(version)?);
    let _magic_and_length = data.take::<8>()?;
    let xid = data.u32()?;
    let _database = data.u32()?;
    Ok(Event::Prepared {
        xid,
        time: time(data.i64()?)?,
    })
}

/// storage_xlog.h
fn storage(record: &Record, version: Version) -> Result<Option<Event>, RecordNotUnderstood> {
    let mut data = Rest(record.main_data(version)?);
    Ok(Some(match record.header.operation() {
        0x10 => Event::RelationCreated {
            relation: relation(&mut data)?,
            fork: Fork::of_number(data.u32()?).ok_or(RecordNotUnderstood::Lengths)?,
        },
        0x20 => {
            let blocks = data.u32()?;
            let relation = relation(&mut data)?;
            let flags = data.u32()?;
            Event::RelationTruncated(Truncation {
                relation,
                blocks,
                main: flags & 1 != 0,
                visibility_map: flags & 2 != 0,
                free_space_map: flags & 4 != 0,
            })
        }
        _ => return Ok(None),
    }))
}

/// dbcommands_xlog.h
fn database(record: &Record, version: Version) -> Result<Option<Event>, RecordNotUnderstood> {
    let mut data = Rest(record.main_data(version)?);
    let operation = record.header.operation();
    if operation == version.database_drop() {
        let database = data.u32()?;
        let tablespaces = if version.drops_database_at_once() {
            list(&mut data, 4, Rest::u32)?
        } else {
            vec![data.u32()?]
        };
        return Ok(Some(Event::DatabaseDropped {
            database,
            tablespaces,
        }));
    }
    let (database, tablespace) = (data.u32()?, data.u32()?);
    Ok(match operation {
        0x00 => Some(Event::DatabaseCreated {
            database,
            tablespace,
            copy_of: Some((data.u32()?, data.u32()?)),
        }),
        0x10 => Some(Event::DatabaseCreated {
            database,
            tablespace,
            copy_of: None,
        }),
        _ => None,
    })
}

/// tablespace.h, `xl_tblspc_create_rec` and `xl_tblspc_drop_rec`
fn tablespace(record: &Record, version: Version) -> Result<Option<Event>, RecordNotUnderstood> {
    let mut data = Rest(record.main_data(version)?);
    let operation = record.header.operation();
    Ok(match operation {
        0x00 => {
            let tablespace = data.u32()?;
            let end = data.0.iter().position(|byte| *byte == 0);
            let location = data.bytes(end.ok_or(RecordNotUnderstood::Short)?)?;
            Some(Event::TablespaceCreated {
                tablespace,
                location: ServerText::new(location),
            })
        }
        0x10 => Some(Event::TablespaceDropped {
            tablespace: data.u32()?,
        }),
        _ => None,
    })
}

fn relation(data: &mut Rest) -> Result<RelationFiles, RecordNotUnderstood> {
    Ok(RelationFiles {
        tablespace: data.u32()?,
        database: data.u32()?,
        number: data.u32()?,
    })
}

fn lsn(data: &mut Rest) -> Result<Lsn, RecordNotUnderstood> {
    data.take().map(u64::from_le_bytes).map(Lsn)
}

/// `TimestampTz`: microseconds since 2000.
fn time(since_2000: i64) -> Result<Timestamp, RecordNotUnderstood> {
    let since_1970 = since_2000.checked_add(EPOCH_MICROSECONDS);
    since_1970
        .and_then(|microseconds| Timestamp::from_microsecond(microseconds).ok())
        .ok_or(RecordNotUnderstood::Time)
}
