//! Making names in a directory durable, for several writers at a time.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Directory fsyncs that writers share: who waits while one runs is covered by the next one, together with all others that wait.
#[derive(Clone, Debug, Default)]
pub(super) struct GroupedSyncs(Arc<Mutex<HashMap<PathBuf, Arc<Group>>>>);

/// Those who want one directory synced.
#[derive(Debug, Default)]
struct Group {
    /// How many have asked.
    asked: AtomicU64,
    ended: Mutex<Ended>,
}

/// What became of the requests so far, which are numbered from 1.
#[derive(Debug, Default)]
struct Ended {
    /// The last request that is covered.
    last: u64,
    /// Requests that a failed sync covered, with its error. The system tells an error once only: who was covered must not
    /// try again and be told that all is well.
    failed: Vec<(u64, u64, io::ErrorKind)>,
}

impl GroupedSyncs {
    /// Returns after a run of `sync` for `directory` that began after the call.
    ///
    /// # Errors
    /// That run's.
    pub(super) fn sync(
        &self,
        directory: &Path,
        sync: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<()> {
        let group = Arc::clone(lock(&self.0).entry(directory.to_owned()).or_default());
        let outcome = group.sync(|| sync(directory));
        let mut groups = lock(&self.0);
        // The map's and this one: nobody else waits.
        if Arc::strong_count(&group) <= 2 {
            groups.remove(directory);
        }
        outcome
    }
}

impl Group {
    fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let own = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut ended = lock(&self.ended);
        if own <= ended.last {
            return ended.outcome(own);
        }
        let last = self.asked.load(Ordering::SeqCst);
        let outcome = sync();
        if let Err(error) = &outcome {
            let first = ended.last + 1;
            ended.failed.push((first, last, error.kind()));
        }
        ended.last = last;
        outcome
    }
}

impl Ended {
    fn outcome(&self, own: u64) -> io::Result<()> {
        let failed = self.failed.iter();
        let mut covering = failed.filter(|(first, last, _)| (*first..=*last).contains(&own));
        covering
            .next()
            .map_or(Ok(()), |(.., kind)| Err((*kind).into()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// Runs so many at a time, each of which takes a while; how many syncs there were, and how many ended well.
    fn run(count: usize, outcome: fn() -> io::Result<()>) -> (usize, usize) {
        let syncs = GroupedSyncs::default();
        let (runs, well) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let begun = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..count {
                scope.spawn(|| {
                    begun.fetch_add(1, Ordering::SeqCst);
                    let synced = syncs.sync(Path::new("/a"), |_| {
                        runs.fetch_add(1, Ordering::SeqCst);
                        // The first one runs until all have asked.
                        while begun.load(Ordering::SeqCst) < count {
                            thread::yield_now();
                        }
                        thread::sleep(Duration::from_millis(50));
                        outcome()
                    });
                    well.fetch_add(usize::from(synced.is_ok()), Ordering::SeqCst);
                });
            }
        });
        assert!(lock(&syncs.0).is_empty());
        (runs.into_inner(), well.into_inner())
    }

    #[test]
    fn those_who_wait_share_the_next_sync() {
        let (runs, well) = run(16, || Ok(()));
        assert_eq!(well, 16);
        assert!(runs < 16, "{runs} syncs");
    }

    #[test]
    fn all_whom_a_failed_sync_covered_are_told() {
        let (_, well) = run(16, || Err(io::ErrorKind::StorageFull.into()));
        assert_eq!(well, 0);
    }

    #[test]
    fn a_sync_after_a_failed_one_stands_for_itself() {
        let syncs = GroupedSyncs::default();
        let path = Path::new("/a");
        let failed = syncs.sync(path, |_| Err(io::ErrorKind::StorageFull.into()));
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
        syncs.sync(path, |_| Ok(())).unwrap();
    }
}
