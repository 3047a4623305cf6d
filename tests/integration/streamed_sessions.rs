//! What may befall a streamed backup: its later sessions, its temporary directory, and what the server has lost.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::streamed::{
    change, command, on_a_directory, prepared, restored_to_the_end, stream, streaming,
};
use crate::support::{Area, Cluster, End, Line, Shape, Walhalla, eventually, run};

/// A cluster that archives and listens on the port that is returned.
fn on_tcp(area: &Area, walhalla: &Walhalla, version: u32) -> (Cluster, u16) {
    let mut cluster = Cluster::create(area, "primary", Shape::of(version));
    let port = cluster.listen_on_tcp();
    (prepared(area, walhalla, cluster), port)
}

#[test]
fn a_streamed_backup_survives_that_each_of_its_later_sessions_breaks_once() {
    let (area, walhalla) = on_a_directory();
    let (cluster, port) = on_tcp(&area, &walhalla, 16);
    stream(&walhalla, &cluster, &[]);
    let end = change(&cluster, "end");
    for kind in ["--with-wal", "--delta"] {
        let take = |line: &Line| {
            let mut command = command(&walhalla, &cluster, &[kind]);
            run(command.envs(line.connection()))
        };
        let sound = Line::new(move |_| End::Port(port));
        take(&sound).succeeds();
        let sessions = sound.opened();
        assert!(sessions > 1, "there is but one session");
        // Each of the later ones is broken, and the one that follows it is the second try.
        let breaking = Line::new(move |number| match number % 2 {
            0 => End::Broken,
            _ => End::Port(port),
        });
        take(&breaking)
            .succeeds()
            .says(&["the connection broke", "trying again"]);
        assert!(breaking.opened() > sessions, "{kind}");
    }
    let delta = walhalla.newest_backup();
    cluster.archive_everything();
    restored_to_the_end(&area, &walhalla, 16, &delta, &end.dump);
}

#[test]
fn a_streamed_backup_whose_later_session_reaches_another_cluster_is_refused() {
    let (area, walhalla) = on_a_directory();
    let (cluster, port) = on_tcp(&area, &walhalla, 16);
    let mut other = Cluster::create(&area, "other", Shape::of(15));
    let elsewhere = other.listen_on_tcp();
    other.start();
    other.sql("create role keeper login replication");
    let (own, found) = (cluster.system_identifier(), other.system_identifier());
    let line = Line::new(move |number| match number {
        1 => End::Port(port),
        _ => End::Port(elsewhere),
    });
    let message = format!("is cluster {found}, and the backup was begun on cluster {own}");
    let mut command = command(&walhalla, &cluster, &[]);
    run(command.envs(line.connection()))
        .exits_with(1)
        .says(&[&message, "without a pooler or a load balancer"]);
    assert!(walhalla.backup_ids().is_empty());
}

/// The folders below `temporary`.
fn folders(temporary: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(temporary).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn what_a_killed_streamed_backup_leaves_in_the_temporary_directory_the_next_one_removes() {
    let (area, walhalla) = on_a_directory();
    let cluster = Cluster::create(&area, "primary", Shape::of(16));
    let cluster = prepared(&area, &walhalla, cluster);
    let temporary = area.make_dir("temporary");
    let slowly = ["--with-wal", "--read-rate", "1KiB"];
    let mut slow = command(&walhalla, &cluster, &slowly);
    slow.env("TMPDIR", &temporary)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut killed = slow.spawn().unwrap();
    // That of the backup, and that of its WAL.
    eventually("the WAL to come", Duration::from_mins(1), || {
        let all = folders(&temporary);
        let of_wal = |folder: &Path| {
            let inner = std::fs::read_dir(folder).into_iter().flatten().flatten();
            inner
                .map(|entry| entry.file_name())
                .any(|name| name.to_string_lossy().starts_with("wal-receive-"))
        };
        all.len() == 2 && all.iter().any(|folder| of_wal(folder))
    });
    for folder in folders(&temporary) {
        let mode = std::fs::metadata(&folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700, "{}", folder.display());
    }
    // Those of a living run stay.
    let mut beside = command(&walhalla, &cluster, &[]);
    run(beside.env("TMPDIR", &temporary)).succeeds();
    assert_eq!(folders(&temporary).len(), 2);
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(folders(&temporary).len(), 2);
    let somebodys = temporary.join("walhalla-backup-0123456789abcdef");
    std::fs::create_dir(&somebodys).unwrap();
    std::fs::write(somebodys.join("precious"), "x").unwrap();
    run(beside.env("TMPDIR", &temporary)).succeeds();
    assert_eq!(folders(&temporary), [somebodys]);
}

#[test]
fn a_history_that_neither_the_server_nor_the_archive_has_is_named_with_what_that_means() {
    let (area, walhalla) = on_a_directory();
    let mut cluster = Cluster::create(&area, "primary", Shape::of(16));
    // What a server without a life of its own wrote is too little for a standby.
    cluster.start();
    cluster.stop();
    for _ in 0..2 {
        cluster.promote();
        cluster.stop();
    }
    std::fs::remove_file(cluster.wal_folder().join("00000002.history")).unwrap();
    let cluster = prepared(&area, &walhalla, cluster);
    streaming(&walhalla, &cluster, &[]).succeeds().says(&[
        "neither the server nor the archive has 00000002.history",
        "no restore from an earlier timeline can go to timeline 2 itself",
    ]);
}
