//! Archive, back up under load, restore to every kind of target: the main job, on every version.
//!
//! ```text
//! load ┌─first backup─┐ by_name   by_time ┌─second backup─┐ by_xid   by_lsn   the end
//! ─────┴──────────────┴────●─────────●────┴───────────────┴────●────────●────────●──▶ WAL
//! ```

use crate::support::{
    Area, Cluster, Dump, Key, Moment, PgbenchLoad, Shape, Store, Walhalla, fill, host,
    make_history, run,
};

macro_rules! whole_path_of_versions {
    ($($name:ident = $version:literal;)*) => {$(
        #[test]
        fn $name() {
            let area = Area::new();
            let store = Store::directory(&area);
            Journey::make(&area, &store, $version).check();
        }
    )*};
}

whole_path_of_versions! {
    postgres_9_6_comes_back_at_every_target = 9;
    postgres_10_comes_back_at_every_target = 10;
    postgres_11_comes_back_at_every_target = 11;
    postgres_12_comes_back_at_every_target = 12;
    postgres_13_comes_back_at_every_target = 13;
    postgres_14_comes_back_at_every_target = 14;
    postgres_15_comes_back_at_every_target = 15;
    postgres_16_comes_back_at_every_target = 16;
    postgres_17_comes_back_at_every_target = 17;
    postgres_18_comes_back_at_every_target = 18;
    postgres_19_comes_back_at_every_target = 19;
}

macro_rules! whole_path_over_stores {
    ($($name:ident = $store:path;)*) => {$(
        #[test]
        fn $name() {
            let area = Area::new();
            let store = $store(&area);
            Journey::make(&area, &store, 17).check();
        }
    )*};
}

#[test]
fn postgres_17_comes_back_at_every_target_from_s3_encrypted() {
    let area = Area::new();
    let store = Store::s3(&area);
    let key = Key::generate(&area, "walhalla.key");
    let walhalla = Walhalla::new(&area, &store)
        .encrypting_to(&[&key.recipient])
        .opening_with(&key.identity);
    Journey::make_with(&area, walhalla, 17).check();
}

whole_path_over_stores! {
    postgres_17_comes_back_at_every_target_from_s3 = Store::s3;
    postgres_17_comes_back_at_every_target_from_gcs = Store::gcs;
    postgres_17_comes_back_at_every_target_from_azure = Store::azure;
}

#[test]
fn a_restored_server_recovers_without_the_store_and_without_settings() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    walhalla.archive_from(&mut primary);
    fill(&primary);
    walhalla.back_up(&primary);
    let end = make_history(&primary, "end");
    primary.archive_everything();
    primary.stop();

    let mut restored = walhalla.restore(&area, 17, "restored", &[]);
    std::fs::rename(store.path(), area.path("store-unplugged")).unwrap();
    std::fs::remove_file(area.path("walhalla.toml")).unwrap();
    restored.start();
    restored.wait_until_promoted();
    restored
        .dump()
        .assert_same_as(&end.dump, "recovered from the stage alone");
}

#[test]
fn a_backup_over_tcp_with_a_password_file_is_as_good_as_one_over_the_socket() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    let port = primary.listen_on_tcp().to_string();
    walhalla.archive_from(&mut primary);
    fill(&primary);
    primary.sql("create role keeper login superuser password 'between us'");
    std::fs::write(
        primary.data.join("pg_hba.conf"),
        "local all postgres trust\nhost all keeper 127.0.0.1/32 scram-sha-256\n",
    )
    .unwrap();
    primary.sql("select pg_reload_conf()");
    let passfile = area.write(
        "passfile",
        "localhost:*:*:keeper:wrong\n127.0.0.1:*:postgres:keeper:between us\n",
    );
    std::fs::set_permissions(
        &passfile,
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();

    let mut command = walhalla.command(&["backup-push", primary.data.to_str().unwrap()]);
    command
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", port)
        .env("PGUSER", "keeper")
        .env("PGDATABASE", "postgres");
    run(command.env("PGPASSFILE", &passfile)).succeeds();
    assert_eq!(walhalla.backup_ids().len(), 1);
}

/// A cluster with its archive, and what its restores have to bring back.
struct Journey<'a> {
    area: &'a Area,
    walhalla: Walhalla,
    version: u32,
    first_backup: String,
    second_backup: String,
    by_name: Moment,
    by_time: Moment,
    /// What the cluster held when the second backup was taken.
    at_second_backup: Dump,
    by_xid: Moment,
    by_lsn: Moment,
    end: Dump,
}

impl<'a> Journey<'a> {
    fn make(area: &'a Area, store: &Store, version: u32) -> Self {
        Self::make_with(area, Walhalla::new(area, store), version)
    }

    fn make_with(area: &'a Area, walhalla: Walhalla, version: u32) -> Self {
        let mut primary = Cluster::create(area, "primary", Shape::of(version));
        if version < 10 {
            // As most servers of 9.6 have it; a restored one pauses all the same.
            primary.configure("hot_standby = off");
        }
        walhalla.archive_from(&mut primary);
        fill(&primary);

        let load = PgbenchLoad::start(&primary);
        let first_backup = walhalla.back_up(&primary);
        load.stop(&primary);

        let by_name = make_history(&primary, "by_name");
        let by_time = make_history(&primary, "by_time");
        let at_second_backup = primary.dump();
        let second_backup = walhalla.back_up(&primary);
        let by_xid = make_history(&primary, "by_xid");
        let by_lsn = make_history(&primary, "by_lsn");
        let end = make_history(&primary, "end").dump;
        primary.archive_everything();
        primary.stop();

        Self {
            area,
            walhalla,
            version,
            first_backup,
            second_backup,
            by_name,
            by_time,
            at_second_backup,
            by_xid,
            by_lsn,
            end,
        }
    }

