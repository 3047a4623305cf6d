//! A server shuts down although its commands cannot reach the store.

use std::time::{Duration, Instant};

use crate::support::{Area, Cluster, Shape, Store, Walhalla, eventually, s3_env};

/// Nobody listens there.
const AWAY: &str = "http://127.0.0.1:9";

/// `pg_ctl` waits for a minute; this is for six tries of the archiver.
const LIMIT: Duration = Duration::from_secs(50);

#[test]
fn a_fast_shutdown_does_not_wait_for_a_store_that_is_away() {
    for version in [10, 17] {
        let area = Area::new();
        let store = Store::directory(&area);
        let mut walhalla = Walhalla::with_settings(&area, &store, "");
        for (key, value) in s3_env(AWAY) {
            walhalla = walhalla.with_env(&key, &value);
        }
        let away = walhalla.with_env("WALHALLA_STORE", "s3://bucket/prefix");
        let mut cluster = Cluster::create(&area, "server", Shape::small(version));
        away.archive_from(&mut cluster);
        cluster.sql("create table t as select 1 as a");
        cluster.switch_segment();
        std::thread::sleep(Duration::from_secs(1));
        let begun = Instant::now();
        cluster.stop();
        assert!(begun.elapsed() < LIMIT, "{version}: {:?}", begun.elapsed());
        let log = cluster.log_text();
        assert!(log.contains("archive command failed"), "{log}");
        let lines = log.lines().filter(|line| line.contains("WARN")).count();
        assert!(lines < 10, "{lines} warnings: {log}");

        // Nothing is lost by it.
        walhalla.archive_from(&mut cluster);
        eventually("the backlog to be archived", Duration::from_mins(1), || {
            cluster.sql("select archived_count > 0 from pg_stat_archiver") == "t"
        });
        cluster.stop();
    }
}
