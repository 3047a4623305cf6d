//! Emulators of cloud stores, each a process of its own that ends with its handle.

#[cfg(feature = "gcs")]
mod fake_gcs;

#[cfg(feature = "gcs")]
pub use fake_gcs::FakeGcs;
