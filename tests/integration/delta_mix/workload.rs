//! What the cluster does: statements drawn by chance that fit what it holds.

#![allow(
    clippy::unnecessary_wraps,
    reason = "some kinds of work fit any cluster, and all are called alike"
)]

use std::fmt::Write as _;

use fastrand::Rng;

use super::model::{COLUMNS, Database, Model, Table, Tablespace, chance, one_of};

/// Statements for one session, each by itself.
pub struct Script {
    pub database: String,
    pub statements: Vec<String>,
}

/// The kinds of work, dealt like cards, so that all of them come before one comes again.
pub struct Deck {
    cards: Vec<usize>,
}

type Kind = fn(&mut Model, &mut Rng) -> Option<Script>;

/// Each kind of work; what comes twice comes twice as often.
const KINDS: &[Kind] = &[
    create_table,
    create_table,
    grow,
    grow,
    update,
    update,
    delete_and_vacuum,
    delete_and_vacuum,
    truncate_and_grow,
    truncate_and_grow,
    drop_and_create,
    drop_and_create,
    drop_table,
    rewrite,
    rewrite,
    change_indexes,
    change_columns,
    create_database,
    create_database,
    drop_database,
    create_database_again,
    move_database,
    move_table,
    change_persistence,
    temporary_tables,
    vacuum,
    freeze,
    change_hints,
    change_hints,
    use_sequences,
    prepare,
    finish_prepared,
    create_tablespace,
    create_tablespace,
    drop_tablespace,
    large_objects,
    subtransactions,
    copy,
    create_as_query,
    materialized_view,
    rewrite_catalogs,
    roll_back,
    lock_rows,
    change_roles,
    checkpoint,
];

impl Deck {
    pub const fn new() -> Self {
        Self { cards: Vec::new() }
    }

    /// The next piece of work that the cluster can do; the model is as after it.
    pub fn deal(&mut self, model: &mut Model, rng: &mut Rng) -> Script {
        loop {
            let Some(card) = self.cards.pop() else {
                self.cards = (0..KINDS.len()).collect();
                rng.shuffle(&mut self.cards);
                continue;
            };
            if let Some(script) = KINDS[card](model, rng) {
                return script;
            }
        }
    }
}

/// What every cluster begins with.
pub fn beginning(model: &mut Model, rng: &mut Rng) -> Vec<Script> {
    let fixed = [
        "create table books (id int, body text)",
        "create index on books (id)",
        "insert into books select g, md5(g::text) from generate_series(1, 300) g",
        "create table churned (id int primary key, body text)",
        "create table updated (id int primary key, n int, body text) with (fillfactor = 80)",
        "insert into updated select g, 0, md5(g::text) from generate_series(1, 2000) g",
    ];
    let mut scripts = vec![script("postgres", fixed.map(str::to_owned).to_vec())];
    scripts.extend((0..3).filter_map(|_| create_table(model, rng)));
    scripts
}

fn script(database: &str, statements: Vec<String>) -> Script {
    Script {
        database: database.to_owned(),
        statements,
    }
}

fn at_postgres(statements: &[&str]) -> Option<Script> {
    let statements = statements.iter().map(|text| (*text).to_owned());
    Some(script("postgres", statements.collect()))
}

/// Rows of the usual columns: short ones, and some whose last column goes to the TOAST table.
fn rows(table: &mut Table, count: u32) -> String {
    let (name, first) = (&table.name, table.next);
    table.next += count;
    let last = table.next - 1;
    format!(
        "insert into {name} (id, n, body, list, span, place, big) {VALUES} from generate_series({first}, {last}) g"
    )
}

/// What a row holds, by its number.
pub const VALUES: &str = "select g, g % 97, md5(g::text), array[g, g % 7], int4range(g, g + 5), point(g % 100, g), case when g % 50 = 0 \
     then (select string_agg(md5((g * h)::text), '') from generate_series(1, 150) h) end";

