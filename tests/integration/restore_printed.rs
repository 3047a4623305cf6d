//! What a restore leaves in settings and says on a terminal.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::support::{Area, Cluster, Shape, Store, Walhalla, host, run};

/// A cluster of these settings with a backup, archived to the end and stopped.
struct BackedUp {
    area: Area,
    store: Store,
    walhalla: Walhalla,
    cluster: Cluster,
}

const VERSION: u32 = 17;

impl BackedUp {
    fn make(prepare: impl FnOnce(&Cluster)) -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut cluster = Cluster::create(&area, "primary", Shape::small(VERSION));
        prepare(&cluster);
        walhalla.archive_from(&mut cluster);
        cluster.sql("create table t as select 1 as i");
        walhalla.back_up(&cluster);
        cluster.archive_everything();
        Self {
            area,
            store,
            walhalla,
            cluster,
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_servers_environment_does_not_change_the_store_it_recovers_from() {
    let mut made = BackedUp::make(|_| {});
    let stale = made.area.path("stale");
    run(host()
        .command("cp")
        .arg("-a")
        .arg(made.store.path())
        .arg(&stale))
    .succeeds();
    let other = made.area.write(
        "other.toml",
        format!("store = \"file://{}\"\n", stale.display()),
    );
    for row in 2..5 {
        made.cluster.sql(&format!("insert into t values ({row})"));
        made.cluster.archive_everything();
    }
    made.cluster.stop();
    let mut restored =
        made.walhalla
            .restore(&made.area, VERSION, "restored", &["--wal", "on-demand"]);
    let hostile = [
        ("WALHALLA_STORE", format!("file://{}", stale.display())),
        ("WALHALLA_CONFIG", other.display().to_string()),
        ("WALHALLA_RETRY_TIMEOUT", "nonsense".to_owned()),
        ("WALHALLA_CA_FILE", "/nowhere".to_owned()),
        ("WALHALLA_AGE_IDENTITY_FILE", "/nowhere".to_owned()),
        ("PGDATA", "/nowhere".to_owned()),
    ];
    restored.set_env(&hostile.map(|(name, value)| (name.to_owned(), value)));
    restored.start();
    restored.wait_until_promoted();
    assert_eq!(restored.sql("select count(*) from t"), "4");
    restored.stop();
}

#[test]
fn what_was_set_by_variables_and_flags_is_told_to_the_server_without_secrets() {
    let mut made = BackedUp::make(|_| {});
    made.cluster.stop();
    let url = made.store.url();
    let config = made.area.write("empty.toml", "");
    let there = made.area.path("restored");
    let mut command = host().command(&host().program);
    command
        .arg("--config")
        .arg(&config)
        .args(["restore", there.to_str().unwrap(), "--standby"]);
    command
        .env("WALHALLA_STORE", &url)
        .env("WALHALLA_RETRY_TIMEOUT", "77s");
    command.env("AWS_SECRET_ACCESS_KEY", "verysecret");
    run(&mut command).succeeds();
    let text = std::fs::read_to_string(there.join("postgresql.auto.conf")).unwrap();
    assert!(
        text.contains(&url) && text.contains("retry_timeout=77s"),
        "{text}"
    );
    assert!(
        text.contains("--no-environment") && !text.contains("verysecret"),
        "{text}"
    );
}

#[test]
fn a_copy_is_told_that_it_will_archive_and_where_to() {
    let mut made = BackedUp::make(|_| {});
    made.cluster.stop();
    let there = made.area.path("restored");
    let restored = made
        .walhalla
        .run(&["restore", there.to_str().unwrap()])
        .succeeds();
    let config = made.area.path("walhalla.toml");
    for wanted in [
        "it will archive",
        config.to_str().unwrap(),
        "wal-push",
        "--archive-mode off",
    ] {
        assert!(restored.stdout.contains(wanted), "{restored}");
    }
    let off = made.area.path("off");
    let restored = made
        .walhalla
        .run(&["restore", off.to_str().unwrap(), "--archive-mode", "off"])
        .succeeds();
    assert!(!restored.stdout.contains("it will archive"), "{restored}");
}

#[test]
fn what_is_printed_can_be_pasted_and_the_settings_work_whatever_is_in_the_path() {
    let mut made = BackedUp::make(|_| {});
    made.cluster.stop();
    for name in [
        "my $data",
        "it's 100%f",
        "a\nb \"c\" \\d",
        "tab\tand\u{1b}[31m",
    ] {
        let there = made.area.path(name);
        let args = [
            "restore",
            there.to_str().unwrap(),
            "--archive-mode",
            "off",
            "--target-action",
            "promote",
        ];
        let restored = made.walhalla.run(&args).succeeds();
        let line = restored
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix("start it with: "))
            .and_then(|command| Some(command.split_once("pg_ctl -D ")?.1));
        let word = line.unwrap().strip_suffix(" start").unwrap();
        let echo = run(host()
            .command("bash")
            .args(["-c", &format!("printf %s {word}")]))
        .succeeds();
        assert_eq!(echo.stdout, there.to_str().unwrap(), "{word}");
        assert!(!restored.stdout.contains('\u{1b}'), "{restored}");
        if !name.contains('\n') {
            let mut server = Cluster::adopt(&made.area, VERSION, there.clone());
            server.start();
            server.wait_until_promoted();
            assert_eq!(server.sql("select count(*) from t"), "1");
            server.stop();
        }
    }
}

#[test]
fn links_that_were_left_out_are_named_when_they_are_missed() {
    let mut made = BackedUp::make(|cluster| {
        let beside = cluster.data.parent().unwrap().join("conf");
        std::fs::create_dir(&beside).unwrap();
        host().give_to_user(&beside);
        for name in ["pg_hba.conf", "postgresql.conf"] {
            std::fs::rename(cluster.data.join(name), beside.join(name)).unwrap();
            std::os::unix::fs::symlink(Path::new("../conf").join(name), cluster.data.join(name))
                .unwrap();
        }
    });
    made.cluster.stop();
    let there = made.area.path("restored");
    let restored = made
        .walhalla
        .run(&["restore", there.to_str().unwrap(), "--archive-mode", "off"])
        .succeeds();
    let shown = made.walhalla.run(&["backup-show", "LATEST"]).succeeds();
    for text in [&restored.stdout, &shown.stdout] {
        for name in ["pg_hba.conf", "postgresql.conf"] {
            assert!(
                text.contains(&format!("{name}, which was a link to ../conf/{name}")),
                "{text}"
            );
        }
    }
    let json = made
        .walhalla
        .run(&["backup-show", "LATEST", "--json"])
        .succeeds()
        .json();
    assert_eq!(json["left_out"][0]["path"], "pg_hba.conf");
    assert_eq!(json["left_out"][0]["link_to"], "../conf/pg_hba.conf");
}

#[test]
fn a_cluster_that_its_group_may_read_is_one_again_under_any_umask() {
    let mut made = BackedUp::make(|cluster| {
        run(host()
            .command("chmod")
            .args(["-R", "g+rX"])
            .arg(&cluster.data))
        .succeeds();
    });
    made.cluster.sql("create table filler as select 1");
    made.cluster.stop();
    for mask in ["022", "077"] {
        for delta in [false, true] {
            let there = made.area.path(&format!("r{mask}"));
            let mut args = vec!["restore", there.to_str().unwrap(), "--archive-mode", "off"];
            if delta {
                args.push("--delta");
            }
            let command = made.walhalla.command(&args);
            let mut shell = host().command("sh");
            shell.args(["-c", &format!("umask {mask}; exec \"$@\""), "sh"]);
            run(shell.arg(command.get_program()).args(command.get_args())).succeeds();
            let mut closed = host().command("find");
            closed
                .arg(&there)
                .args(["!", "-type", "l", "(", "-type", "d", "!", "-perm", "-050"]);
            closed.args(["-o", "-type", "f", "!", "-perm", "-040", ")"]);
            assert_eq!(run(&mut closed).succeeds().stdout, "", "umask {mask}");
        }
    }
    let mut restored = Cluster::adopt(&made.area, VERSION, made.area.path("r077"));
    restored.start();
    restored.wait_until_promoted();
    assert_eq!(restored.sql("show data_directory_mode"), "0750");
    restored.stop();
}

#[test]
fn a_directory_that_its_owner_may_not_write_to_comes_back_so() {
    let mut made = BackedUp::make(|cluster| {
        let certs = cluster.data.join("certs");
        std::fs::create_dir_all(certs.join("deeper")).unwrap();
        for file in ["server.key", "deeper/ca.key"] {
            std::fs::write(certs.join(file), "key").unwrap();
            host().give_to_user(&certs.join(file));
            set_mode(&certs.join(file), 0o400);
        }
        for folder in ["deeper", ""] {
            host().give_to_user(&certs.join(folder));
            set_mode(&certs.join(folder), 0o500);
        }
    });
    made.cluster.stop();
    let there = made.area.path("restored");
    for delta in [false, true, true] {
        let mut args = vec!["restore", there.to_str().unwrap(), "--archive-mode", "off"];
        if delta {
            args.push("--delta");
            // What is to go lies in one of these directories.
            set_mode(&there.join("certs/deeper"), 0o700);
            std::fs::write(there.join("certs/deeper/junk"), "").unwrap();
            set_mode(&there.join("certs/deeper"), 0o500);
        }
        made.walhalla.run(&args).succeeds();
        for (name, wanted) in [
            ("", 0o500),
            ("deeper", 0o500),
            ("server.key", 0o400),
            ("deeper/ca.key", 0o400),
        ] {
            assert_eq!(mode(&there.join("certs").join(name)), wanted, "{name}");
        }
        assert!(!there.join("certs/deeper/junk").exists());
    }
    for name in ["primary", "restored"] {
        let certs = made.area.path(name).join("certs");
        run(host().command("chmod").args(["-R", "u+w"]).arg(certs)).succeeds();
    }
}

#[test]
fn what_a_terminal_would_obey_is_never_printed() {
    let mut made = BackedUp::make(|_| {});
    let label = "x\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}\r\nhint: forged";
    let data = made.cluster.data.to_str().unwrap().to_owned();
    let args = [
        "backup-push",
        &data,
        "--label",
        label,
        "--annotation",
        &format!("k={label}"),
    ];
    made.walhalla.run_with(&made.cluster, &args).succeeds();
    made.cluster.archive_everything();
    made.cluster.stop();
    let is_obeyed = |letter: char| letter != '\n' && (letter.is_control() || letter == '\u{202e}');
    let there = made.area.path("restored");
    for args in [
        vec!["backup-list", "--wide"],
        vec!["backup-list", "--json"],
        vec!["backup-show", "LATEST"],
        vec!["backup-show", "LATEST", "--json"],
        vec![
            "restore",
            there.to_str().unwrap(),
            "--target-name",
            "no\u{1b}[2J\u{9b}",
        ],
        vec![
            "--log-format",
            "json",
            "restore",
            there.to_str().unwrap(),
            "--target-name",
            "no\u{1b}[2J\u{9b}",
        ],
        vec!["plan", "--json", "--target-name", "no\u{1b}[2J\u{9b}"],
    ] {
        let outcome = made.walhalla.run(&args);
        let text = format!("{}{}", outcome.stdout, outcome.stderr);
        assert!(!text.contains(is_obeyed), "{args:?}: {text:?}");
        assert!(
            !text.lines().any(|line| line.starts_with("hint: forged")),
            "{text}"
        );
        assert!(
            text.contains("u{1b}") || text.contains("u001b") || text.contains("u{9b}"),
            "{text}"
        );
    }
}

/// Moves the cluster's settings of archiving into a file that `postgresql.conf` includes.
fn include_archiving(cluster: &Cluster, walhalla: &Walhalla, include: &str, file: &Path) {
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, format!("{}\n", walhalla.archive_settings())).unwrap();
    host().give_to_user(file);
    host().give_to_user(file.parent().unwrap());
    let conf = cluster.data.join("postgresql.conf");
    let text = std::fs::read_to_string(&conf).unwrap();
    let kept = text.lines().filter(|line| !line.starts_with("archive_"));
    let kept: String = kept.flat_map(|line| [line, "\n"]).collect();
    std::fs::write(&conf, kept).unwrap();
    cluster.configure(include);
}

