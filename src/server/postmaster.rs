//! What the postmaster tells of itself in `postmaster.pid`.

use std::path::Path;

/// The line with the time of the server's start.
const START_LINE: usize = 3;
/// The line with the server's state, from 10 on (pidfile.h, `LOCK_FILE_LINE_PM_STATUS`).
const STATUS_LINE: usize = 8;

/// Whether a server runs in `pgdata` and is not shutting down, as far as its file tells: after a crash it says so, too.
pub fn is_running(pgdata: &Path) -> bool {
    pgdata.join("postmaster.pid").exists() && !is_stopping(pgdata)
}

/// When the server in `pgdata` was started, in seconds since 1970 (pidfile.h, `LOCK_FILE_LINE_START_TIME`).
pub fn started(pgdata: &Path) -> Option<i64> {
    let text = std::fs::read_to_string(pgdata.join("postmaster.pid")).ok()?;
    text.lines().nth(START_LINE - 1)?.trim().parse().ok()
}

/// Whether the server in `pgdata` is shutting down and waits for its archiver, among others.
pub fn is_stopping(pgdata: &Path) -> bool {
    has_status(pgdata, "stopping")
}

/// Whether the server in `pgdata` accepts connections that write.
pub fn is_ready(pgdata: &Path) -> bool {
    has_status(pgdata, "ready")
}

fn has_status(pgdata: &Path, wanted: &str) -> bool {
    let Ok(text) = std::fs::read_to_string(pgdata.join("postmaster.pid")) else {
        return false;
    };
    let status = text.lines().nth(STATUS_LINE - 1);
    status.is_some_and(|status| status.trim() == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_status_line_tells_that_the_server_stops() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_stopping(dir.path()));
        for (text, stops) in [
            ("7\n/d\n1\n5432\n/tmp\n\n 1 2\nstopping\n", true),
            ("7\n/d\n1\n5432\n/tmp\n\n 1 2\nready   \n", false),
            ("7\nstopping\n1\n5432\nstopping\n\n 1 2\n", false),
        ] {
            std::fs::write(dir.path().join("postmaster.pid"), text).unwrap();
            assert_eq!(is_stopping(dir.path()), stops, "{text}");
        }
    }
}
