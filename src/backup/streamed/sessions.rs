//! Sessions beside the one over which the server sends its files.
//!
//! Each may come about when the server has no place for it, or lead to another server than the first one did: a name or a
//! balancer stands between.

use std::time::{Duration, Instant};

use crate::backup::Error;
use crate::backup::request::Backup;
use crate::output;
use crate::server::replication::{Identity, Replication, Session};

/// Pauses before the same is tried again: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

impl Backup<'_> {
    /// A new session on a server of the cluster that is backed up, and what the server says of itself.
    ///
    /// # Errors
    /// [`Error::Replication`] and [`Error::LedElsewhere`].
    pub(super) fn another_session(&self) -> Result<(Replication, Identity), Error> {
        let mut connection = self.wait(Replication::connect(Session::Replication))?;
        let identity = self.wait(connection.identify())?;
        let (found, expected) = (identity.system_identifier, self.control.system_identifier);
        if found != expected {
            return Err(Error::LedElsewhere {
                place: connection.place().to_owned(),
                found,
                expected,
            });
        }
        Ok((connection, identity))
    }

    /// Does `work`, and again where a session failed of which another may not: for as long as the backup waits for WAL.
    ///
    /// # Errors
    /// Those of `work`.
    pub(super) fn again<T>(&self, work: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
        let (begun, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            match work() {
                Err(Error::Replication(error))
                    if error.is_passing()
                        && begun.elapsed() + pause < self.options.archive_timeout =>
                {
                    let chain = output::chain(&error);
                    if pause == FIRST_PAUSE {
                        tracing::warn!("{chain}; trying again");
                    } else {
                        tracing::debug!("{chain}; trying again");
                    }
                }
                outcome => return outcome,
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