#[test]
fn what_is_said_of_archiving_is_what_included_files_say() {
    for (include, file) in [
        ("include_dir = 'conf.d'", "conf.d/archiving.conf"),
        ("include 'archiving.inc'", "archiving.inc"),
        (
            "include_if_exists 'deep/archiving.inc'",
            "deep/archiving.inc",
        ),
    ] {
        let mut made = BackedUp::make(|_| {});
        made.cluster.stop();
        let file = made.cluster.data.join(file);
        include_archiving(&made.cluster, &made.walhalla, include, &file);
        made.cluster.start();
        made.walhalla.back_up(&made.cluster);
        made.cluster.archive_everything();
        made.cluster.stop();
        let there = made.area.path("restored");
        let restored = made
            .walhalla
            .run(&["restore", there.to_str().unwrap()])
            .succeeds();
        for wanted in [
            "it will archive its own WAL",
            "archive_mode = on",
            "wal-push",
        ] {
            assert!(restored.stdout.contains(wanted), "{include}: {restored}");
        }
        let mut server = Cluster::adopt(&made.area, VERSION, there);
        server.start();
        server.wait_until_promoted();
        assert_eq!(server.sql("show archive_mode"), "on");
        server.stop();
    }
}

#[test]
fn an_included_file_that_is_not_here_is_named() {
    let mut made = BackedUp::make(|_| {});
    let outside = made.area.path("outside/archiving.conf");
    made.cluster.stop();
    let include = format!("include '{}'", outside.display());
    include_archiving(&made.cluster, &made.walhalla, &include, &outside);
    made.cluster.start();
    made.walhalla.back_up(&made.cluster);
    made.cluster.archive_everything();
    made.cluster.stop();
    std::fs::remove_file(&outside).unwrap();
    let there = made.area.path("restored");
    let restored = made
        .walhalla
        .run(&["restore", there.to_str().unwrap()])
        .succeeds();
    let wanted = format!("include {}, which cannot be read here", outside.display());
    assert!(restored.stdout.contains(&wanted), "{restored}");
}

