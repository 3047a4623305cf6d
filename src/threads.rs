//! Work on several threads that share one fate.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::progress::Progress;

/// Runs `worker` on `threads` threads at once; the first error stops the others at their next word
/// of progress and is the one returned.
pub fn on_threads<E: Send>(
    threads: usize,
    progress: &Progress,
    worker: &(impl Fn() -> Result<(), E> + Sync),
) -> Result<(), E> {
    let first = Mutex::new(Ok(()));
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                if let Err(error) = worker() {
                    progress.stop();
                    let mut first = lock(&first);
                    if first.is_ok() {
                        *first = Err(error);
                    }
                }
            });
        }
    });
    first.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// The lock, whoever panicked with it: a panic in a scoped thread ends the scope anyway.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
