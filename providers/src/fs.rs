//! The directory store.
