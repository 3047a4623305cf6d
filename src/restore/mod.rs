//! Bringing a cluster back.
//!
//! ```text
//! catalog, WAL listing ─▶ plan ─▶ (refused here, or) unpack parts ∥ stage WAL ─▶ seal ─▶ settings ─▶ pg_control
//! ```
//!
//! Nothing is written before the plan says that the target can be reached. `pg_control` comes
//! last: until it is there, PostgreSQL refuses to start.

pub mod archives;
mod branches;
mod breaks;
pub mod choose;
pub mod chosen_databases;
pub mod commits;
pub mod debian;
mod error;
pub mod existing;
mod folder;
pub mod foresee;
pub mod guard;
mod hint;
pub mod leading_out;
mod not_found;
pub mod occupant;
mod offer;
pub mod outside;
mod places;
pub mod plan;
mod planner;
mod reach;
pub mod recovery;
mod refresh;
mod refusal;
pub mod run;
mod site;
pub mod stage;
pub mod start;
pub mod target;
pub mod unpack;
mod way;
pub mod window;

pub use error::Error;
