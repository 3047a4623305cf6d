//! Walhalla archives PostgreSQL's WAL and base backups and brings clusters back to any point in time.
//!
//! ```text
//! PGDATA ─▶ walk ─▶ pack ─▶ compress ─▶ encrypt ─▶ store          backup
//! pg_wal ─▶ check ────────▶ compress ─▶ encrypt ─▶ store          wal
//! server ─▶ stream ─▶ pieces, whole segments ────────▶ store      receive
//! store  ─▶ decrypt ─▶ decompress ─▶ unpack ─▶ fsync ─▶ PGDATA    restore
//! store  ─▶ decrypt ─▶ decompress ─▶ untar ─▶ check               verify
//! store  ─▶ as it is, or packed anew ─▶ other store ─▶ check       copy
//! ```
//!
//! Arrows point one way: `walhalla_postgres ← server ← wal ← archive ← backup, restore, verify → repository → pipeline, providers`.

pub mod archive;
pub mod archiving;
pub mod backup;
pub mod check;
pub mod cli;
pub mod commands;
pub mod config;
pub mod contents;
pub mod copying;
pub mod daemon;
pub mod drill;
pub mod durability;
pub mod error;
pub mod failure;
pub mod find;
#[cfg(test)]
mod messages;
pub mod output;
pub mod paths;
pub mod pipeline;
pub mod prefetch;
pub mod progress;
pub mod receive;
pub mod repository;
pub mod restore;
pub mod retention;
pub mod server;
pub mod session;
pub mod spool;
pub mod status;
pub mod temporary_folder;
pub mod threads;
pub mod users;
pub mod verify;
pub mod wal;

/// The package's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The package's version and the commit it was built from.
pub const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("WALHALLA_COMMIT"),
    ")"
);