/// A cluster that sets its own path as `data_directory`, in this way; stopped.
fn with_data_directory(set: impl FnOnce(&Cluster, &str)) -> BackedUp {
    let mut made = BackedUp::make(|cluster| {
        let own = format!("data_directory = '{}'", cluster.data.display());
        set(cluster, &own);
    });
    made.cluster.stop();
    made
}

/// Restores to `there`, does what is printed, and sees which directory the server that starts uses.
fn starts_what_was_restored(made: &BackedUp, there: &Path, wanted: &[&str]) {
    let original = made.cluster.data.join("global/pg_control");
    let before = std::fs::read(&original).unwrap();
    let args = ["restore", there.to_str().unwrap(), "--archive-mode", "off"];
    let restored = made.walhalla.run(&args).succeeds();
    let said = format!("{}{}", restored.stdout, restored.stderr);
    for wanted in wanted {
        assert!(said.contains(wanted), "{wanted}: {restored}");
    }
    let line = restored.stdout.lines().last().unwrap();
    let command = line.strip_prefix("start it with: ").unwrap();
    let server = Cluster::adopt(&made.area, VERSION, there.to_owned());
    let sockets = server.connection()[0].1.replace('\'', "''");
    let port = server.connection()[1].1.clone();
    std::fs::OpenOptions::new()
        .append(true)
        .open(there.join("postgresql.auto.conf"))
        .and_then(|mut file| {
            let text = format!(
                "unix_socket_directories = '{sockets}'\nlisten_addresses = ''\nport = {port}\n"
            );
            std::io::Write::write_all(&mut file, text.as_bytes())
        })
        .unwrap();
    let programs = host().server_program(VERSION, "pg_ctl");
    let path = format!(
        "{}:{}",
        programs.parent().unwrap().display(),
        crate::support::PATH
    );
    let pg_ctl = |command: &str| {
        let mut shell = host().command("bash");
        shell.env("PATH", &path);
        run(shell.args(["-c", command])).succeeds()
    };
    let log = made.area.path("server.log");
    pg_ctl(&format!(
        "{command} -w -l {} > /dev/null 2>&1",
        log.display()
    ));
    assert!(there.join("postmaster.pid").exists());
    assert_eq!(server.sql("show data_directory"), there.to_str().unwrap());
    assert_eq!(server.sql("select count(*) from t"), "1");
    pg_ctl(&format!(
        "pg_ctl -D \"{}\" -w stop > /dev/null",
        there.display()
    ));
    assert_eq!(std::fs::read(&original).unwrap(), before);
    assert!(!made.cluster.data.join("postmaster.pid").exists());
}

