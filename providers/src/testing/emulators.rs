//! Emulators of cloud stores, each a process of its own that ends with its handle.

#[cfg(feature = "azure")]
mod azurite;
#[cfg(feature = "gcs")]
mod fake_gcs;

#[cfg(feature = "azure")]
pub use azurite::Azurite;
#[cfg(feature = "gcs")]
pub use fake_gcs::FakeGcs;
