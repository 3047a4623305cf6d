//! How `backup-push` finds and enters the server: as libpq would, and without running anybody else's code.

use crate::support::{Area, Cluster, Outcome, Shape, Store, Walhalla, host, run};

/// A server that archives, and the program with its settings.
fn archiving(area: &Area, version: u32) -> (Cluster, Walhalla) {
    let walhalla = Walhalla::new(area, &Store::directory(area));
    let mut cluster = Cluster::create(area, "pg", Shape::small(version));
    walhalla.archive_from(&mut cluster);
    (cluster, walhalla)
}

/// `backup-push` with these variables and no others.
fn push(walhalla: &Walhalla, cluster: &Cluster, variables: &[(&str, &str)]) -> Outcome {
    let mut command = walhalla.command(&["backup-push", cluster.data.to_str().unwrap()]);
    run(command.envs(variables.iter().copied()))
}

/// The name of the user that runs the program under test.
fn own_name() -> String {
    let outcome = run(host().command("id").arg("-un")).succeeds();
    outcome.stdout.trim().to_owned()
}

#[test]
fn without_variables_the_role_is_the_operating_systems_user() {
    let area = Area::new();
    let (cluster, walhalla) = archiving(&area, 17);
    push(&walhalla, &cluster, &[])
        .exits_with(1)
        .says(&["could not connect to PostgreSQL at socket", &own_name()]);
    cluster.sql(&format!("CREATE ROLE \"{}\" SUPERUSER LOGIN", own_name()));
    push(&walhalla, &cluster, &[]).succeeds();
}

#[test]
fn a_socket_in_the_data_directory_is_found() {
    let area = Area::new();
    let walhalla = Walhalla::new(&area, &Store::directory(&area));
    let mut cluster = Cluster::create(&area, "pg", Shape::small(15));
    cluster.listen_in(".");
    walhalla.archive_from(&mut cluster);
    push(&walhalla, &cluster, &[("PGUSER", "postgres")]).succeeds();
}

#[test]
fn an_abstract_socket_is_found() {
    let area = Area::new();
    let walhalla = Walhalla::new(&area, &Store::directory(&area));
    let mut cluster = Cluster::create(&area, "pg", Shape::small(17));
    cluster.listen_in(&format!("@{}", area.root().display()));
    walhalla.archive_from(&mut cluster);
    push(&walhalla, &cluster, &[("PGUSER", "postgres")]).succeeds();
}

#[test]
fn a_server_that_listens_on_tcp_only_is_found() {
    let area = Area::new();
    let walhalla = Walhalla::new(&area, &Store::directory(&area));
    let mut cluster = Cluster::create(&area, "pg", Shape::small(17));
    cluster.listen_in("");
    cluster.listen_on_tcp();
    walhalla.archive_from(&mut cluster);
    push(&walhalla, &cluster, &[("PGUSER", "postgres")]).succeeds();
}

#[test]
fn a_wrong_password_is_not_taken_for_missing_encryption() {
    let area = Area::new();
    let walhalla = Walhalla::new(&area, &Store::directory(&area));
    let mut cluster = Cluster::create(&area, "pg", Shape::small(17));
    let port = cluster.listen_on_tcp().to_string();
    walhalla.archive_from(&mut cluster);
    cluster.sql("set password_encryption = 'scram-sha-256'; create role r replication login password 'a word'");
    let hba = cluster.data.join("pg_hba.conf");
    let text = std::fs::read_to_string(&hba).unwrap();
    let rule = "host all r all scram-sha-256\nhost replication r all scram-sha-256\n";
    std::fs::write(&hba, format!("{rule}{text}")).unwrap();
    cluster.sql("select pg_reload_conf()");
    let variables = [
        ("PGHOST", "127.0.0.1"),
        ("PGPORT", port.as_str()),
        ("PGUSER", "r"),
        ("PGPASSWORD", "another"),
    ];
    push(&walhalla, &cluster, &variables)
        .exits_with(1)
        .says(&["password authentication failed"]);
    let mut receive = walhalla.command(&["wal-receive", "--no-loop"]);
    receive.env("WALHALLA_SPOOL_DIR", area.make_dir("spool"));
    run(receive.envs(variables))
        .exits_with(1)
        .says(&["password authentication failed"]);
}

#[test]
fn hosts_are_tried_in_turn_and_a_service_names_them() {
    let area = Area::new();
    let (cluster, walhalla) = archiving(&area, 15);
    let connection = cluster.connection();
    let sockets = &connection
        .iter()
        .find(|(key, _)| key == "PGHOST")
        .unwrap()
        .1;
    let service = area.write(
        "services",
        format!(
            "[here]\nhost={},{sockets}\nport=5432\nuser=postgres\n",
            area.root().display()
        ),
    );
    let variables = [
        ("PGSERVICE", "here"),
        ("PGSERVICEFILE", service.to_str().unwrap()),
        ("PGHOST", "unused"),
    ];
    push(&walhalla, &cluster, &variables).succeeds();
}

#[test]
fn a_server_of_another_kind_than_was_asked_for_is_not_taken() {
    let area = Area::new();
    let (cluster, walhalla) = archiving(&area, 15);
    let with = |kind| {
        push(
            &walhalla,
            &cluster,
            &[("PGUSER", "postgres"), ("PGTARGETSESSIONATTRS", kind)],
        )
    };
    with("standby")
        .exits_with(1)
        .says(&["PGTARGETSESSIONATTRS"]);
    with("read-only").exits_with(1);
    with("primary").succeeds();
    with("prefer-standby").succeeds();
}

/// CVE-2018-1058: whoever may create things in schema `public` of the database must not run code as the superuser who
/// takes the backup.
#[test]
fn a_backup_runs_nobody_elses_functions() {
    for version in [10, 14, 15, 18] {
        let area = Area::new();
        let (cluster, walhalla) = archiving(&area, version);
        cluster.sql("CREATE ROLE app LOGIN");
        cluster.sql("GRANT CREATE ON SCHEMA public TO PUBLIC");
        cluster.sql(TRAP);
        cluster.sql("ALTER ROLE postgres SET search_path = public, pg_catalog");
        walhalla.back_up(&cluster);
        assert_eq!(
            cluster.sql("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = 'app'"),
            "f",
            "on {version}"
        );
    }
}

const TRAP: &str = "
SET ROLE app;
CREATE FUNCTION public.grab() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  BEGIN ALTER ROLE app SUPERUSER; EXCEPTION WHEN insufficient_privilege THEN NULL; END;
END $$;
CREATE FUNCTION public.step(state bigint, value text) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN PERFORM public.grab(); RETURN state + 1; END $$;
CREATE AGGREGATE public.count(text) (SFUNC = public.step, STYPE = bigint, INITCOND = '0');
CREATE FUNCTION public.times(a numeric, b integer) RETURNS numeric LANGUAGE plpgsql AS $$
BEGIN PERFORM public.grab(); RETURN a OPERATOR(pg_catalog.*) b::numeric; END $$;
CREATE OPERATOR public.* (LEFTARG = numeric, RIGHTARG = integer, PROCEDURE = public.times);
CREATE FUNCTION public.equals(a text, b text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN PERFORM public.grab(); RETURN a OPERATOR(pg_catalog.=) b; END $$;
CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, PROCEDURE = public.equals);
CREATE FUNCTION public.pg_is_in_recovery() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN PERFORM public.grab(); RETURN false; END $$;
CREATE FUNCTION public.current_setting(text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN PERFORM public.grab(); RETURN pg_catalog.current_setting($1); END $$;
";