#[test]
fn the_printed_command_starts_what_was_restored_whatever_data_directory_says() {
    let made = with_data_directory(|cluster, own| {
        cluster.configure("include 'more.conf'");
        cluster.configure(own);
        let more = cluster.data.join("more.conf");
        std::fs::write(&more, format!("{own}\nwork_mem = '5MB'\n")).unwrap();
        host().give_to_user(&more);
    });
    let there = made.area.path("restored");
    let wanted = [
        "postgresql.conf set data_directory",
        "more.conf set data_directory",
        "the line is a comment now",
    ];
    starts_what_was_restored(&made, &there, &wanted);
    // Also when the file comes back as it is in the backup.
    let over = [
        "restore",
        there.to_str().unwrap(),
        "--delta",
        "--archive-mode",
        "off",
    ];
    made.walhalla
        .run(&over)
        .succeeds()
        .says(&["the line is a comment now"]);
    let text = std::fs::read_to_string(there.join("postgresql.conf")).unwrap();
    assert!(text.contains("\n# data_directory"), "{text}");
    // The files of a backup are left as they are, and it is said.
    let fetched = made.area.path("fetched");
    made.walhalla
        .run(&["backup-fetch", fetched.to_str().unwrap(), "LATEST"])
        .succeeds()
        .says(&["data_directory =", "take the line out"]);
}

