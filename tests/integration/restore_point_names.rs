//! Restore points whose names are no plain words: PostgreSQL compares bytes.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use crate::support::{Area, Cluster, Shape, Store, Walhalla, host, run};

/// Names as SQL makes them in a database of this encoding, and their bytes.
const NAMES: [(&str, &str, &[u8]); 5] = [
    ("latin", r"convert_from('\x636166e9', 'LATIN1')", b"caf\xe9"),
    (
        "postgres",
        r"convert_from('\x636166e9', 'LATIN1')",
        b"caf\xc3\xa9",
    ),
    ("postgres", r"E'it''s\\a \nline'", b"it's\\a \nline"),
    (
        "latin",
        r"repeat(convert_from('\xfc', 'LATIN1'), 63)",
        &[0xfc; 63],
    ),
    (
        "postgres",
        "'$(touch /tmp/x) %p \"`'",
        b"$(touch /tmp/x) %p \"`",
    ),
];

fn names_work_byte_for_byte(version: u32) {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::small(version));
    walhalla.archive_from(&mut primary);
    primary.sql(
        "create database latin encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0",
    );
    primary.sql("create table t (i int)");
    walhalla.back_up(&primary);
    for (index, (database, name, _)) in NAMES.iter().enumerate() {
        primary.sql(&format!("insert into t values ({index})"));
        let create = format!("select pg_create_restore_point({name})");
        let mut psql = primary.client("psql");
        run(psql.args(["-X", "-d", database, "-c", &create])).succeeds();
    }
    primary.archive_everything();
    primary.stop();

    let found = walhalla
        .run(&["find", "--restore-points", "--json"])
        .succeeds()
        .json();
    assert_eq!(found.as_array().unwrap().len(), NAMES.len(), "{found}");
    let text = walhalla
        .run(&["find", "--restore-points"])
        .succeeds()
        .stdout;
    assert!(text.contains("caf\\xe9") && text.contains("café"), "{text}");
    for (index, (_, _, bytes)) in NAMES.iter().enumerate() {
        let word = OsString::from_vec(bytes.to_vec());
        let planned = run(walhalla.command(&["plan", "--target-name"]).arg(&word)).succeeds();
        assert!(!planned.stdout.contains('\u{fffd}'), "{planned}");

        // A name that is nearly right: what the hint offers leads there when a shell reads it.
        let mut near = bytes.to_vec();
        near.push(b'x');
        let near = OsString::from_vec(near);
        let refused = run(walhalla.command(&["plan", "--target-name"]).arg(&near)).exits_with(4);
        let (_, hint) = refused.stderr.split_once("use instead: ").unwrap();
        let hint = hint.lines().next().unwrap();
        let copy = area.path(&format!("copy{index}"));
        let restore = walhalla.command(&["restore", copy.to_str().unwrap()]);
        let mut shell = host().command("bash");
        let command = restore.get_args().fold(
            restore.get_program().to_string_lossy().into_owned(),
            |command, word| format!("{command} '{}'", word.to_str().unwrap()),
        );
        let script = format!("{command} {hint} --target-action promote --archive-mode off");
        run(shell.args(["-c", &script])).succeeds();
        let mut copy = Cluster::adopt(&area, version, copy);
        copy.start();
        copy.wait_until_promoted();
        assert_eq!(
            copy.sql("select max(i) from t"),
            index.to_string(),
            "{hint}"
        );
        copy.stop();
    }
}

#[test]
fn names_of_restore_points_work_byte_for_byte_on_11() {
    names_work_byte_for_byte(11);
}

#[test]
fn names_of_restore_points_work_byte_for_byte_on_17() {
    names_work_byte_for_byte(17);
}