    fn check(&self) {
        self.backups_are_listed();
        self.first_backup_is_verified_by_postgres();
        self.plan_names_the_first_backup_for_the_name();
        self.paused_at(&["--target-name", &self.by_name.name], &self.by_name.dump);
        self.promoted_at(&["--target-time", &self.by_time.time], &self.by_time.dump);
        self.promoted_at(&["--target-xid", &self.by_xid.xid], &self.by_xid.dump);
        self.at_an_lsn();
        self.paused_at(&["--target-immediate"], &self.at_second_backup);
        self.first_backup_is_consistent_in_itself();
        self.end_of_the_archive();
    }

    fn backups_are_listed(&self) {
        assert_eq!(
            self.walhalla.backup_ids(),
            [self.first_backup.clone(), self.second_backup.clone()]
        );
        let list = self
            .walhalla
            .run(&["backup-list", "--json"])
            .succeeds()
            .json();
        let newest = &list[1];
        assert_eq!(newest["kind"], "full");
        assert_eq!(newest["timeline"], 1);
        assert_eq!(newest["permanent"], false);
        assert!(newest["parent"].is_null());
        assert!(newest["id"].as_str().unwrap().ends_with("-F"));
        for key in [
            "start_lsn",
            "stop_lsn",
            "start_time",
            "stop_time",
            "system_identifier",
            "postgres_version",
        ] {
            assert!(
                !newest[key].is_null(),
                "backup-list --json without {key}: {list:#}"
            );
        }
        assert!(
            newest["size_bytes"].as_u64() > newest["stored_bytes"].as_u64(),
            "lz4 made nothing smaller: {list:#}"
        );
    }

    fn first_backup_is_verified_by_postgres(&self) {
        let dir = self.area.path("fetched");
        self.walhalla
            .run(&["backup-fetch", dir.to_str().unwrap(), &self.first_backup])
            .succeeds();
        // That of 14 checks backups of earlier versions; 12 and earlier have no manifest of their own, and these have.
        // Without `-n` it would parse the WAL by the `pg_waldump` of the cluster's version; the fetch brings no WAL.
        let mut verify = host().command(host().client_program(self.version, "pg_verifybackup"));
        run(verify.arg("-n").arg(&dir)).succeeds();
        std::fs::remove_dir_all(&dir).unwrap();
    }

    fn plan_names_the_first_backup_for_the_name(&self) {
        let plan = self
            .walhalla
            .run(&["plan", "--json", "--target-name", &self.by_name.name])
            .succeeds()
            .json();
        assert_eq!(plan["reachable"], true, "{plan:#}");
        assert_eq!(
            plan["backup_chain"].as_array().unwrap().len(),
            1,
            "{plan:#}"
        );
        assert!(
            plan["backup_chain"][0]
                .to_string()
                .contains(&self.first_backup),
            "{plan:#}"
        );
    }

    /// 9.6 has no setting for it.
    fn at_an_lsn(&self) {
        let target = ["--target-lsn", self.by_lsn.lsn.as_str()];
        if self.version >= 10 {
            return self.paused_at(&target, &self.by_lsn.dump);
        }
        let plan = self.walhalla.run(&["plan", target[0], target[1]]);
        plan.exits_with(4)
            .says(&["PostgreSQL 9.6 cannot stop at an LSN"]);
    }

    /// Recovery pauses at a target unless told otherwise, as PostgreSQL's own setting does.
    fn paused_at(&self, target: &[&str], expected: &Dump) {
        let mut restored = self
            .walhalla
            .restore(self.area, self.version, "restored", target);
        restored.start();
        restored.wait_until_paused();
        compare_and_remove(restored, target, expected);
    }

    fn promoted_at(&self, target: &[&str], expected: &Dump) {
        let args = [target, &["--target-action", "promote"]].concat();
        let mut restored = self
            .walhalla
            .restore(self.area, self.version, "restored", &args);
        restored.start();
        restored.wait_until_promoted();
        compare_and_remove(restored, target, expected);
    }

    fn end_of_the_archive(&self) {
        let mut restored = self
            .walhalla
            .restore(self.area, self.version, "restored", &[]);
        restored.start();
        restored.wait_until_promoted();
        restored.sql("create table written_after as select 1 as one");
        restored.sql("drop table written_after");
        compare_and_remove(restored, &["the end of the archive"], &self.end);
    }

    /// The first backup was taken while clients wrote, so that no dump belongs to it, but the books have to balance.
    fn first_backup_is_consistent_in_itself(&self) {
        let args = ["--backup", &self.first_backup, "--target-immediate"];
        let mut restored = self
            .walhalla
            .restore(self.area, self.version, "restored", &args);
        restored.start();
        restored.wait_until_paused();
        restored.assert_books_balance();
        let dump = restored.dump();
        compare_and_remove(restored, &args, &dump);
    }
}

fn compare_and_remove(mut restored: Cluster, target: &[&str], expected: &Dump) {
    restored.dump().assert_same_as(expected, &target.join(" "));
    restored.amcheck();
    restored.assert_books_balance();
    restored.stop();
    std::fs::remove_dir_all(&restored.data).unwrap();
}