#[test]
fn a_data_directory_that_is_set_elsewhere_is_told_and_overridden_by_what_is_printed() {
    let made = with_data_directory(|cluster, own| {
        let etc = cluster.data.parent().unwrap().join("etc");
        std::fs::create_dir(&etc).unwrap();
        let (conf, pid) = (etc.join("more.conf"), etc.join("server.pid"));
        let text = format!("{own}\nexternal_pid_file = '{}'\n", pid.display());
        std::fs::write(&conf, text).unwrap();
        std::fs::copy(cluster.data.join("pg_hba.conf"), etc.join("hba.conf")).unwrap();
        for path in [&etc, &conf, &etc.join("hba.conf")] {
            host().give_to_user(path);
        }
        cluster.configure(&format!("include '{}'", conf.display()));
        cluster.configure(&format!("hba_file = '{}'", etc.join("hba.conf").display()));
    });
    let pid_file = made.area.path("etc/server.pid");
    std::fs::write(&pid_file, "another's").unwrap();
    let there = made.area.path("it's restored");
    let wanted = [
        "ATTENTION: data_directory =",
        "more.conf, outside of the restored directory",
        "hba_file =",
        "external_pid_file =",
        "-o ",
    ];
    starts_what_was_restored(&made, &there, &wanted);
    assert_eq!(std::fs::read(&pid_file).unwrap(), b"another's");
}

/// Before 13 the server cuts a longer command off without a word, and finds nothing in the archive.
#[test]
fn a_restore_command_that_the_server_would_cut_off_is_refused() {
    let area = Area::new();
    let store = Store::directory(&area);
    let folders = ["a", "b", "c", "d"].map(|letter| letter.repeat(240));
    let folder = area.make_dir(&folders.join("/"));
    let config = folder.strip_prefix(area.root()).unwrap().join("walhalla");
    for (version, is_cut) in [(12, true), (13, false)] {
        let name = format!("primary{version}");
        let mut cluster = Cluster::create_unrelated(&area, &name, Shape::small(version));
        let walhalla = Walhalla::on_host(&area, config.to_str().unwrap(), &store, "");
        Walhalla::new(&area, &store).archive_from(&mut cluster);
        Walhalla::new(&area, &store)
            .run_with(&cluster, &["backup-push", cluster.data.to_str().unwrap()])
            .succeeds();
        cluster.archive_everything();
        let id = cluster.system_identifier();
        cluster.stop();
        let copy = area.path(&format!("copy{version}"));
        let args = ["restore", copy.to_str().unwrap(), "--wal", "on-demand"];
        let args = [&args[..], &["--system-identifier", &id]].concat();
        let outcome = walhalla.run(&args);
        if is_cut {
            outcome
                .exits_with(1)
                .says(&["1,023", "nothing was written"]);
        } else {
            outcome.succeeds();
        }
        assert_eq!(copy.exists(), !is_cut);
    }
}
