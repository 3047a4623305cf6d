//! A `wal-receive` that runs.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::{Area, Cluster, Walhalla, eventually};

/// It ends when it is dropped.
pub struct Receiver {
    child: Option<Child>,
    log: PathBuf,
}

const LIMIT: Duration = Duration::from_mins(1);

impl Receiver {
    /// Receives from a cluster's server with these arguments.
    pub fn start(area: &Area, walhalla: &Walhalla, cluster: &Cluster, args: &[&str]) -> Self {
        Self::start_with(area, walhalla, &cluster.connection(), args)
    }

    /// Receives from the server that these variables name.
    pub fn start_with(
        area: &Area,
        walhalla: &Walhalla,
        connection: &[(String, String)],
        args: &[&str],
    ) -> Self {
        area.make_dir("spool");
        let log = area.path("receiver.log");
        let file = File::options().create(true).append(true).open(&log);
        let mut command = walhalla.command(&["wal-receive"]);
        command
            .args(args)
            .envs(connection.iter().cloned())
            .env("WALHALLA_SPOOL_DIR", area.path("spool"))
            .stdout(Stdio::null())
            .stderr(file.unwrap());
        Self {
            child: Some(command.spawn().unwrap()),
            log,
        }
    }

    /// Waits until all WAL of the server is in the store.
    #[track_caller]
    pub fn catches_up_with(&mut self, cluster: &Cluster) {
        let end = cluster.sql("select pg_current_wal_flush_lsn()");
        let sql = format!(
            "select count(*) from pg_stat_replication where application_name = 'walhalla' and flush_lsn >= '{end}'"
        );
        let child = self.child.as_mut().unwrap();
        let log = &self.log;
        eventually("the receiver to catch up", LIMIT, || {
            let ended = child.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "the receiver ended:\n{}",
                std::fs::read_to_string(log).unwrap()
            );
            cluster.sql(&sql) == "1"
        });
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Ends it with SIGTERM, and waits until it has; returns whether it says that all is well.
    pub fn stop(&mut self) -> bool {
        let mut child = self.child.take().unwrap();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        child.wait().unwrap().success()
    }

    /// What it wrote to standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- {}\n{}", self.log.display(), self.log());
        }
        self.kill();
    }
}
