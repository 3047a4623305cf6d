//! The daemon: an archiver and prefetcher that stays, with its connections and credentials warm.
//!
//! ```text
//! wal-push N  ─▶ receipt? ─▶ socket: push N  ─▶ resident archiver: N, then what is ready ─▶ store ─▶ receipts
//! wal-fetch N ─▶ spool?   ─▶ socket: fetch N ─▶ prefetcher: N, then the window            ─▶ spool ─▶ receipts
//! ```
//!
//! An answer of the daemon is never believed: the commands look for the receipt, as they do without a daemon, and do the work
//! themselves where there is none. So a daemon may be killed in mid-call, be another version or have other settings.

pub mod client;
pub mod metrics;
pub mod protocol;
pub mod server;
pub mod sockets;
