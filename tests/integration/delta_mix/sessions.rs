//! Sessions of `psql`.

use crate::support::{Cluster, run};

/// What waits longer for a lock hangs.
const OPTIONS: &str = "-c lock_timeout=60s -c client_min_messages=error";

/// Runs the statements in one session, each by itself; returns all that they answered.
#[track_caller]
pub fn run_session(cluster: &Cluster, database: &str, statements: &[String]) -> String {
    let mut psql = cluster.client("psql");
    psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d"]);
    psql.arg(database).env("PGOPTIONS", OPTIONS);
    for statement in statements {
        psql.args(["-c", &cluster.spelled(statement)]);
    }
    run(&mut psql).succeeds().stdout
}

#[track_caller]
pub fn ask(cluster: &Cluster, database: &str, statement: &str) -> Vec<String> {
    let answer = run_session(cluster, database, &[statement.to_owned()]);
    answer.lines().map(str::to_owned).collect()
}

/// Every database that takes connections.
pub fn databases(cluster: &Cluster) -> Vec<String> {
    let sql = "select datname from pg_database where datallowconn order by 1";
    ask(cluster, "postgres", sql)
}