fn some_rows(table: &mut Table, rng: &mut Rng) -> String {
    let count = rng.u32(200..3000);
    rows(table, count)
}

/// Makes the table, with indexes by chance, and fills it.
fn making(table: &mut Table, rng: &mut Rng) -> Vec<String> {
    let name = &table.name;
    let unlogged = if table.is_unlogged { "unlogged" } else { "" };
    let space = table.tablespace.as_ref();
    let space = space.map_or_else(String::new, |space| format!("tablespace {space}"));
    let fillfactor = if chance(rng, 30) {
        "with (fillfactor = 70)"
    } else {
        ""
    };
    let mut statements = vec![
        format!("create {unlogged} table {name} ({COLUMNS}) {fillfactor} {space}"),
        format!("alter table {name} alter big set storage external"),
    ];
    let filling = some_rows(table, rng);
    let indexes = INDEXES.iter().filter(|_| chance(rng, 45));
    statements.extend(indexes.map(|index| format!("create index on {} using {index}", table.name)));
    // Built row by row, or in one go.
    let place = if chance(rng, 50) { statements.len() } else { 2 };
    statements.insert(place, filling);
    statements
}

const INDEXES: [&str; 8] = [
    "btree (body)",
    "btree (id)",
    "btree (n)",
    "hash (id)",
    "gin (list)",
    "gist (span)",
    "spgist (place)",
    "brin (id) with (pages_per_range = 2)",
];

fn create_table(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let database = model.any_database(rng);
    let tablespace = model.any_tablespace(rng);
    let mut table = Table {
        name: model.new_name("t"),
        is_unlogged: chance(rng, 25),
        tablespace: tablespace.filter(|_| database == "postgres" && chance(rng, 50)),
        database,
        next: 1,
    };
    let statements = making(&mut table, rng);
    model.tables.push(table);
    let database = &model.tables[model.tables.len() - 1].database;
    Some(script(database, statements))
}

fn grow(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let at = model.any_table(rng)?;
    let table = &mut model.tables[at];
    let statements = vec![some_rows(table, rng)];
    Some(script(&table.database, statements))
}

fn update(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let table = &model.tables[model.any_table(rng)?];
    let (name, every) = (&table.name, rng.u32(2..40));
    let set = [
        "n = n + 1",
        "body = md5(body)",
        "list = list || n::int, place = point(n, id)",
        "big = body || coalesce(big, body)",
        "span = int4range(n::int, n::int + 3), big = null",
    ];
    let set = set[rng.usize(..set.len())];
    let update = format!("update {name} set {set} where id % {every} = 0");
    Some(script(&table.database, vec![update]))
}

/// The table's tail goes, and its pages with it.
fn delete_and_vacuum(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let at = model.any_table(rng)?;
    let table = &mut model.tables[at];
    let (name, from) = (&table.name, rng.u32(0..table.next));
    let mut statements = vec![
        format!("delete from {name} where id >= {from}"),
        format!("vacuum {name}"),
    ];
    if chance(rng, 60) {
        statements.push(some_rows(table, rng));
    }
    Some(script(&table.database, statements))
}

fn truncate_and_grow(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let at = model.any_table(rng)?;
    let table = &mut model.tables[at];
    let truncate = format!("truncate {}", table.name);
    let (before, after) = (some_rows(table, rng), some_rows(table, rng));
    let (begin, commit, rollback) = ("begin".into(), "commit".into(), "rollback".into());
    let statements = match rng.u32(..4) {
        0 => vec![truncate],
        1 => vec![before, truncate, after],
        2 => vec![begin, before, truncate, after, commit],
        _ => vec![begin, truncate, before, rollback, after],
    };
    Some(script(&table.database, statements))
}

fn drop_and_create(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let at = model.any_table(rng)?;
    let table = &mut model.tables[at];
    table.is_unlogged = chance(rng, 25);
    let mut statements = vec![format!("drop table {} cascade", table.name)];
    statements.extend(making(table, rng));
    Some(script(&table.database, statements))
}

