//! Backups of one server that are taken at the same time.

use std::process::{Child, Stdio};

use crate::support::{Area, Cluster, Shape, Store, Walhalla};

#[test]
fn backups_that_begin_in_the_same_second_have_ids_of_their_own() {
    let area = Area::new();
    let walhalla = Walhalla::new(&area, &Store::directory(&area));
    let mut cluster = Cluster::create(&area, "pg", Shape::small(17));
    walhalla.archive_from(&mut cluster);
    let begin = |_| -> Child {
        let mut command = walhalla.command(&["backup-push", cluster.data.to_str().unwrap()]);
        let command = command.envs(cluster.connection());
        command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let running: Vec<Child> = (0..4).map(begin).collect();
    for child in running {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    assert_eq!(walhalla.backup_ids().len(), 4);
    walhalla.run(&["verify", "--all"]).succeeds();
}
