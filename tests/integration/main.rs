//! Walhalla against real PostgreSQL servers and real stores, called as a user calls it.
//!
//! One test binary, so that it links once; nextest runs each test as a process of its own, and each starts the servers
//! that it needs. A file holds one behaviour, `support` what all of them stand on:
//!
//! ```text
//! Area (a directory that goes away) ─▶ Cluster (a server) ─archive_command─▶ Walhalla (the binary) ─▶ Store
//! ```
//!
//! A test that lacks something (a server, a program, a right) fails and says what is missing; none is skipped.
//! `WALHALLA_TEST_KEEP=1` keeps the directories, `WALHALLA_TEST_SEED=N` repeats the random moments of a run,
//! `WALHALLA_TEST_PROGRAM=PATH` tests another build of the binary, such as the release.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    unreachable_pub,
    missing_docs,
    reason = "a test may panic, and prints what it found; nothing here is exported"
)]

mod support;

mod book_commands;
mod changed_settings;
mod check;
mod connecting;
mod copies;
mod daemon;
mod damaged_pages;
mod deletions;
mod delta_files;
mod delta_mix;
mod delta_restores;
mod delta_sources;
mod deltas;
mod drill;
mod earlier_backups;
mod encryption;
mod encryption_keys;
mod encryption_secrets;
mod evidence;
mod faults;
mod fetch_ahead;
mod finding;
mod killed;
mod left_out_files;
mod many_files;
mod marks;
mod max_backlog;
mod memory;
mod mirrors;
mod mistakes;
mod odd_paths;
mod open_formats;
mod other_pasts;
mod own_directories;
mod owners;
mod past;
mod planning;
mod push_ahead;
mod rates;
mod reachable;
mod replayed_tablespaces;
mod reports;
mod requests;
mod restore_places;
mod restore_point_names;
mod restore_printed;
mod segment_sizes;
mod server_summaries;
mod settings;
mod shutdowns;
mod stages;
mod standby;
mod status;
mod streamed;
mod streamed_sessions;
mod summaries;
mod tablespaces;
mod tampering;
mod targets;
mod timelines;
mod two_backups;
mod unfinished_segments;
mod unsynced_restores;
mod upgrades;
mod verify;
mod wal_corpus;
mod wal_fetch_answers;
mod wal_push_refusals;
mod wal_receive;
mod wal_receive_tails;
mod wal_records;
mod walkthroughs;
mod whole_path;
mod whose_wal;
mod without_walhalla;