fn drop_table(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let at = model.any_table(rng).filter(|_| model.tables.len() > 2)?;
    let table = model.tables.swap_remove(at);
    let drop = format!("drop table {} cascade", table.name);
    Some(script(&table.database, vec![drop]))
}

fn rewrite(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let table = &model.tables[model.any_table(rng)?];
    let name = &table.name;
    let statements = match rng.u32(..5) {
        0 => vec![format!("vacuum full {name}")],
        1 => vec![
            format!("create index {name}_order on {name} (n, id)"),
            format!("cluster {name} using {name}_order"),
            format!("drop index {name}_order"),
        ],
        2 => vec![format!("reindex table {name}")],
        3 => vec![format!("alter table {name} alter n type bigint")],
        _ => vec![format!("alter table {name} alter n type int")],
    };
    Some(script(&table.database, statements))
}

fn change_indexes(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let table = &model.tables[model.any_table(rng)?];
    let name = &table.name;
    let all = "select indexrelid::regclass from pg_index where indrelid =";
    let calls = "select case amname when 'gin' then gin_clean_pending_list(i.oid) else brin_summarize_new_values(i.oid) end \
                 from pg_class i join pg_am a on a.oid = i.relam join pg_index on indexrelid = i.oid";
    let index = INDEXES[rng.usize(..INDEXES.len())];
    let statements = vec![
        format!("{calls} where amname in ('gin', 'brin') and indrelid = '{name}'::regclass"),
        format!(
            "do $$ declare one regclass; begin for one in {all} '{name}'::regclass order by 1 limit 1 loop \
             execute 'drop index ' || one; end loop; end $$"
        ),
        format!("create index on {name} using {index}"),
    ];
    Some(script(&table.database, statements))
}

fn change_columns(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let column = model.new_name("c");
    let table = &model.tables[model.any_table(rng)?];
    let name = &table.name;
    let add = format!("alter table {name} add {column} text default 'a default'");
    let statements = if chance(rng, 50) {
        vec![add]
    } else {
        vec![add, format!("alter table {name} drop {column}")]
    };
    Some(script(&table.database, statements))
}

/// Copied from the template, or from another database with all that is in it.
fn create_database(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let oid = model.free_oid()?;
    let template = one_of(rng, &model.databases).filter(|_| chance(rng, 50));
    let template = template.map_or_else(|| "template1".to_owned(), |one| one.name);
    let name = model.new_name("d");
    let copies = model
        .tables
        .iter()
        .filter(|table| table.database == template);
    let copies: Vec<Table> = copies
        .cloned()
        .map(|table| Table {
            database: name.clone(),
            ..table
        })
        .collect();
    model.tables.extend(copies);
    let database = Database {
        name,
        oid,
        tablespace: model.any_tablespace(rng).filter(|_| chance(rng, 40)),
    };
    let create = creating(model, &database, &template, rng);
    model.databases.push(database);
    Some(script("postgres", vec![create]))
}

fn creating(model: &Model, database: &Database, template: &str, rng: &mut Rng) -> String {
    let Database {
        name,
        oid,
        tablespace,
    } = database;
    let mut create = format!("create database {name} template {template}");
    // One that has another default tablespace than its template has all its files there only when none is elsewhere.
    if let Some(space) = tablespace {
        let _ = write!(create, " tablespace {space}");
    } else {
        create += " tablespace pg_default";
    }
    if model.version >= 15 {
        let strategy = if chance(rng, 50) {
            "wal_log"
        } else {
            "file_copy"
        };
        let _ = write!(create, " oid = {oid} strategy = {strategy}");
    }
    create
}

fn drop_database(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let at = (0..model.databases.len()).collect::<Vec<_>>();
    let database = model.databases.swap_remove(one_of(rng, &at)?);
    let name = database.name;
    model.tables.retain(|table| table.database != name);
    Some(script("postgres", vec![format!("drop database {name}")]))
}

