//! What is stored opens with stock tools, so that losing Walhalla loses nobody their data.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use sha2::{Digest as _, Sha256};

use crate::support::{
    Area, Cluster, Key, Outcome, Segments, Shape, Store, Walhalla, fill, host, make_history, run,
};

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
        assert_index_leads_to_files(&store, suffix, program);
    }
}

/// What the index says of places and lengths cuts files out of the unpacked parts and frames out of the stored ones.
fn assert_index_leads_to_files(store: &Store, suffix: &str, program: &[&str]) {
    let json = |name: &str| -> serde_json::Value {
        let object = store.objects_named(&format!("{name}{suffix}")).remove(0);
        serde_json::from_slice(&unpacked(program, &object)).unwrap()
    };
    let (index, manifest) = (json("index.json"), json("backup_manifest"));
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let listed = manifest["Files"].as_array().unwrap().iter();
    let mut listed: HashMap<String, String> = listed
        .map(|file| (text(&file["Path"]), text(&file["Checksum"])))
        .collect();
    let number = |value: &serde_json::Value| usize::try_from(value.as_u64().unwrap()).unwrap();
    for part in index["parts"].as_array().unwrap() {
        let name = text(&part["name"]);
        let object = store.objects_named(name.strip_prefix("base/").unwrap());
        let tar = unpacked(program, &object[0]);
        for file in part["files"].as_array().unwrap() {
            let offset = number(&file["offset"]);
            let content = &tar[offset..offset + number(&file["size_bytes"])];
            let checksum = listed.remove(&text(&file["path"]));
            let crc = hex::encode(crc32c::crc32c(content).to_le_bytes());
            assert_eq!(checksum, Some(crc));
        }
        let stored = std::fs::read(&object[0]).unwrap();
        let (mut tar, mut stored) = (tar.as_slice(), stored.as_slice());
        for frame in part["frames"].as_array().unwrap() {
            let (block, rest) = tar.split_at(number(&frame[0]));
            let (packed, stored_rest) = stored.split_at(number(&frame[1]));
            let digest = walhalla::pipeline::BlockDigest::of(block);
            assert_eq!(text(&frame[2]), hex::encode(digest.bytes()));
            let alone = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(&alone, packed).unwrap();
            assert!(unpacked(program, alone.path()) == block, "{name}");
            (tar, stored) = (rest, stored_rest);
        }
        assert_eq!((tar.len(), stored.len()), (0, 0), "{name}");
    }
    assert!(listed.is_empty(), "in no part: {listed:?}");
}

/// Runs a line of shell as the unprivileged user.
#[track_caller]
fn shell(line: &str) -> Outcome {
    run(host()
        .command("bash")
        .args(["-eu", "-o", "pipefail", "-c", line]))
    .succeeds()
}

#[test]
fn an_encrypted_segment_opens_with_age_and_the_compressions_own_program() {
    let area = Area::new();
    let store = Store::directory(&area);
    let segments = Segments::make(&area, COMPRESSIONS.len());
    let [own, ssh] = [
        Key::generate(&area, "walhalla.key"),
        Key::ssh(&area, "ed25519", ""),
    ];
    for (name, (compression, suffix, program)) in segments.names.iter().zip(COMPRESSIONS) {
        let walhalla = with_compression(&area, &store, compression)
            .encrypting_to(&[&own.recipient, &ssh.recipient]);
        segments.push(&walhalla, name).succeeds();
        let object = store.object_of(name).display().to_string();
        assert!(object.ends_with(&format!("{name}{suffix}.age")), "{object}");
        for key in [&own, &ssh] {
            let opened = area.path("opened").display().to_string();
            let (identity, program) = (key.identity.display(), program.join(" "));
            shell(&format!(
                "age --decrypt --identity {identity} {object} | {program} - > {opened}"
            ));
            assert!(
                std::fs::read(opened).unwrap() == segments.original(name),
                "{compression}"
            );
        }
    }
}

#[test]
fn a_segment_that_stock_tools_packed_is_fetched_and_known() {
    let area = Area::new();
    let store = Store::directory(&area);
    let segments = Segments::make(&area, 1);
    let name = &segments.names[0];
    let key = Key::generate(&area, "walhalla.key");
    let walhalla = Walhalla::new(&area, &store).opening_with(&key.identity);
    segments.push(&walhalla, name).succeeds();
    let written = store.object_of(name);
    let folder = written.parent().unwrap().to_owned();
    std::fs::remove_file(written).unwrap();

    let (recipient, original) = (
        &key.recipient,
        area.write("original", segments.original(name)),
    );
    let original = original.display();
    for (suffix, program) in [
        (".lz4", "lz4 -c".to_owned()),
        (".lz4", "lz4 -9 -B4 -BD --no-frame-crc -c".to_owned()),
        (".zst", "zstd -19 -c".to_owned()),
        (".zst", "zstd --long=27 --no-check -c".to_owned()),
        (".age", format!("age -r {recipient}")),
        (".lz4.age", format!("lz4 -c | age -r {recipient}")),
        (".zst.age", format!("zstd -c | age -r {recipient}")),
        (".lz4.age", format!("lz4 -c | age --armor -r {recipient}")),
    ] {
        let object = folder.join(format!("{name}{suffix}"));
        shell(&format!(
            "cat {original} | {program} > {}",
            object.display()
        ));
        let (outcome, fetched) = segments.fetch(&walhalla, name);
        if program.contains("--armor") {
            // Twice the bytes for nothing: it is said, not read.
            outcome.exits_with(1).says(&[name]);
        } else {
            outcome.succeeds();
            assert!(fetched.unwrap() == segments.original(name), "{program}");
            segments
                .push(&walhalla, name)
                .succeeds()
                .says(&["was archived before"]);
            walhalla.run(&["wal-verify", "--deep"]).succeeds();
        }
        std::fs::remove_file(&object).unwrap();
    }
}

