//! The book: every link and anchor in it leads somewhere, the table of contents names each page once, the program knows
//! every command line, and the alert rules and the dashboard use the metrics that the book lists. The same of what the
//! packages hold: systemd's units and the sample of the settings.
//!
//! It reads Markdown as GitHub and mdBook do, as far as the pages use it, and needs neither of the two.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use clap::CommandFactory as _;
use walhalla::config::Unset;
use walhalla::status::metrics::{METRICS, PREFIX, ShownBy};

/// Pages outside of the book whose links are checked, too.
const OTHER_PAGES: [&str; 3] = ["README.md", "CHANGELOG.md", "docker/README.md"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text_of(page: &Path) -> String {
    std::fs::read_to_string(root().join(page)).unwrap()
}

/// The Markdown files below `docs`, relative to the project, sorted.
fn pages_of_the_book() -> BTreeSet<PathBuf> {
    let mut pages = BTreeSet::new();
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "md") {
                pages.insert(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    pages
}

/// The lines outside of code blocks, with their numbers from 1.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut lines = Vec::new();
    let mut fence: Option<&str> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let start = line.trim_start();
        match fence {
            Some(mark) if start.trim_end() == mark => fence = None,
            Some(_) => {}
            None if start.starts_with("```") => fence = Some("```"),
            None => lines.push((number, line)),
        }
    }
    lines
}

/// The line without what stands between backticks.
fn without_code(line: &str) -> String {
    let pieces: Vec<&str> = line.split('`').collect();
    // With an odd number of backticks the last one begins no code.
    let last = pieces.len() - 1;
    let is_text = |(index, _): &(usize, &&str)| index % 2 == 0 || *index == last;
    let outside = pieces.iter().enumerate().filter(is_text);
    outside.map(|(_, piece)| *piece).collect()
}

struct Link {
    line: usize,
    target: String,
    is_image: bool,
    text: String,
}

/// The links and images in a page: `[text](target)`, `![text](target)`.
fn links(text: &str) -> Vec<Link> {
    let mut links = Vec::new();
    for (line, content) in prose(text) {
        let content = without_code(content);
        for (place, _) in content.match_indices("](") {
            let (before, after) = (&content[..place], &content[place + 2..]);
            let end = after
                .find(')')
                .unwrap_or_else(|| panic!("line {line}: a link without an end: {content}"));
            let start = before
                .rfind('[')
                .unwrap_or_else(|| panic!("line {line}: a link without a beginning: {content}"));
            links.push(Link {
                line,
                target: after[..end].to_owned(),
                is_image: before[..start].ends_with('!'),
                text: before[start + 1..].to_owned(),
            });
        }
    }
    links
}

/// A heading's text without links and code marks.
fn plain(heading: &str) -> String {
    let mut plain = String::new();
    let mut rest = heading;
    while let Some(end) = rest.find("](") {
        plain.push_str(&rest[..end]);
        let after = &rest[end..];
        rest = &after[after.find(')').unwrap() + 1..];
    }
    plain.push_str(rest);
    plain.replace(['`', '[', '*'], "")
}

/// The anchor that GitHub and mdBook give a heading.
fn anchor(heading: &str) -> String {
    let heading = plain(heading);
    let kept = |letter: &char| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_');
    let letters = heading.trim().to_lowercase();
    letters
        .chars()
        .filter(kept)
        .collect::<String>()
        .replace(' ', "-")
}

/// The anchors of a page. The second heading of a name gets the number 1, and so on.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut anchors = BTreeSet::new();
    for (_, line) in prose(text) {
        let level = line.len() - line.trim_start_matches('#').len();
        if (1..=6).contains(&level) && line[level..].starts_with(' ') {
            let name = anchor(&line[level..]);
            let count = counts.entry(name.clone()).or_default();
            anchors.insert(if *count == 0 {
                name
            } else {
                format!("{name}-{count}")
            });
            *count += 1;
        }
    }
    anchors
}

