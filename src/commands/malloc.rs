//! How glibc's `malloc` keeps memory that was freed.
//!
//! It reads its settings (mallopt(3)) from the environment, when a program starts. Setting them from within takes unsafe code.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Variables and their values.
pub(super) type Words = &'static [(&'static str, &'static str)];

/// The parts of uploads, which are the longest pieces of all, go back to the system once they are sent. Without this word the
/// bound grows with what was freed, and parts leave holes in the heap.
pub(super) const FOR_BACKUPS: Words = &[("MALLOC_MMAP_THRESHOLD_", "4194304")];
/// For years, and with many threads.
pub(super) const FOR_THE_DAEMON: Words = &[
    // Each arena keeps what was freed.
    ("MALLOC_ARENA_MAX", "2"),
    ("MALLOC_MMAP_THRESHOLD_", "262144"),
];

/// Says that the process of this number was started anew. A program with more rights than its user's does not see [`Words`], so
/// that they cannot tell.
const STARTED_ANEW: &str = "_WALHALLA_STARTED_ANEW";

/// Starts this program anew in the same process with `words`, unless that was done or one of them is set. Where it does not
/// succeed, the program goes on and needs more memory.
pub(super) fn start_anew_with(words: Words) {
    let own_number = std::process::id().to_string();
    let is_set = |(variable, _): &(&str, &str)| std::env::var_os(variable).is_some();
    let was_done = std::env::var(STARTED_ANEW).is_ok_and(|number| number == own_number);
    if was_done || words.iter().any(is_set) {
        return;
    }
    let Ok(program) = std::env::current_exe() else {
        return;
    };
    let mut arguments = std::env::args_os();
    let mut anew = Command::new(program);
    if let Some(name) = arguments.next() {
        anew.arg0(name);
    }
    anew.args(arguments).envs(words.iter().copied());
    let error = anew.env(STARTED_ANEW, own_number).exec();
    tracing::debug!("the program cannot start itself anew: {error}");
}