/// Files of the same names with other content.
fn create_database_again(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let database = one_of(rng, &model.databases)?;
    let name = database.name.clone();
    model.tables.retain(|table| table.database != name);
    let create = creating(model, &database, "template1", rng);
    let drop = format!("drop database {name}");
    Some(script("postgres", vec![drop, create]))
}

/// To another tablespace, and sometimes back to where its files had been under the same names.
fn move_database(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let at = (0..model.databases.len()).collect::<Vec<_>>();
    let at = one_of(rng, &at)?;
    let to = model.any_tablespace(rng);
    let database = &mut model.databases[at];
    let moving = |to: &Option<String>| {
        let to = to.as_deref().unwrap_or("pg_default");
        format!("alter database {} set tablespace {to}", database.name)
    };
    let mut statements = vec![moving(&to)];
    if chance(rng, 40) {
        statements.push(moving(&database.tablespace));
    } else {
        database.tablespace = to;
    }
    Some(script("postgres", statements))
}

fn move_table(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let at = model.table_where(rng, |table| table.database == "postgres")?;
    let to = model.any_tablespace(rng);
    let from = model.tables[at].tablespace.clone();
    let to = to.filter(|to| from.as_ref() != Some(to));
    let table = &mut model.tables[at];
    let moving = |to: &Option<String>| {
        let to = to.as_deref().unwrap_or("pg_default");
        format!("alter table {} set tablespace {to}", table.name)
    };
    let mut statements = vec![moving(&to)];
    if chance(rng, 30) {
        statements.push(moving(&from));
    } else {
        table.tablespace = to;
    }
    Some(script("postgres", statements))
}

fn change_persistence(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let at = model.any_table(rng)?;
    let table = &mut model.tables[at];
    table.is_unlogged = !table.is_unlogged;
    let kind = if table.is_unlogged {
        "unlogged"
    } else {
        "logged"
    };
    let mut statements = vec![format!("alter table {} set {kind}", table.name)];
    if chance(rng, 50) {
        statements.push(some_rows(table, rng));
    }
    Some(script(&table.database, statements))
}

fn temporary_tables(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let name = model.new_name("temp");
    let mut table = Table {
        name: name.clone(),
        database: model.any_database(rng),
        is_unlogged: false,
        tablespace: None,
        next: 1,
    };
    let statements = vec![
        format!("create temporary table {name} ({COLUMNS})"),
        format!("create index on {name} (body)"),
        some_rows(&mut table, rng),
        format!("delete from {name} where id % 2 = 0"),
        format!("vacuum {name}"),
    ];
    Some(script(&table.database, statements))
}

fn vacuum(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let what = model.any_table(rng).filter(|_| chance(rng, 70));
    let table = what.map(|at| model.tables[at].clone());
    let (database, name) = table.map_or_else(
        || (model.any_database(rng), String::new()),
        |table| (table.database, table.name),
    );
    let analyze = if chance(rng, 50) { "analyze" } else { "" };
    Some(script(
        &database,
        vec![format!("vacuum {analyze} {name}"), "checkpoint".to_owned()],
    ))
}

fn freeze(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let table = &model.tables[model.any_table(rng)?];
    let freeze = format!("vacuum freeze {}", table.name);
    Some(script(&table.database, vec![freeze]))
}

/// Nothing changes but hint bits; without checksums and `wal_log_hints` the WAL does not tell.
fn change_hints(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let at = model.any_table(rng)?;
    let table = &mut model.tables[at];
    let filling = some_rows(table, rng);
    let name = &table.name;
    let read = format!("select count(*), count(distinct n) from {name}");
    let mut statements = vec![
        "begin".to_owned(),
        format!("delete from {name} where id % 3 = 0"),
        "rollback".to_owned(),
        "checkpoint".to_owned(),
        read,
        // Dead entries of indexes are marked on the way.
        format!("set enable_seqscan = off; select count(*) from {name} where body > 'c' and n > 3"),
        "checkpoint".to_owned(),
    ];
    if chance(rng, 50) {
        statements.insert(0, filling);
    }
    Some(script(&table.database, statements))
}