/// `folder/path` without `.` and `..`.
fn joined(folder: &Path, path: &str) -> PathBuf {
    let mut joined = PathBuf::new();
    for component in folder.join(path).components() {
        match component {
            Component::ParentDir => assert!(joined.pop(), "{path} leads out of the project"),
            Component::CurDir => {}
            other => joined.push(other),
        }
    }
    joined
}

/// What is wrong with a link of a page.
fn problem(page: &Path, link: &Link) -> Option<String> {
    if link.is_image && link.text.trim().is_empty() {
        return Some("an image without a text in its place".to_owned());
    }
    if link.target.starts_with("https://") || link.target.starts_with("http://") {
        return None;
    }
    let (path, anchor) = match link.target.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor)),
        None => (link.target.as_str(), None),
    };
    let target = if path.is_empty() {
        page.to_owned()
    } else {
        joined(page.parent().unwrap(), path)
    };
    if page.starts_with("docs") && !target.starts_with("docs") {
        return Some("it leads out of the book, where mdBook has nothing".to_owned());
    }
    if !root().join(&target).is_file() {
        return Some(format!("there is no file {}", target.display()));
    }
    let anchor = anchor?;
    let is_known = anchors(&text_of(&target)).contains(anchor);
    (!is_known).then(|| format!("{} has no heading #{anchor}", target.display()))
}

