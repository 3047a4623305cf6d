//! What is stored opens with stock tools, so that losing Walhalla loses nobody their data.

use std::path::Path;
use std::process::Command;

use crate::support::{Area, Cluster, Segments, Shape, Store, Walhalla, fill, host, run};

/// A compression, its file suffix, and the program that undoes it.
const COMPRESSIONS: [(&str, &str, &[&str]); 3] = [
    ("lz4", ".lz4", &["lz4", "-dc"]),
    ("zstd:3", ".zst", &["zstd", "-dc"]),
    ("none", "", &["cat"]),
];

fn with_compression(area: &Area, store: &Store, compression: &str) -> Walhalla {
    Walhalla::with_settings(area, store, &format!("compression = \"{compression}\""))
}

fn unpacked(program: &[&str], object: &Path) -> Vec<u8> {
    let output = Command::new(program[0])
        .args(&program[1..])
        .arg(object)
        .output()
        .unwrap();
    assert!(output.status.success(), "{program:?} {}", object.display());
    output.stdout
}

#[test]
fn a_stored_segment_opens_with_the_compressions_own_program() {
    let area = Area::new();
    let store = Store::directory(&area);
    let segments = Segments::make(&area, COMPRESSIONS.len());
    for (name, (compression, suffix, program)) in segments.names.iter().zip(COMPRESSIONS) {
        let walhalla = with_compression(&area, &store, compression);
        segments.push(&walhalla, name).succeeds();
        let objects = store.objects_named(&format!("{name}{suffix}"));
        assert_eq!(objects.len(), 1, "{compression}: {objects:?}");
        assert!(
            unpacked(program, &objects[0]) == segments.original(name),
            "{compression}"
        );
    }
    // Whatever is set now, what was stored before is read.
    let walhalla = with_compression(&area, &store, "lz4");
    for name in &segments.names {
        segments.assert_archived(&walhalla, name);
        segments.push(&walhalla, name).succeeds();
    }
}

#[test]
fn a_backups_parts_untar_to_a_directory_that_postgres_verifies() {
    for (compression, suffix, program) in COMPRESSIONS {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = with_compression(&area, &store, compression);
        let mut primary = Cluster::create(&area, "primary", Shape::of(17));
        walhalla.archive_from(&mut primary);
        fill(&primary);
        walhalla.back_up(&primary);

        let dir = area.make_dir("untarred");
        let mut parts = store.objects_named("");
        parts.retain(|object| object.to_string_lossy().ends_with(&format!(".tar{suffix}")));
        assert!(!parts.is_empty(), "{compression}: no parts");
        for part in parts {
            let tar = area.write("part.tar", unpacked(program, &part));
            run(host()
                .command("tar")
                .arg("-x")
                .arg("-C")
                .arg(&dir)
                .arg("-f")
                .arg(tar))
            .succeeds();
        }
        let manifest = store.objects_named(&format!("backup_manifest{suffix}"));
        area.write("untarred/backup_manifest", unpacked(program, &manifest[0]));
        let mut verify = host().command(host().client_program(17, "pg_verifybackup"));
        run(verify.arg("-n").arg(&dir)).succeeds();
    }
}
