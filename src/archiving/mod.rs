//! Archiving more than the one WAL file that the server asks for.
//!
//! ```text
//! wal-push N ─▶ a receipt for N? ─▶ done
//!                 └▶ push N ∥ push what is ready beside it ─▶ receipts in the spool
//!                      └▶ failed, and too much waits ─▶ drop N ─▶ the gap in the store, later
//! ```

pub mod ahead;
pub mod backlog;
pub mod resident;

/// How many segments are worked on at a time: with `upload_concurrency` of 1 no other than the one that is asked for, else one
/// more than go up, which is read and compressed while the others wait for the store.
pub fn workers(upload_concurrency: usize) -> usize {
    match upload_concurrency {
        0 | 1 => 1,
        more => more + 1,
    }
}
