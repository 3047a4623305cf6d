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