fn use_sequences(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let name = one_of(rng, &model.sequences).filter(|_| chance(rng, 60));
    let mut statements = Vec::new();
    let name = name.unwrap_or_else(|| {
        let name = model.new_name("s");
        statements.push(format!("create sequence {name}"));
        model.sequences.push(name.clone());
        name
    });
    let count = rng.u32(1..100);
    statements.push(format!(
        "select count(nextval('{name}')) from generate_series(1, {count})"
    ));
    if chance(rng, 30) {
        statements.push(format!("select setval('{name}', {})", rng.u32(1..10_000)));
    }
    Some(script("postgres", statements))
}

/// Left open, over whatever comes. Its table is not one that others lock.
fn prepare(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    if model.prepared.len() >= 3 {
        return None;
    }
    let gid = model.new_name("p");
    let statements = vec![
        "begin".to_owned(),
        format!("insert into books select g, '{gid}' from generate_series(1, 100) g"),
        format!(
            "update books set body = md5(body) where id % 5 = 0 and id <> {}",
            rng.u32(..100)
        ),
        format!("create table {gid} as select * from generate_series(1, 500) g"),
        format!("prepare transaction '{gid}'"),
    ];
    // Rows that an open one changed would be waited for.
    let is_alone = model.prepared.is_empty();
    model.prepared.push(gid);
    let keep = |text: &String| is_alone || !text.starts_with("update");
    Some(script(
        "postgres",
        statements.into_iter().filter(keep).collect(),
    ))
}

fn finish_prepared(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let at = (0..model.prepared.len()).collect::<Vec<_>>();
    let gid = model.prepared.swap_remove(one_of(rng, &at)?);
    let how = if chance(rng, 60) {
        "commit"
    } else {
        "rollback"
    };
    Some(script("postgres", vec![format!("{how} prepared '{gid}'")]))
}

fn create_tablespace(model: &mut Model, _: &mut Rng) -> Option<Script> {
    let location = model.free_location()?;
    let name = model.new_name("space");
    let path = model.location(location);
    let create = format!("create tablespace {name} location '{}'", path.display());
    model.tablespaces.push(Tablespace { name, location });
    Some(script("postgres", vec![create]))
}

fn drop_tablespace(model: &mut Model, _: &mut Rng) -> Option<Script> {
    let at = model.empty_tablespace()?;
    let space = model.tablespaces.swap_remove(at);
    Some(script(
        "postgres",
        vec![format!("drop tablespace {}", space.name)],
    ))
}

fn large_objects(_: &mut Model, rng: &mut Rng) -> Option<Script> {
    let some = format!(
        "select oid from pg_largeobject_metadata order by oid offset {} limit 1",
        rng.u32(..3)
    );
    let size = rng.u32(1..20_000);
    at_postgres(&[
        &format!("select lo_from_bytea(0, decode(repeat('ab', {size}), 'hex'))"),
        &format!("select lo_put(oid, 5000, 'something else') from ({some}) one"),
        &format!("select lo_unlink(oid) from ({some}) one where oid::bigint % 2 = 0"),
    ])
}

fn subtransactions(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let at = model.any_table(rng)?;
    let table = &mut model.tables[at];
    let (name, first, count) = (&table.name, table.next, rng.u32(50..1500));
    table.next += count;
    let many = format!(
        "do $$ begin for at in {first}..{} loop begin insert into {name} (id, n, body) values (at, at, md5(at::text)); \
         if at % 5 = 0 then perform 1 / 0; end if; exception when division_by_zero then null; end; end loop; end $$",
        table.next - 1
    );
    Some(script(&table.database, vec![many]))
}

