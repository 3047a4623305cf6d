//! WAL segments of a real server, to be pushed and fetched by hand.

use std::path::{Path, PathBuf};

use super::{Area, Cluster, Outcome, Shape, Walhalla, fill, host};

/// A stopped cluster with its first segments, complete and not yet archived.
///
/// `data` is what `wal-push` sees of a data directory, and may be spoiled: version, control file and `pg_wal`.
pub struct Segments {
    pub data: PathBuf,
    pub names: Vec<String>,
    pub system_identifier: String,
    originals: PathBuf,
}

impl Segments {
    /// Of an ordinary cluster.
    pub fn make(area: &Area, count: usize) -> Self {
        Self::of(
            area,
            Cluster::create(area, "source", Shape::of(17)),
            "pushing",
            count,
        )
    }

    /// Of a cluster with another system identifier.
    pub fn make_unrelated(area: &Area, count: usize) -> Self {
        Self::of(
            area,
            Cluster::create_unrelated(area, "unrelated", Shape::of(17)),
            "unrelated-pushing",
            count,
        )
    }

    fn of(area: &Area, mut cluster: Cluster, name: &str, count: usize) -> Self {
        let originals = area.make_dir(&format!("{name}-originals"));
        cluster.configure(&format!(
            "archive_mode = on\narchive_command = 'cp %p {}/%f'",
            originals.display()
        ));
        cluster.start();
        fill(&cluster);
        let mut names = Vec::new();
        for _ in 0..count {
            cluster.pgbench(&["-t", "50"]);
            names.push(cluster.archive_everything());
        }
        let system_identifier = cluster.system_identifier();
        cluster.stop();

        let data = area.make_dir(name);
        area.make_dir(&format!("{name}/global"));
        area.make_dir(&format!("{name}/pg_wal"));
        area.make_dir(&format!("{name}/pg_wal/archive_status"));
        for file in ["PG_VERSION", "global/pg_control"] {
            area.write(
                &format!("{name}/{file}"),
                std::fs::read(cluster.data.join(file)).unwrap(),
            );
        }
        let segments = Self {
            data,
            names,
            system_identifier,
            originals,
        };
        for segment in &segments.names {
            segments.put(segment, &segments.original(segment));
        }
        segments
    }

    /// What the server wrote.
    pub fn original(&self, segment: &str) -> Vec<u8> {
        std::fs::read(self.originals.join(segment)).unwrap()
    }

    /// Puts a file into `pg_wal`.
    pub fn put(&self, name: &str, content: &[u8]) {
        let path = self.data.join("pg_wal").join(name);
        std::fs::write(&path, content).unwrap();
        host().give_to_user(&path);
    }

    /// Marks a file ready, as the server does for its archiver.
    pub fn mark_ready(&self, name: &str) {
        let mark = format!("pg_wal/archive_status/{name}.ready");
        std::fs::write(self.data.join(&mark), "").unwrap();
        host().give_to_user(&self.data.join(mark));
    }

    /// What the server does when a file was archived.
    pub fn mark_done(&self, name: &str) {
        let status = self.data.join("pg_wal/archive_status");
        let mark = |end: &str| status.join(format!("{name}.{end}"));
        std::fs::rename(mark("ready"), mark("done")).unwrap();
    }

    pub fn push(&self, walhalla: &Walhalla, name: &str) -> Outcome {
        walhalla.run_in(&self.data, &["wal-push", &format!("pg_wal/{name}")])
    }

    /// Fetches as a server does, which always asks for the same file; returns what came, if anything did.
    pub fn fetch(&self, walhalla: &Walhalla, name: &str) -> (Outcome, Option<Vec<u8>>) {
        let path = self.data.join(FETCHED);
        let _ = std::fs::remove_file(&path);
        let outcome = walhalla.run_in(&self.data, &["wal-fetch", name, FETCHED]);
        (outcome, std::fs::read(path).ok())
    }

    /// The same, with all that the program says.
    pub fn fetch_verbosely(&self, walhalla: &Walhalla, name: &str) -> (Outcome, Option<Vec<u8>>) {
        let path = self.data.join(FETCHED);
        let _ = std::fs::remove_file(&path);
        let outcome = walhalla.run_in(&self.data, &["-v", "wal-fetch", name, FETCHED]);
        (outcome, std::fs::read(path).ok())
    }

    /// Makes the data directory that of a running server, or of none.
    pub fn signal_running(&self, is_running: bool) {
        let path = self.data.join("postmaster.pid");
        if is_running {
            std::fs::write(&path, "1\n").unwrap();
            host().give_to_user(&path);
        } else {
            std::fs::remove_file(path).unwrap();
        }
    }

    /// Asserts that the archive holds what the server wrote.
    #[track_caller]
    pub fn assert_archived(&self, walhalla: &Walhalla, name: &str) {
        let (outcome, fetched) = self.fetch(walhalla, name);
        outcome.succeeds();
        assert!(
            fetched.unwrap() == self.original(name),
            "{name} came back with other content"
        );
    }

    /// Asserts that the archive proves not to hold it.
    #[track_caller]
    pub fn assert_not_archived(&self, walhalla: &Walhalla, name: &str) {
        let (outcome, fetched) = self.fetch(walhalla, name);
        outcome.exits_with(74);
        assert!(
            fetched.is_none(),
            "{name} is absent, and something was written"
        );
    }

    /// Makes the data directory one in archive recovery, or of a standby.
    pub fn signal(&self, file: &str) {
        for signal in ["recovery.signal", "standby.signal"] {
            let _ = std::fs::remove_file(self.data.join(signal));
        }
        std::fs::write(self.data.join(file), "").unwrap();
        host().give_to_user(&self.data.join(file));
    }
}

const FETCHED: &str = "pg_wal/RECOVERYXLOG";

/// The same content with one byte changed, in the middle.
pub fn with_a_byte_changed(content: &[u8]) -> Vec<u8> {
    let mut changed = content.to_vec();
    let middle = changed.len() / 2;
    changed[middle] ^= 0x40;
    changed
}

/// The same segment with a byte of its first record changed: what stands behind a switch is nobody's WAL.
pub fn with_a_record_changed(segment: &[u8]) -> Vec<u8> {
    let mut changed = segment.to_vec();
    let at = changed[64..].iter().position(|byte| *byte != 0).unwrap();
    changed[64 + at] ^= 0x40;
    changed
}

/// Takes the right to write from a directory and from all below it.
pub fn make_read_only(dir: &Path) {
    super::run(host().command("chmod").args(["-R", "u=rX"]).arg(dir)).succeeds();
}

/// Takes every right from a directory; what is below it keeps its own.
pub fn make_unreadable(dir: &Path) {
    super::run(host().command("chmod").arg("u=").arg(dir)).succeeds();
}

/// Gives back what [`make_read_only`] or [`make_unreadable`] took.
pub fn give_rights_back(dir: &Path) {
    super::run(host().command("chmod").args(["-R", "u=rwX"]).arg(dir)).succeeds();
}
