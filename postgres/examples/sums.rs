//! How fast the sums of a backup are on one core of this machine: `sums` prints a name and GB/s a line.
#![allow(clippy::print_stdout, reason = "it prints its lines")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use crc_fast::CrcAlgorithm::Crc32Iscsi;
use twox_hash::XxHash3_128;
use walhalla_postgres::page;

const PAGE_BYTES: usize = 8192;
/// As long as what a backup sums at a time, so that it stays in the processor's cache.
const BLOCK_BYTES: u32 = 1 << 20;
/// How long each is measured, of which the best round counts.
const ROUNDS: u32 = 20;
const ROUND: Duration = Duration::from_millis(20);

fn main() {
    let mut random = fastrand::Rng::with_seed(1);
    let mut block = vec![0; BLOCK_BYTES as usize];
    random.fill(&mut block);
    show("page checksum", || {
        for page in block.chunks_exact(PAGE_BYTES) {
            _ = black_box(page::checksum(black_box(page), 1));
        }
    });
    show("CRC-32C, crc-fast", || {
        _ = black_box(crc_fast::checksum(Crc32Iscsi, black_box(&block)));
    });
    show("CRC-32C, crc32c", || {
        _ = black_box(crc32c::crc32c(black_box(&block)));
    });
    show("XXH3, twox-hash", || {
        _ = black_box(XxHash3_128::oneshot(black_box(&block)));
    });
}

/// Prints how fast `sum` takes a block.
fn show(name: &str, sum: impl Fn()) {
    let rates = (0..ROUNDS).map(|_| {
        let (begun, mut bytes) = (Instant::now(), 0.0);
        while begun.elapsed() < ROUND {
            sum();
            bytes += f64::from(BLOCK_BYTES);
        }
        bytes / begun.elapsed().as_secs_f64() / 1e9
    });
    println!("{name}: {:.1}", rates.fold(0.0, f64::max));
}
