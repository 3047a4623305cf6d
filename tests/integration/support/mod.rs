//! What every test stands on.

mod area;
mod cluster;
mod history;
mod host;
mod keys;
mod line;
mod page;
mod program;
mod receiver;
mod segments;
mod store;
mod waiting;
mod wal_load;
mod wal_shown;
mod waldump;
mod walhalla;
mod walk;

pub use area::Area;
pub use cluster::{Cluster, Dump, Shape, copy_tree};
pub use history::{Moment, PgbenchLoad, create_fill_segment, fill, make_history};
pub use host::{PATH, host, version_name};
pub use keys::{Key, PLUGIN, with_plugin, write_private};
pub use line::{End, Line};
pub use page::Page;
pub use program::{Outcome, run};
pub use receiver::Receiver;
pub use segments::{
    Segments, give_rights_back, make_read_only, make_unreadable, with_a_byte_changed,
    with_a_record_changed,
};
pub use store::{Store, s3_env};
pub use waiting::{eventually, random_moment_within, seed_chance};
pub use wal_load::{
    WrittenWal, configure_for_wal, crash_within_a_record, segments_of, write_every_kind,
};
pub use wal_shown::{RESOURCE_MANAGERS, Shown, read_segments};
pub use waldump::compare_with_pg_waldump;
pub use walhalla::{Ending, Walhalla};
pub use walk::Walk;
