//! The formulas of docs/architecture.md, Memory, seen from outside: the most memory that a process had (`VmHWM`).
//!
//! A rate makes the line slow, so that everything waits that may wait.

use std::fs;
use std::path::Path;
use std::thread::{available_parallelism, sleep};
use std::time::Duration;

use crate::support::{Area, Cluster, Shape, Store, Walhalla, host};

/// Each has a tar part of its own.
const FILES: u64 = 2;
const FILE_BYTES: usize = 257 << 20;
const UPLOADS: u64 = 4;
const DOWNLOADS: u64 = 4;
/// The program, its runtime and TLS; what a debug build takes more is in it.
const PROGRAM_MIB: u64 = 32;

/// Runs a command to its end; the most memory that it had.
fn peak_mib(walhalla: &Walhalla, cluster: &Cluster, args: &[&str]) -> u64 {
    let mut command = walhalla.command(args);
    command.envs(cluster.connection());
    let mut process = command.spawn().unwrap();
    let status = format!("/proc/{}/status", process.id());
    let mut peak_kib = 0;
    loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        peak_kib = kib.map_or(0, |kib| kib.parse().unwrap()).max(peak_kib);
        if let Some(ended) = process.try_wait().unwrap() {
            assert!(ended.success(), "{ended}: {args:?}");
            return peak_kib / 1024;
        }
        sleep(Duration::from_millis(2));
    }
}

/// Files that belong to no relation, so that nothing looks for pages in them.
fn add_files(folder: &Path) {
    for number in 0..FILES {
        let path = folder.join(format!("random{number}"));
        let mut content = vec![0; FILE_BYTES];
        fastrand::Rng::with_seed(number).fill(&mut content);
        fs::write(&path, content).unwrap();
        host().give_to_user(&path);
    }
}

fn peaks_are_within_the_formulas(make: fn(&Area) -> Store, part_mib: u64, in_flight: u64) {
    let area = Area::new();
    let store = make(&area);
    let lines = format!(
        "compression = \"none\"\nupload_concurrency = {UPLOADS}\ndownload_concurrency = {DOWNLOADS}\n"
    );
    let walhalla = Walhalla::with_settings(&area, &store, &lines);
    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    walhalla.archive_from(&mut primary);
    add_files(&primary.data.join("base"));

    let cores = u64::try_from(available_parallelism().unwrap().get()).unwrap();
    let parts = cores.min(UPLOADS).min(FILES);
    let object = 6 + part_mib * (1 + in_flight);
    let most = parts * object + cores * 4 * 2 + cores + PROGRAM_MIB;
    let slowly = walhalla.with_env("WALHALLA_UPLOAD_RATE", "96MiB");
    let data = primary.data.to_str().unwrap().to_owned();
    let peak = peak_mib(&slowly, &primary, &["backup-push", &data]);
    assert!(peak <= most, "backup-push took {peak} of {most} MiB");
    // What waits is really there: one more part of each object would show.
    let least = parts * (object - part_mib);
    assert!(
        peak >= least,
        "backup-push took {peak} MiB, and {least} are expected at least"
    );

    let most = DOWNLOADS * 8 + PROGRAM_MIB;
    let restored = area.path("restored");
    let args = ["backup-fetch", restored.to_str().unwrap(), "LATEST"];
    let peak = peak_mib(&walhalla, &primary, &args);
    assert!(peak <= most, "backup-fetch took {peak} of {most} MiB");
    let peak = peak_mib(&walhalla, &primary, &["verify", "LATEST"]);
    assert!(peak <= most, "verify took {peak} of {most} MiB");
    let random = |data: &Path| fs::read(data.join("base/random1")).unwrap();
    assert!(random(&primary.data) == random(&restored));
}

#[test]
fn peaks_are_within_the_formulas_in_a_directory() {
    peaks_are_within_the_formulas(Store::directory, 1, UPLOADS);
}

#[test]
fn peaks_are_within_the_formulas_on_s3() {
    peaks_are_within_the_formulas(Store::s3, 8, UPLOADS);
}

#[test]
fn peaks_are_within_the_formulas_on_gcs() {
    peaks_are_within_the_formulas(Store::gcs, 16, 1);
}

#[test]
fn peaks_are_within_the_formulas_on_azure() {
    peaks_are_within_the_formulas(Store::azure, 8, UPLOADS);
}

#[test]
fn a_streamed_backup_holds_no_wal_segment_in_memory() {
    const SEGMENT_MB: u32 = 256;
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let shape = Shape {
        version: 17,
        segment_mb: SEGMENT_MB,
    };
    let mut primary = Cluster::create(&area, "primary", shape);
    walhalla.archive_from(&mut primary);
    let peak = peak_mib(&walhalla, &primary, &["backup-push"]);
    println!("{peak} MiB");
    let most = u64::from(SEGMENT_MB / 2);
    assert!(
        peak < most,
        "a streamed backup took {peak} MiB, with segments of {SEGMENT_MB}"
    );
}
