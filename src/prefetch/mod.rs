//! Fetching ahead: while the server replays one segment, the next ones come into the spool.
//!
//! ```text
//! wal-fetch N ─▶ wanted: N ─▶ in the spool? ─▶ handed over by rename
//!                   │            └▶ fetched from the store, as without a spool
//!                   ▼
//!   wal-prefetch, in the background: N + 1 … N + window ─▶ checked, durable, receipt ─▶ spool
//! ```
//!
//! What is absent or wrong is never told from here: only the store itself answers that, to the call of the server.

pub mod background;
pub mod spooled;
pub mod window;
