//! Whether a data directory is that of the server that answers.
//!
//! Copies of a directory have the same system identifier, and may have the same port and time of start. Each server writes
//! its own control file, and tells what it reads there: that must be what the directory's file says.

use std::path::Path;
use std::time::Duration;

use walhalla_postgres::{ControlFile, Lsn};

use super::Error;
use crate::server::control_file;
use crate::server::session::OwnControl;

/// `DB_IN_ARCHIVE_RECOVERY` and `DB_IN_PRODUCTION` (pg_control.h).
const IN_ARCHIVE_RECOVERY: u32 = 5;
const IN_PRODUCTION: u32 = 6;

/// The server may write its control file between two looks at it.
const LOOKS: usize = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// Sees that the control file in `pgdata` is the one that the server reads (`ask`), that its checkpoint is not older than
/// the backup's, which begins at `begin`, and that its state is the server's.
pub(super) fn check(
    pgdata: &Path,
    begin: Lsn,
    mut ask: impl FnMut() -> Result<OwnControl, Error>,
) -> Result<ControlFile, Error> {
    let mut before = control_file::read(pgdata)?;
    for look in 0..LOOKS {
        if look > 0 {
            std::thread::sleep(PAUSE);
        }
        let own = ask()?;
        let after = control_file::read(pgdata)?;
        for control in [before, after.clone()] {
            if is_same(&control, &own, begin) {
                return Ok(control);
            }
        }
        before = after;
    }
    Err(Error::OtherServer(pgdata.to_owned()))
}

fn is_same(control: &ControlFile, own: &OwnControl, begin: Lsn) -> bool {
    let state = if own.in_recovery {
        IN_ARCHIVE_RECOVERY
    } else {
        IN_PRODUCTION
    };
    control.state == state
        && control.checkpoint_redo >= begin
        && control.checkpoint_redo == own.redo
        && control.checkpoint_lsn == own.checkpoint
        && control.min_recovery_point == own.min_recovery_point
        && i64::try_from(control.written) == Ok(own.written)
}
