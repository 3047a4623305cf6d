//! How long a command may keep a server waiting that runs it as `archive_command` or `restore_command`.
//!
//! PostgreSQL runs such a command again by itself. So a store that is away is given up soon, and at once where the server
//! shuts down: at the end it runs `archive_command` up to three times for the cycle that is under way and three times for
//! a last one (pgarch.c, `NUM_ARCHIVE_RETRIES`), and `pg_ctl` waits for 60 s.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use walhalla_providers::transfer::Patience;

use super::postmaster;

/// How long requests may go on failing while a server waits.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// How long a command goes on that runs when the server begins to shut down.
const RUNNING: Duration = Duration::from_secs(5);
/// How long one goes on that begins after that.
const BEGUN: Duration = Duration::from_secs(8);
/// How long a failing request is tried then.
const REQUEST: Duration = Duration::from_secs(4);
/// How often the server is looked at.
const INTERVAL: Duration = Duration::from_millis(250);

/// How long requests are tried, each and all together.
pub struct Times {
    /// How long each is tried.
    pub request: Duration,
    /// How long all of them may go on failing.
    pub patience: Patience,
}

/// The times for a command of the server in `pgdata`, whose requests may go on failing for `most`. They get shorter when it
/// begins to shut down.
pub fn times(pgdata: &Path, most: Duration) -> Times {
    let patience = Patience::new(most);
    if postmaster::is_stopping(pgdata) {
        patience.end_within(BEGUN);
        let request = most.min(REQUEST);
        return Times { request, patience };
    }
    let (pgdata, watched): (PathBuf, _) = (pgdata.to_owned(), patience.clone());
    thread::spawn(move || {
        while watched.is_used() {
            if postmaster::is_stopping(&pgdata) {
                return watched.end_within(RUNNING);
            }
            thread::sleep(INTERVAL);
        }
    });
    Times {
        request: most,
        patience,
    }
}