/// Out and in again; also into a table that the same transaction made, frozen at once.
fn copy(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let name = model.new_name("copied");
    let file = model.area.join(name);
    let table = &model.tables[model.any_table(rng)?];
    let (name, file) = (&table.name, file.display());
    let columns = "id, n, body, list, span, place, big";
    let out = format!("copy (select {columns} from {name} where id % 2 = 0) to '{file}'");
    let statements = if chance(rng, 50) {
        vec![out, format!("copy {name} ({columns}) from '{file}'")]
    } else {
        vec![
            out,
            "begin".to_owned(),
            format!("truncate {name}"),
            format!("copy {name} ({columns}) from '{file}' with (freeze)"),
            "commit".to_owned(),
        ]
    };
    Some(script(&table.database, statements))
}

fn create_as_query(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let name = model.new_name("made");
    let table = &model.tables[model.any_table(rng)?];
    let from = &table.name;
    let mut statements = vec![
        format!("create table {name} as select id, n, body, list from {from}"),
        format!("create index on {name} using hash (body)"),
    ];
    if chance(rng, 50) {
        statements.push(format!("drop table {name}"));
    }
    Some(script(&table.database, statements))
}

fn materialized_view(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    if let Some(view) = one_of(rng, &model.views).filter(|_| chance(rng, 60)) {
        return Some(script(
            "postgres",
            vec![format!("refresh materialized view {view}")],
        ));
    }
    let name = model.new_name("v");
    let query = "select id, n, body from updated where id % 3 = 0";
    let create = vec![
        format!("create materialized view {name} as {query}"),
        format!("create index on {name} (body)"),
    ];
    model.views.push(name);
    Some(script("postgres", create))
}

/// Relations whose files `pg_filenode.map` tells, and shared ones.
fn rewrite_catalogs(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let catalogs = [
        "vacuum full pg_class",
        "vacuum full pg_attribute",
        "vacuum full pg_authid",
        "vacuum full pg_database",
        "reindex table pg_class",
        "reindex table pg_shdepend",
        "vacuum pg_attribute",
    ];
    let statement = catalogs[rng.usize(..catalogs.len())];
    let database = model.any_database(rng);
    // Building a unique index waits for those who have open rows in it.
    let waits = ["pg_class", "pg_attribute"]
        .iter()
        .any(|name| statement.ends_with(name));
    let is_open = database == "postgres" && !model.prepared.is_empty();
    (!waits || !is_open).then(|| script(&database, vec![statement.to_owned()]))
}

fn roll_back(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let name = model.new_name("gone");
    let table = &model.tables[model.any_table(rng)?];
    let statements = vec![
        "begin".to_owned(),
        format!("create table {name} as select * from {}", table.name),
        format!("create index on {name} (id)"),
        format!("truncate {}", table.name),
        "rollback".to_owned(),
    ];
    Some(script(&table.database, statements))
}

/// Two lockers of a row make a multixact.
fn lock_rows(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let table = &model.tables[model.any_table(rng)?];
    let (name, every) = (&table.name, rng.u32(2..20));
    let statements = vec![
        "begin".to_owned(),
        format!(
            "select count(*) from (select 1 from {name} where id % {every} = 0 for key share) one"
        ),
        "savepoint a".to_owned(),
        format!("update {name} set n = n + 1 where id % {every} = 0"),
        "rollback to a".to_owned(),
        format!("update {name} set n = n where id % {every} = 0"),
        "commit".to_owned(),
        format!("select count(*) from (select 1 from {name} where id % 3 = 0 for share) one"),
    ];
    Some(script(&table.database, statements))
}

fn change_roles(model: &mut Model, rng: &mut Rng) -> Option<Script> {
    let some = (0..model.roles.len()).collect::<Vec<_>>();
    let statement = if let Some(at) = one_of(rng, &some).filter(|_| chance(rng, 50)) {
        format!("drop role {}", model.roles.swap_remove(at))
    } else {
        let name = model.new_name("r");
        model.roles.push(name.clone());
        format!("create role {name}")
    };
    Some(script("postgres", vec![statement]))
}

fn checkpoint(_: &mut Model, _: &mut Rng) -> Option<Script> {
    at_postgres(&["checkpoint", "select pg_switch_wal()"])
}
