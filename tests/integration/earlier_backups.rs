//! Backups of earlier versions: SHA-256 in the manifest and in `backup.json`, and no XXH3 in the index.

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use walhalla::contents::checksum::Checksum;
use walhalla::contents::manifest::{self, FileFacts, Head, Manifest, WalRange};
use walhalla::pipeline::StoredDigest;
use walhalla::repository::{BackupEntry, BackupKind};

use crate::support::{
    Area, Cluster, Shape, Store, Walhalla, fill, host, make_history, run, with_a_byte_changed,
};

struct Site {
    area: Area,
    store: Store,
    walhalla: Walhalla,
    cluster: Cluster,
}

impl Site {
    /// A full backup and a delta, as earlier versions stored them.
    fn make() -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::with_settings(&area, &store, "compression = \"none\"");
        let mut cluster = Cluster::create(&area, "primary", Shape::of(17));
        walhalla.archive_from(&mut cluster);
        fill(&cluster);
        walhalla.back_up(&cluster);
        make_history(&cluster, "between");
        let site = Self {
            area,
            store,
            walhalla,
            cluster,
        };
        site.take_delta();
        let mut parent_manifest = None;
        for id in site.walhalla.backup_ids() {
            parent_manifest = Some(site.make_earlier(&id, parent_manifest));
        }
        site
    }

    fn take_delta(&self) -> serde_json::Value {
        let data = self.cluster.data.to_str().unwrap();
        let push = ["backup-push", data, "--delta", "--json"];
        let taken = self.walhalla.run_with(&self.cluster, &push);
        taken.succeeds().json()
    }

    fn folder(&self, id: &str) -> PathBuf {
        let mut entries = self.store.objects_named("backup.json");
        entries.retain(|path| path.parent().unwrap().ends_with(id));
        entries.remove(0).parent().unwrap().to_owned()
    }

    /// Rewrites what tells of a backup; returns the digest of its manifest.
    fn make_earlier(&self, id: &str, parent_manifest: Option<String>) -> String {
        let folder = self.folder(id);
        let path = folder.join("backup.json");
        let mut entry = BackupEntry::parse(&std::fs::read(&path).unwrap()).unwrap();
        self.rewrite_manifest(&folder, &entry);
        rewrite_index(&folder.join("index.json"));
        let lists = [Some(&mut entry.manifest), entry.index.as_mut()];
        for list in lists.into_iter().flatten() {
            list.size_bytes = std::fs::metadata(folder.join(&list.name)).unwrap().len();
        }
        let lists = [
            Some(&mut entry.manifest),
            entry.index.as_mut(),
            entry.relations.as_mut(),
        ];
        for part in entry.parts.iter_mut().chain(lists.into_iter().flatten()) {
            let stored = std::fs::read(folder.join(&part.name)).unwrap();
            part.stored_bytes = stored.len() as u64;
            part.digest = StoredDigest::Sha256(Sha256::digest(&stored).into());
        }
        entry.format = match entry.kind {
            BackupKind::Full => 1,
            BackupKind::Delta => 2,
        };
        entry.parent_manifest = parent_manifest;
        let text = entry.to_text().unwrap();
        assert!(text.contains("\"sha256\"") && !text.contains("\"blake3\""));
        replace(&path, text.as_bytes());
        entry.manifest.digest.to_hex()
    }

    fn rewrite_manifest(&self, folder: &Path, entry: &BackupEntry) {
        let unpacked = self.area.make_dir(&format!("untarred-{}", entry.id));
        for part in &entry.parts {
            let mut tar = host().command("tar");
            tar.arg("-xf").arg(folder.join(&part.name)).arg("-C");
            run(tar.arg(&unpacked)).succeeds();
        }
        let path = folder.join("backup_manifest");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("CRC32C"), "{text}");
        let manifest = Manifest::read(text.as_bytes()).unwrap();
        let files = manifest.files.list().iter().map(|(file, facts)| {
            let content = std::fs::read(unpacked.join(&file)).unwrap();
            let checksum = Checksum::Sha256(Box::new(Sha256::digest(content).into()));
            (file, FileFacts { checksum, ..*facts })
        });
        let wal = WalRange {
            timeline: entry.timeline,
            start: entry.start_lsn,
            end: entry.stop_lsn,
        };
        let head = Head {
            version: entry.postgres_version,
            cluster: entry.system_identifier,
            wal,
        };
        let mut text = Vec::new();
        manifest::write(&mut text, head, files).unwrap();
        replace(&path, &text);
    }

    fn restored(&self, name: &str, args: &[&str]) {
        let mut restored = self.walhalla.restore(&self.area, 17, name, args);
        restored.start();
        restored.wait_until_promoted();
        let expected = self.cluster.dump();
        restored.dump().assert_same_as(&expected, name);
        restored.amcheck();
        restored.stop();
    }
}

fn rewrite_index(path: &Path) {
    let mut index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for part in index["parts"].as_array_mut().unwrap() {
        for file in part["files"].as_array_mut().unwrap() {
            let known = file.as_object_mut().unwrap().remove("xxh128");
            assert!(known.is_some());
        }
    }
    replace(path, index.to_string().as_bytes());
}

fn replace(path: &Path, content: &[u8]) {
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, content).unwrap();
    host().give_to_user(path);
}

#[test]
fn backups_of_earlier_versions_are_verified_restored_merged_and_built_on() {
    let site = Site::make();
    site.cluster.archive_everything();
    site.walhalla.run(&["verify", "--all"]).succeeds();
    site.restored("chain", &[]);

    let there = site.area.path("there");
    let fetch = |args: &[&str]| {
        let mut all = vec!["backup-fetch", there.to_str().unwrap(), "LATEST", "--json"];
        all.extend_from_slice(args);
        let fetched = site.walhalla.run(&all).succeeds().json();
        fetched["kept_bytes"].as_u64().unwrap()
    };
    assert_eq!(fetch(&[]), 0);
    assert!(fetch(&["--delta"]) > 20 << 20);

    site.walhalla.run(&["backup-merge", "LATEST"]).succeeds();
    site.walhalla.run(&["verify", "--all"]).succeeds();
    make_history(&site.cluster, "after");
    let delta = site.take_delta();
    assert_eq!(delta["kind"], "delta", "{delta}");
    site.cluster.archive_everything();
    site.restored("built on", &[]);
}

#[test]
fn a_damaged_part_of_an_earlier_version_is_found() {
    let site = Site::make();
    let part = site.store.objects_named("00001.tar").remove(0);
    let content = with_a_byte_changed(&std::fs::read(&part).unwrap());
    replace(&part, &content);
    let verified = site.walhalla.run(&["verify", "--all"]);
    verified
        .exits_with(3)
        .says(&["its checksum is not the one in backup.json"]);
}
