//! Other people's servers, each a process of its own on 127.0.0.1 that ends with its handle.
//!
//! `tests/setup.sh` installs them below `.cache/emulators`. A missing one fails the test that needs it.

mod azurite;
mod fake_gcs;

use std::path::PathBuf;

pub use azurite::Azurite;
pub use fake_gcs::FakeGcs;

/// The program at `path` below `.cache/emulators`.
///
/// # Panics
/// When it is not installed.
fn installed(path: &str) -> PathBuf {
    let workspace = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let program = workspace.join(".cache/emulators").join(path);
    assert!(
        program.is_file(),
        "{} is missing; run tests/setup.sh",
        program.display()
    );
    program
}
