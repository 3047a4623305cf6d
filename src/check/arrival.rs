//! One segment on its whole way: the server finishes it, it arrives in the store, and comes back as it was.

use std::path::Path;
use std::time::{Duration, Instant};

use walhalla_postgres::{ControlFile, SegmentName, WalFileName};

use super::Finding;
use crate::failure::Failure as _;
use crate::output;
use crate::output::look::duration;
use crate::repository::Repository;
use crate::server::session::Server;
use crate::server::wal_directory::WalDirectory;
use crate::wal::fetcher::{Fetcher, NewFile};

/// What is seen.
pub const CHECK: &str = "a segment arrives in the store";

/// How often the store is asked.
const POLL: Duration = Duration::from_millis(500);

/// How the way of a segment is seen.
#[derive(Debug)]
pub struct Arrival<'a> {
    /// The archive in which it should arrive.
    pub repository: &'a Repository,
    /// The server's data directory.
    pub pgdata: &'a Path,
    /// What its control file says.
    pub control: &'a ControlFile,
    /// How long it may take.
    pub most: Duration,
}

impl Arrival<'_> {
    /// Has the server finish a segment, and says how it fared.
    pub fn see(&self, server: &mut Server) -> Vec<Finding> {
        let check = CHECK;
        let store = self.repository.store_url();
        let switched = self.repository.session().wait(server.switch_segment());
        let segment = match switched {
            Ok(segment) => segment,
            Err(error) => return vec![Finding::failed(check, store, output::chain(&error))],
        };
        let began = Instant::now();
        loop {
            match self.repository.find_wal(WalFileName::Segment(segment)) {
                Ok(Some(_)) => {
                    let took = duration(began.elapsed().try_into().unwrap_or_default());
                    let arrived = Finding::ok(check, store)
                        .noting(format!("{segment}, {took} after the switch"));
                    return vec![arrived, self.come_back(segment)];
                }
                Err(error) => return vec![Finding::failed(check, store, output::chain(&error))],
                Ok(None) if began.elapsed() > self.most => {
                    return vec![Finding::failed(check, store, self.missing(segment))];
                }
                Ok(None) => std::thread::sleep(POLL),
            }
        }
    }

    /// Why a segment may not have arrived.
    fn missing(&self, segment: SegmentName) -> String {
        let wal = WalDirectory::of(self.pgdata);
        let waits = wal.is_some_and(|wal| wal.is_ready(segment));
        let took = duration(self.most.try_into().unwrap_or_default());
        if waits {
            format!(
                "{segment} was finished {took} ago, and the server has not archived it: its log has the message of archive_command"
            )
        } else {
            format!(
                "{segment} was finished {took} ago, and the server says that it is archived, but it is not in this store: \
                 archive_command has other settings than this command, or calls something else"
            )
        }
    }

    /// Fetches a segment and compares it with the server's own, if that is still there.
    fn come_back(&self, segment: SegmentName) -> Finding {
        let check = "it comes back as it was";
        let compared = tempfile::tempdir()
            .map_err(|error| error.to_string())
            .and_then(|dir| {
                let path = dir.path().join(segment.to_string());
                let fetcher = Fetcher {
                    repository: self.repository,
                    cluster: None,
                    ends_recovery: false,
                };
                let target = NewFile::create(&path).map_err(|error| output::chain(&error))?;
                match fetcher.fetch(WalFileName::Segment(segment), target) {
                    Err(error) if error.is_locked() => return Ok(Compared::Sealed),
                    ended => ended.map_err(|error| output::chain(&error))?,
                }
                let own = self
                    .pgdata
                    .join(self.control.version.wal_folder())
                    .join(segment.to_string());
                match (std::fs::read(own), std::fs::read(&path)) {
                    (Ok(own), Ok(copy)) if own != copy => {
                        Err("what was fetched is not what the server has".to_owned())
                    }
                    (Err(_), _) => Ok(Compared::Recycled),
                    (_, Err(error)) => Err(error.to_string()),
                    (Ok(_), Ok(_)) => Ok(Compared::Same),
                }
            });
        let object = self.repository.store_url();
        match compared {
            Ok(Compared::Same) => Finding::ok(check, object),
            Ok(Compared::Recycled) => Finding::ok(check, object)
                .noting("its checksums were checked; the server has reused its own file"),
            Ok(Compared::Sealed) => {
                let why = "it is encrypted, and no identity is here: only its arrival was seen";
                Finding::skipped(check, object, why)
            }
            Err(problem) => Finding::failed(check, object, problem),
        }
    }
}

enum Compared {
    Same,
    Recycled,
    Sealed,
}