#[test]
fn a_part_of_a_backup_that_stock_tools_packed_is_restored() {
    let area = Area::new();
    let store = Store::directory(&area);
    let key = Key::generate(&area, "walhalla.key");
    let walhalla = Walhalla::new(&area, &store)
        .encrypting_to(&[&key.recipient])
        .opening_with(&key.identity);
    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    walhalla.archive_from(&mut primary);
    fill(&primary);
    walhalla.back_up(&primary);
    let end = make_history(&primary, "end").dump;
    primary.archive_everything();
    primary.stop();

    let part = store.objects_named("00001.tar.lz4.age").remove(0);
    let before = std::fs::read(&part).unwrap();
    area.make_dir("untarred");
    let (area_path, part_path) = (area.root().display(), part.display());
    shell(&format!(
        "cd {area_path}/untarred
         age --decrypt --identity ../walhalla.key {part_path} | lz4 -dc - > ../part.tar
         tar -tf ../part.tar > ../names
         tar -xpf ../part.tar
         tar -c --no-recursion -T ../names | lz4 -c | age -r {} > {part_path}",
        key.recipient
    ));
    let after = std::fs::read(&part).unwrap();
    assert!(before != after);
    enter_part(&store, &before, &after);

    walhalla.run(&["verify"]).succeeds();
    let mut restored = walhalla.restore(&area, 17, "restored", &[]);
    restored.start();
    restored.wait_until_promoted();
    restored
        .dump()
        .assert_same_as(&end, "a part by tar, lz4 and age");
}

/// Writes a part's new checksum and length into `backup.json`, and takes out the index, whose frames are not those of
/// the new part, as whoever replaces one has to.
fn enter_part(store: &Store, before: &[u8], after: &[u8]) {
    let path = store.objects_named("backup.json").remove(0);
    let text = std::fs::read_to_string(&path).unwrap();
    let [old, new] = [before, after].map(|bytes| blake3::hash(bytes).to_hex());
    let line = |bytes: &[u8], digest: &str| {
        let length = bytes.len();
        format!("\"stored_bytes\": {length},\n      \"blake3\": \"{digest}\"")
    };
    assert!(text.contains(&line(before, &old)), "{text}");
    let text = text.replace(&line(before, &old), &line(after, &new));
    let (begin, rest) = text.split_once("  \"index\": {").unwrap();
    let (_, rest) = rest.split_once("},\n").unwrap();
    let text = format!("{begin}{rest}");
    std::fs::remove_file(store.objects_named("index.json").remove(0)).unwrap();
    let (covered, _) = text.rsplit_once(",\n  \"checksum\": \"").unwrap();
    let checksum = hex::encode(Sha256::digest(covered));
    let text = format!("{covered},\n  \"checksum\": \"{checksum}\"\n}}\n");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, text).unwrap();
    host().give_to_user(&path);
}

/// As two servers with different settings leave it that pushed at the same moment: neither may go on as if it were alone.
#[test]
fn a_segment_with_other_content_in_another_form_is_refused_however_often_it_is_pushed() {
    let area = Area::new();
    let (store, other) = (
        Store::directory(&area),
        Store::Directory(area.make_dir("other")),
    );
    let segments = Segments::make(&area, 1);
    let name = &segments.names[0];
    let original = segments.original(name);
    let mut twin = original.clone();
    // XLP_BKP_REMOVABLE in the second page's header, which is sound either way.
    twin[8192 + 2] ^= 4;
    segments.put(name, &twin);
    segments
        .push(&with_compression(&area, &other, "zstd"), name)
        .succeeds();
    segments.put(name, &original);
    let walhalla = with_compression(&area, &store, "lz4");
    segments.push(&walhalla, name).succeeds();
    let foreign = other.objects_named(name).remove(0);
    let beside = store.objects_named(name).remove(0).with_extension("zst");
    std::fs::copy(foreign, &beside).unwrap();
    host().give_to_user(&beside);
    for _ in 0..2 {
        segments
            .push(&walhalla, name)
            .exits_with(1)
            .says(&["other content"]);
    }
}
