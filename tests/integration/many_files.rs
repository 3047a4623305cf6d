//! A cluster with more files than are made durable one by one.

use crate::support::{Area, Cluster, Shape, Store, Walhalla};

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
