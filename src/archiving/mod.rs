//! Archiving more than the one WAL file that the server asks for.
//!
//! ```text
//! wal-push N ─▶ acknowledged before? ─▶ done
//!                 └▶ push N ∥ push what is ready after N ─▶ acknowledgements in the spool
//! ```

pub mod acknowledgement;
pub mod ahead;
pub mod ready;
