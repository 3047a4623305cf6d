//! Files of a cluster: more than are made durable one by one, and such as have holes.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use crate::support::{Area, Cluster, Shape, Store, Walhalla, host};

#[test]
fn a_cluster_of_thousands_of_files_is_restored() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    walhalla.archive_from(&mut primary);
    primary.sql("create extension amcheck");
    primary.sql(
        "do $$ begin for i in 1..500 loop \
         execute format('create table t%s (a int primary key, b text)', i); \
         execute format('insert into t%s values (1, %L)', i, i); end loop; end $$",
    );
    walhalla.back_up(&primary);
    primary.archive_everything();
    let expected = primary.dump();
    primary.stop();

    let data = area.path("restored");
    let args = ["restore", data.to_str().unwrap(), "--archive-mode", "off"];
    walhalla.run(&args).succeeds();
    let mut restored = Cluster::adopt(&area, 17, data);
    restored.start();
    restored.wait_until_promoted();
    restored.dump().assert_same_as(&expected, "restored");
    restored.amcheck();
}

#[test]
fn a_hole_in_a_file_takes_no_room_where_it_is_restored() {
    const LENGTH: u64 = (64 << 20) + 5;
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    walhalla.archive_from(&mut primary);
    let path = primary.data.join("with-holes");
    let file = File::create(&path).unwrap();
    file.set_len(LENGTH).unwrap();
    for at in [0, 20 << 20, (40 << 20) - 1] {
        file.write_all_at(b"content", at).unwrap();
    }
    host().give_to_user(&path);
    walhalla.back_up(&primary);
    let newest = walhalla.newest_backup();
    let data = area.path("restored");
    let fetch = ["backup-fetch", data.to_str().unwrap(), &newest];
    walhalla.run(&fetch).succeeds();
    let restored = data.join("with-holes");
    assert!(std::fs::read(&restored).unwrap() == std::fs::read(&path).unwrap());
    let on_disk = restored.metadata().unwrap().blocks() * 512;
    assert!(on_disk < 4 << 20, "{on_disk} bytes are on the disk");
}
