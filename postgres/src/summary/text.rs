//! Transactions' ends in columns: what is alike stands together and takes little room when compressed.

use jiff::Timestamp;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Transaction;
use crate::Lsn;
use crate::wal::event::Outcome;
use crate::wal::record::RelationFiles;

/// Each number is the difference from the one before in its column; the first is one from 0.
#[derive(Default, Serialize, Deserialize)]
struct Columns {
    lsn: Vec<u64>,
    xid: Vec<i64>,
    /// Microseconds, since 1970.
    time: Vec<i64>,
    /// These are no differences.
    wal_bytes: Vec<u64>,
    /// Rows, counted from 0, of transactions that were rolled back.
    aborted: Vec<usize>,
    /// Rows, and the subtransactions of each.
    subtransactions: Vec<(usize, Vec<u32>)>,
    /// Rows, and the relations that each dropped.
    dropped: Vec<(usize, Vec<RelationFiles>)>,
}

pub(super) fn serialize<S: Serializer>(
    transactions: &[Transaction],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut columns = Columns::default();
    let (mut lsn, mut xid, mut time) = (0, 0, 0);
    for (row, end) in transactions.iter().enumerate() {
        columns.lsn.push(end.lsn.0.wrapping_sub(lsn));
        columns.xid.push(i64::from(end.xid) - xid);
        columns.time.push(end.time.as_microsecond() - time);
        columns.wal_bytes.push(end.wal_bytes);
        (lsn, xid, time) = (end.lsn.0, i64::from(end.xid), end.time.as_microsecond());
        if end.outcome == Outcome::Aborted {
            columns.aborted.push(row);
        }
        if !end.subtransactions.is_empty() {
            let subtransactions = end.subtransactions.clone();
            columns.subtransactions.push((row, subtransactions));
        }
        if !end.dropped.is_empty() {
            columns.dropped.push((row, end.dropped.clone()));
        }
    }
    columns.serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Transaction>, D::Error> {
    let columns = Columns::deserialize(deserializer)?;
    let rows = columns.lsn.len();
    let alike = [
        columns.xid.len(),
        columns.time.len(),
        columns.wal_bytes.len(),
    ];
    if alike != [rows; 3] {
        return Err(D::Error::custom("columns of different lengths"));
    }
    let mut transactions = columns
        .rows()
        .collect::<Option<Vec<Transaction>>>()
        .ok_or_else(|| D::Error::custom("a number that is out of range"))?;
    let no_row = || D::Error::custom("a row that is none");
    for row in columns.aborted {
        transactions.get_mut(row).ok_or_else(no_row)?.outcome = Outcome::Aborted;
    }
    for (row, xids) in columns.subtransactions {
        transactions
            .get_mut(row)
            .ok_or_else(no_row)?
            .subtransactions = xids;
    }
    for (row, relations) in columns.dropped {
        transactions.get_mut(row).ok_or_else(no_row)?.dropped = relations;
    }
    Ok(transactions)
}

impl Columns {
    fn rows(&self) -> impl Iterator<Item = Option<Transaction>> {
        let (mut lsn, mut xid, mut time) = (0_u64, 0_i64, 0_i64);
        let columns = self.lsn.iter().zip(&self.xid);
        let columns = columns.zip(self.time.iter().zip(&self.wal_bytes));
        columns.map(move |((lsn_step, xid_step), (time_step, wal_bytes))| {
            lsn = lsn.wrapping_add(*lsn_step);
            xid = xid.checked_add(*xid_step)?;
            time = time.checked_add(*time_step)?;
            Some(Transaction {
                lsn: Lsn(lsn),
                xid: u32::try_from(xid).ok()?,
                time: Timestamp::from_microsecond(time).ok()?,
                outcome: Outcome::Committed,
                wal_bytes: *wal_bytes,
                subtransactions: Vec::new(),
                dropped: Vec::new(),
            })
        })
    }
}
