//! Whether a server recovers, and how it ends.

use std::path::Path;

use super::conf::Configuration;

/// What the server that asks is doing, which decides what it makes of an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryMode {
    /// Archive recovery: at 1 to 125 it ends recovery and promotes, above that it stops.
    Archive,
    /// A standby: at 1 to 125 it tries again.
    Standby,
    /// No server in recovery asks.
    None,
}

/// What the server in `pgdata` is doing, as its signal files and `recovery.conf` say.
pub fn mode_of(pgdata: &Path) -> RecoveryMode {
    let recovery_conf = Configuration::read(&pgdata.join("recovery.conf"));
    let standby_mode = |conf: &Configuration| conf.is_on("standby_mode") == Some(true);
    if pgdata.join("standby.signal").exists() || recovery_conf.as_ref().is_ok_and(standby_mode) {
        RecoveryMode::Standby
    } else if pgdata.join("recovery.signal").exists() || recovery_conf.is_ok() {
        RecoveryMode::Archive
    } else {
        RecoveryMode::None
    }
}
