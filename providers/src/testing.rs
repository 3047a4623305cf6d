//! Test doubles and the conformance suite, for this crate's tests and its users'.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // tests: a panic is the report

pub mod conformance;
pub mod emulators;
pub mod faults;
mod faulty;
mod memory;
pub mod past;
pub mod proxy;

pub use faulty::{Call, Fault, FaultyStore};
pub use memory::MemoryStore;
