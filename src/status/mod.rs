//! How a cluster's archive stands.

pub mod timelines;
