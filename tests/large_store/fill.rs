//! A store of a size that most clusters reach in years: 2,000 backups and 500,000 WAL segments with their summaries.
//!
//! ```text
//! Life (which segment, backup and restore point there is, by numbers alone) ─▶ objects ─▶ Store ─▶ a directory
//!                                                                                           └───▶ memory ─▶ S3 server
//! ```
//!
//! `large_store directory DIR` fills the directory store; `large_store s3 PORT` fills a store in memory and answers as an S3
//! server on 127.0.0.1 (port 0 takes any free port). The keys, the `backup.json` objects and the summaries are as Walhalla writes them. A segment holds
//! its name instead of WAL, and a backup's other objects a few bytes of the length that its entry gives: who reads names,
//! entries and summaries finds all in order. Both print what there is to look for, a name and a value a line.
//!
//! `large_store spoil DIR` makes the last segments and summaries of a filled directory unreadable.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unused_self,
    clippy::unnecessary_wraps,
    clippy::maybe_infinite_iter,
    unreachable_pub,
    missing_docs,
    reason = "a program for tests may panic, and prints what it made; nothing here is exported; questions to a life read alike"
)]

mod life;
mod objects;
mod server;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Parser, Subcommand};
use futures_util::{StreamExt as _, stream};
use tokio::net::TcpListener;
use walhalla_providers::fs::FsStore;
use walhalla_providers::testing::MemoryStore;
use walhalla_providers::transfer::{Options, RetryPolicy, Store};
use walhalla_providers::{ObjectKey, ObjectStore, PutMode};

use self::life::Life;
use self::objects::Objects;

/// Puts at the same time. A directory's wait for fsync.
const PUTS: usize = 64;
/// Segments that a thread takes at a time.
const SHARE: usize = 500;

#[derive(Parser)]
#[command(about = "Makes a store with very many WAL segments and backups")]
struct Arguments {
    #[command(subcommand)]
    place: Place,
}

#[derive(Subcommand)]
enum Place {
    /// Fill the directory store in DIR
    Directory {
        dir: PathBuf,
        #[command(flatten)]
        size: Size,
    },
    /// Make the last segments and summaries in DIR unreadable
    Spoil {
        dir: PathBuf,
        #[command(flatten)]
        size: Size,
    },
    /// Fill a store in memory and serve it as the bucket `large` to whoever has the keys `large-key`, `large-secret`
    S3 {
        /// 0 takes any free port
        port: u16,
        #[command(flatten)]
        size: Size,
    },
}

#[derive(Args, Clone, Copy)]
struct Size {
    /// WAL segments
    #[arg(long, default_value_t = 500_000)]
    segments: u64,
    /// Backups; a tenth of the segments at most
    #[arg(long, default_value_t = 2_000)]
    backups: u64,
    /// Segments at the end of the archive that cannot be read, nor their summaries
    #[arg(long, default_value_t = 0)]
    unreadable: u64,
}

#[tokio::main]
async fn main() {
    match Arguments::parse().place {
        Place::Directory { dir, size } => {
            let objects = Objects::new(Life::new(size.segments, size.backups), size.unreadable);
            fill(Arc::new(FsStore::open(dir).unwrap()), &objects, Extent::All).await;
            print_landmarks(objects.life());
        }
        Place::Spoil { dir, size } => {
            let objects = Objects::new(Life::new(size.segments, size.backups), size.unreadable);
            let store = Arc::new(FsStore::open(dir).unwrap());
            fill(store, &objects, Extent::Unreadable).await;
        }
        Place::S3 { port, size } => {
            let objects = Objects::new(Life::new(size.segments, size.backups), size.unreadable);
            let store = Arc::new(MemoryStore::default());
            fill(store.clone(), &objects, Extent::All).await;
            print_landmarks(objects.life());
            let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
            println!("endpoint http://{}", listener.local_addr().unwrap());
            server::serve(listener, store).await;
        }
    }
}

/// Which objects are put.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    All,
    /// Those that cannot be read, in the place of readable ones.
    Unreadable,
}

async fn fill(store: Arc<dyn ObjectStore>, objects: &Objects, extent: Extent) {
    let store = Store::new(
        store,
        Options {
            retry: RetryPolicy {
                deadline: Duration::from_mins(1),
                ..RetryPolicy::default()
            },
            upload_concurrency: PUTS,
            download_concurrency: 1,
            ..Options::default()
        },
    );
    if extent == Extent::All {
        put(&store, objects.of_cluster()).await;
        for number in 0..objects.life().backups.len() {
            put(&store, objects.of_backup(number)).await;
        }
    }
    let count = objects.life().segments.len();
    let begin = match extent {
        Extent::All => 0,
        Extent::Unreadable => objects.first_unreadable(),
    };
    let next = AtomicUsize::new(begin);
    let threads = std::thread::available_parallelism().unwrap().get();
    let runtime = tokio::runtime::Handle::current();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let from = next.fetch_add(SHARE, Ordering::Relaxed);
                    if from >= count {
                        break;
                    }
                    let share = from..count.min(from + SHARE);
                    let all = share.flat_map(|at| objects.of_segment(at)).collect();
                    runtime.block_on(put(&store, all));
                }
            });
        }
    });
}

async fn put(store: &Store, objects: Vec<(ObjectKey, Bytes)>) {
    let puts = stream::iter(objects).map(|(key, body)| async move {
        store.put(&key, body, PutMode::Overwrite).await.unwrap();
    });
    puts.buffer_unordered(PUTS).collect::<()>().await;
}

/// What the commands that are measured look for.
fn print_landmarks(life: &Life) {
    let last = life.segments.len() - 1;
    let near_the_end = life.segments.len() - life.segments.len() / 250;
    println!("system-identifier {}", life::SYSTEM_IDENTIFIER);
    println!("target-time {}", life.commit_time(near_the_end));
    println!("target-name {}", life.restore_point_before(near_the_end));
    println!(
        "last-1000-from {}",
        life.commit_time(last.saturating_sub(1000))
    );
}