#[test]
fn every_link_and_anchor_leads_somewhere() {
    let mut pages = pages_of_the_book();
    pages.extend(OTHER_PAGES.map(PathBuf::from));
    let mut problems = Vec::new();
    let mut count = 0;
    for page in &pages {
        for link in links(&text_of(page)) {
            count += 1;
            if let Some(problem) = problem(page, &link) {
                let Link { line, target, .. } = link;
                problems.push(format!("{}:{line}: {target}: {problem}", page.display()));
            }
        }
    }
    assert!(count > 500, "only {count} links were found");
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn the_table_of_contents_names_each_page_once() {
    let summary = Path::new("docs/SUMMARY.md");
    let named: Vec<PathBuf> = links(&text_of(summary))
        .iter()
        .map(|link| joined(Path::new("docs"), &link.target))
        .collect();
    let mut pages = pages_of_the_book();
    assert!(pages.remove(summary));
    let listed: BTreeSet<PathBuf> = named.iter().cloned().collect();
    assert_eq!(named.len(), listed.len(), "a page stands there twice");
    assert_eq!(listed, pages, "pages in SUMMARY.md and in docs/");
}

/// The lines of a page's code blocks that may hold commands, with their numbers. A line that ends in a backslash is one
/// with those after it. Of a block without a language, which mostly shows output, these are a shell's and a crontab's.
fn commands(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut fence: Option<&str> = None;
    let mut goes_on = false;
    for (number, line) in (1..).zip(text.lines()) {
        let start = line.trim_start();
        let part = line.trim_end_matches('\\');
        if let Some(language) = start.strip_prefix("```") {
            fence = fence.is_none().then_some(language);
        } else if let Some(language) = fence {
            let is_typed = start.starts_with(|first: char| "$*0123456789".contains(first));
            if goes_on {
                lines.last_mut().unwrap().1.push_str(part);
            } else if is_typed || !language.is_empty() {
                lines.push((number, part.to_owned()));
            }
        }
        goes_on = fence.is_some() && !lines.is_empty() && line.ends_with('\\');
    }
    lines
}

/// What a shell makes of a command: its words, up to a pipe, a comment or the next command.
fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for letter in command.chars() {
        match (quote, letter) {
            (Some(mark), _) if letter == mark => quote = None,
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, '|' | ';' | '&' | '>' | '<' | ')') => break,
            (None, '#') if word.is_none() => break,
            (None, _) if letter.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

/// The arguments of each call of the program in a line of a shell, a crontab, a unit or a configuration file.
fn calls(line: &str) -> Vec<Vec<String>> {
    let mut calls = Vec::new();
    for start in ["walhalla ", "/usr/local/bin/walhalla "] {
        for (place, _) in line.match_indices(start) {
            let (before, rest) = (&line[..place], &line[place + start.len()..]);
            if is_call(before, start) {
                // Inside the quotes of a setting, the call ends where they do.
                let quote = before.chars().last().filter(|it| matches!(it, '\'' | '"'));
                let end = quote.and_then(|quote| rest.find(quote));
                calls.push(words(&rest[..end.unwrap_or(rest.len())]));
            }
        }
    }
    calls
}

/// Whether a program's name that stands behind `before` is a call of it.
fn is_call(before: &str, name: &str) -> bool {
    let before = before.trim_end_matches(['\'', '"']);
    let last = before.split_whitespace().last().unwrap_or_default();
    let is_word = before.ends_with(' ') || before.is_empty();
    // `ExecStart=/usr/local/bin/walhalla …`, but not `PGUSER=walhalla …`
    if !is_word {
        return before.ends_with('=') && name.starts_with('/');
    }
    let fields = before.split_whitespace().count();
    let is_crontab = before.starts_with(|first: char| first.is_ascii_digit() || first == '*');
    let leads = [
        "",
        "$",
        "postgres",
        "keeper",
        "&&",
        "||",
        "do",
        "=",
        "archive_command:",
    ];
    let leads = [&leads[..], &["restore_command:", "command:"]].concat();
    leads.contains(&last) || (is_crontab && (5..=6).contains(&fields))
}

/// Whether the program knows the command and the options. Their values are not looked at.
fn complaint(arguments: &[String]) -> Option<String> {
    let mut program = Command::new(env!("CARGO_BIN_EXE_walhalla"));
    // The program shows its help when all that stands before it is known.
    let outcome = program.args(arguments).arg("--help").output().unwrap();
    let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
    (!outcome.status.success()).then(|| said.lines().next().unwrap_or_default().to_owned())
}

#[test]
fn the_program_knows_every_command_line_of_the_book() {
    let mut pages = pages_of_the_book();
    pages.retain(|page| !page.starts_with("docs/decisions"));
    pages.extend(OTHER_PAGES.map(PathBuf::from));
    pages.remove(Path::new("CHANGELOG.md"));
    let mut complaints = Vec::new();
    let mut count = 0;
    for page in &pages {
        for (line, text) in commands(&text_of(page)) {
            for arguments in calls(&text) {
                // An ellipsis stands for arguments of the reader's own, and so do those of a function of the shell.
                let own: Vec<String> = { arguments.iter() }
                    .filter(|word| !word.contains('…') && *word != "$@")
                    .map(|word| word.replace("$noted", "2026-11-21 04:30:00+00"))
                    .collect();
                count += 1;
                if let Some(complaint) = complaint(&own) {
                    complaints.push(format!("{}:{line}: {complaint}", page.display()));
                }
            }
        }
    }
    assert!(count > 80, "only {count} calls were found");
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn calls_are_found_where_they_stand() {
    for (line, expected) in [
        ("walhalla backup-list", "backup-list"),
        (
            "$ walhalla plan --target-name before",
            "plan --target-name before",
        ),
        ("sudo -u postgres walhalla check  # now", "check"),
        (
            "30 1 * * *    walhalla backup-push /a --delta",
            "backup-push /a --delta",
        ),
        ("ExecStart=/usr/local/bin/walhalla daemon", "daemon"),
        (
            "archive_command = '/usr/local/bin/walhalla wal-push %p'",
            "wal-push %p",
        ),
        (
            "walhalla backup-show LATEST | grep -A3 tablespaces",
            "backup-show LATEST",
        ),
        (
            "for f in a; do walhalla wal-push pg_wal/$f || break; done",
            "wal-push pg_wal/$f",
        ),
    ] {
        let found: Vec<String> = calls(line).iter().map(|words| words.join(" ")).collect();
        assert_eq!(found, [expected], "{line}");
    }
    let none = "INFO backup 1 walhalla begins";
    assert!(calls(none).is_empty(), "{none}");
    let two = calls("walhalla restore a --target-time '2026-11-21 04:29:59+00'");
    assert_eq!(two[0][3], "2026-11-21 04:29:59+00");
}

/// The words that begin with `walhalla_`.
fn metrics(text: &str) -> BTreeSet<String> {
    let is_part = |letter: char| letter.is_ascii_lowercase() || letter == '_';
    let words = text.split(|letter| !is_part(letter));
    words
        .filter(|word| word.starts_with("walhalla_") && !word.ends_with('_'))
        .map(str::to_owned)
        .collect()
}

/// The table of the settings, from the rows of the code.
fn table_of_settings() -> String {
    let command = walhalla::cli::Cli::command();
    let mut table = String::from("| key | variable | default | |\n| --- | --- | --- | --- |\n");
    for row in walhalla::config::ROWS {
        let flag = row.name.replace('_', "-");
        let has_flag = { command.get_arguments() }.any(|it| it.get_long() == Some(&flag));
        let flag = if has_flag {
            format!(" (flag `--{flag}`)")
        } else {
            String::new()
        };
        let (name, variable) = (row.name, row.variable);
        let (default, page) = (row.default.described(), row.page());
        writeln!(
            table,
            "| `{name}` | `{variable}`{flag} | {default} | {page} |"
        )
        .unwrap();
    }
    table
}

/// The table of the metrics, from the rows of the code.
fn table_of_metrics() -> String {
    let mut table = String::from("| name | labels | from | meaning |\n| --- | --- | --- | --- |\n");
    for metric in METRICS {
        let labels = metric.labels.iter().map(|(label, values)| {
            let values: Vec<_> = values.iter().map(|value| format!("`{value}`")).collect();
            let colon = if values.is_empty() { "" } else { ": " };
            format!("`{label}`{colon}{}", values.join(", "))
        });
        let shown_by = match metric.shown_by {
            ShownBy::Both => "`status`, daemon",
            ShownBy::Host => "`status --pgdata`, daemon",
            ShownBy::Server => "`status --pgdata` while the server answers, daemon",
            ShownBy::Daemon => "daemon",
        };
        let (name, help) = (metric.name, metric.help);
        let labels = labels.collect::<Vec<_>>().join("; ");
        writeln!(
            table,
            "| `{PREFIX}_{name}` | {labels} | {shown_by} | {help} |"
        )
        .unwrap();
    }
    table
}

#[test]
fn tables_are_those_of_the_code() {
    for (page, name, table) in [
        ("docs/settings.md", "settings", table_of_settings()),
        ("docs/monitoring.md", "metrics", table_of_metrics()),
    ] {
        let text = text_of(Path::new(page));
        let begin = format!("<!-- {name}: written by tests/book.rs -->\n");
        let end = format!("<!-- end of {name} -->\n");
        let (before, rest) = text.split_once(&begin).unwrap();
        let (_, after) = rest.split_once(&end).unwrap();
        let expected = format!("{before}{begin}\n{table}\n{end}{after}");
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(root().join(page), &expected).unwrap();
        } else {
            assert!(
                text == expected,
                "{page} is not as the code has it; `UPDATE_EXPECT=1 cargo test --test book` writes its table anew"
            );
        }
    }
}

/// The words of a text in lines of a comment.
fn comment(text: &str) -> String {
    let mut lines = String::from("#");
    let mut room = 110;
    for word in text.split_whitespace() {
        let length = word.chars().count() + 1;
        if length > room {
            lines.push_str("\n#");
            room = 110;
        }
        room -= length;
        lines.push(' ');
        lines.push_str(word);
    }
    lines
}

/// Values for the settings that have no default which is one.
const SAMPLES: [(&str, &str); 29] = [
    ("store", "\"file:///srv/backup/walhalla\""),
    ("cluster", "\"7443178563127885315\""),
    // No key that somebody might keep in a hurry: what is encrypted to it would be lost.
    ("age_recipients", "[\"age1…\"]"),
    ("age_recipients_file", "\"/etc/walhalla/recipients\""),
    ("age_identity_file", "\"/etc/walhalla/identity\""),
    ("upload_concurrency", "4"),
    ("download_concurrency", "4"),
    ("upload_rate", "\"50MiB\""),
    ("download_rate", "\"50MiB\""),
    ("read_rate", "\"100MiB\""),
    ("max_backlog", "\"100GiB\""),
    ("spool_dir", "\"/var/lib/walhalla/spool\""),
    ("retention", "\"days=14 monthly=12\""),
    ("mirror", "\"s3://acme-vault/postgres\""),
    ("mirror_config", "\"/etc/walhalla/vault.toml\""),
    ("ca_file", "\"/etc/walhalla/ca.pem\""),
    ("s3_force_path_style", "true"),
    ("s3_sse", "\"aws:kms\""),
    ("s3_sse_kms_key_id", "\"alias/walhalla\""),
    ("s3_storage_class", "\"STANDARD_IA\""),
    ("s3_object_lock_mode", "\"GOVERNANCE\""),
    ("s3_object_lock_days", "30"),
    ("s3_profile", "\"backup\""),
    ("s3_conditional_writes", "\"probe\""),
    ("s3_checksums", "true"),
    ("s3_sign_bodies", "true"),
    (
        "gcs_kms_key",
        "\"projects/acme/locations/eu/keyRings/db/cryptoKeys/walhalla\"",
    ),
    ("gcs_storage_class", "\"NEARLINE\""),
    ("azure_access_tier", "\"Cool\""),
];

/// The line that sets a setting in the sample.
fn sample_line(row: &walhalla::config::Row) -> String {
    let known = SAMPLES.iter().find(|(name, _)| *name == row.name);
    let value = match (known, row.default) {
        (Some((_, value)), _) => (*value).to_owned(),
        (None, Unset::Text(text)) if text.parse::<u64>().is_ok() || text == "false" => {
            text.to_owned()
        }
        (None, Unset::Text(text)) => format!("\"{text}\""),
        (None, _) => panic!("SAMPLES has no value for {}", row.name),
    };
    format!("{} = {value}", row.name)
}

#[test]
fn the_sample_of_the_settings_is_that_of_the_code() {
    let file = Path::new("packaging/walhalla.toml");
    let mut expected = String::from(
        "# Settings of Walhalla: man walhalla.toml. Remove the # before a key to set it. `walhalla config` shows what holds.\n",
    );
    for row in walhalla::config::ROWS {
        let default = row.default.described();
        let text = format!("{} Default: {default}.", row.documentation());
        let (text, line) = (comment(&text), sample_line(row));
        write!(expected, "\n{text}\n#{line}\n").unwrap();
    }
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(root().join(file), &expected).unwrap();
    }
    assert!(
        text_of(file) == expected,
        "{} is not as the code has it; `UPDATE_EXPECT=1 cargo test --test book` writes it anew",
        file.display()
    );
}

#[test]
fn the_program_takes_every_line_of_the_sample() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("walhalla.toml");
    // These name what is not there: a file, and a key that is none.
    let (needy, rest): (Vec<_>, Vec<_>) =
        { walhalla::config::ROWS.iter() }.partition(|row| row.name.starts_with("age_recipients"));
    let config = |rows: &[&walhalla::config::Row]| {
        let lines: Vec<_> = rows.iter().copied().map(sample_line).collect();
        std::fs::write(&file, lines.join("\n")).unwrap();
        let mut program = Command::new(env!("CARGO_BIN_EXE_walhalla"));
        program.args(["config", "--json", "--config"]).arg(&file);
        let outcome = program.output().unwrap();
        String::from_utf8(outcome.stderr).unwrap()
    };
    assert_eq!(config(&rest), "");
    for row in needy {
        let said = config(&[row]);
        let reason = if row.name == "age_recipients" {
            "is no age recipient"
        } else {
            "could not read the recipients file"
        };
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn the_program_knows_every_command_line_of_the_units() {
    let mut count = 0;
    for entry in std::fs::read_dir(root().join("packaging/systemd")).unwrap() {
        let path = entry.unwrap().path();
        let Ok(unit) = std::fs::read_to_string(&path) else {
            continue;
        };
        for line in unit.lines() {
            let Some(command) = line.strip_prefix("ExecStart=walhalla ") else {
                continue;
            };
            count += 1;
            let complaint = complaint(&words(command));
            assert_eq!(complaint, None, "{}", path.display());
        }
    }
    assert_eq!(count, 7, "units that start the program");
}

#[test]
fn the_manual_has_a_page_for_each_command_and_names_each_setting() {
    let dir = tempfile::tempdir().unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_walhalla"));
    let outcome = program.arg("man").arg(dir.path()).output().unwrap();
    assert!(outcome.status.success(), "{outcome:?}");
    let page = |name: &str| {
        let page = std::fs::read_to_string(dir.path().join(name));
        page.unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let command = walhalla::cli::Cli::command();
    for command in command.get_subcommands().filter(|it| !it.is_hide_set()) {
        let text = page(&format!("walhalla-{}.1", command.get_name()));
        let about = command.get_about().unwrap().to_string();
        let first_word = about.split(' ').next().unwrap();
        assert!(text.contains(first_word), "{text}");
    }
    let settings = page("walhalla.toml.5");
    for row in walhalla::config::ROWS {
        let name = format!("\\fB{}\\fR", row.name);
        assert!(settings.contains(&name), "{name} is not in\n{settings}");
    }
}

#[test]
fn alert_rules_and_dashboard_use_metrics_that_the_book_lists() {
    let page = text_of(Path::new("docs/monitoring.md"));
    let rows = page.lines().filter(|line| line.starts_with("| `walhalla_"));
    let listed = metrics(&rows.collect::<Vec<_>>().join("\n"));
    assert!(listed.len() > 15, "{listed:?}");
    for file in ["prometheus/walhalla.rules.yml", "grafana/walhalla.json"] {
        let used = metrics(&text_of(&Path::new("packaging").join(file)));
        assert!(used.len() > 5, "{file}: {used:?}");
        let unknown: Vec<_> = used.difference(&listed).collect();
        assert!(unknown.is_empty(), "{file} has {unknown:?}");
    }
}

#[test]
fn a_heading_gets_the_anchor_that_github_gives_it() {
    for (heading, expected) in [
        ("5. Unpack the backup", "5-unpack-the-backup"),
        ("… is damaged", "-is-damaged"),
        ("`wal-push`", "wal-push"),
        (
            "A backup exists once its backup.json does",
            "a-backup-exists-once-its-backupjson-does",
        ),
        ("One [link](page.md) here", "one-link-here"),
        ("a · b", "a--b"),
    ] {
        assert_eq!(anchor(heading), expected);
    }
    let page = "# A\n## B\n## B\n```\n# no heading\n```\n";
    assert_eq!(anchors(page), ["a", "b", "b-1"].map(str::to_owned).into());
}

#[test]
fn links_in_code_are_none() {
    let page = "[a](b.md) `[c](d.md)` ![e](f.svg)\n```\n[g](h.md)\n```\n";
    let found: Vec<_> = links(page)
        .iter()
        .map(|link| (link.target.clone(), link.is_image))
        .collect();
    let expected = [("b.md", false), ("f.svg", true)];
    assert_eq!(
        found,
        expected.map(|(target, is_image)| (target.to_owned(), is_image))
    );
}
