//! What is stored of a backup: its format, and reading it back.
//!
//! ```text
//! files ─▶ tar_part ─▶ assembly: parts, index, relations, manifest, entry ─▶ store
//! store ─▶ reader: each part's files, against the manifest ─▶ Sink         restore, verify, find
//! chain of backups ─▶ merged: which backup has which block ─▶ pieces ─▶ Sink  restore, merge
//! ```
//!
//! How a backup is taken is told in `backup`.

pub mod assembly;
pub mod chain;
pub mod checksum;
pub mod delta_file;
pub mod index;
pub mod manifest;
pub mod merged;
pub mod names;
pub mod pieces;
mod reader;
pub mod relations;
pub mod tar_part;

pub use reader::{
    Contents, Error, FileError, FileHeader, Owner, PartProblem, Sink, Sum, Summed, Taken,
    check_stored, read_index, read_manifest,
};
