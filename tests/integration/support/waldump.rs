//! What PostgreSQL's own `pg_waldump` shows.

use std::path::PathBuf;

use walhalla_postgres::wal::page_header::PageHeader;
use walhalla_postgres::{Lsn, SegmentSize, Version};

use super::wal_shown::{read_segments, relation_of_path};
use super::{Area, Shown, host, version_name};

/// The oldest version whose `pg_waldump` was found as a relocatable build.
const OLDEST: u32 = 14;
/// The first version of which it describes the drop of a database.
const DESCRIBES_DROP: u32 = 13;
/// The first version whose changes of settings it describes rightly: 12 put `max_wal_senders` among them.
const DESCRIBES_SETTINGS: u32 = 12;
const PAGE_BYTES: usize = 8192;

/// Asserts that the reader finds what `pg_waldump` shows in segments of one timeline that follow each other; returns it.
pub fn compare_with_pg_waldump(
    area: &Area,
    version: u32,
    segments: &[PathBuf],
    size: SegmentSize,
) -> Vec<Shown> {
    let theirs = pg_waldump(area, version, segments);
    let mut ours = Vec::new();
    let parsed = Version::parse(&version_name(version)).unwrap();
    read_segments(segments, size, |record| {
        ours.push(Shown::of(record, parsed));
    });
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let mut ours = ours.clone();
        let is_drop = ours
            .event
            .as_ref()
            .is_some_and(|it| it.starts_with("DROP dir "));
        let is_change = ours
            .event
            .as_ref()
            .is_some_and(|it| it.starts_with("PARAMETER_CHANGE "));
        if is_drop && version < DESCRIBES_DROP || is_change && version < DESCRIBES_SETTINGS {
            ours.event = None;
        }
        assert_eq!(&ours, theirs, "version {version}");
    }
    assert_eq!(ours.len(), theirs.len(), "version {version}");
    ours
}

/// What `pg_waldump` shows of segments of one timeline that follow each other.
///
/// Those of 9.6 to 13 are shown by the `pg_waldump` of 14, from copies whose pages carry 14's magic. Records' headers
/// are the same in all of them; of what is compared here, it describes wrongly only the name in `PREPARE` before 11
/// (not compared), the upper half of a checkpoint's next transaction before 12 (not compared), and `DROP` of a database
/// before 13, which it takes for one with a list of tablespaces (left out here).
fn pg_waldump(area: &Area, version: u32, segments: &[PathBuf]) -> Vec<Shown> {
    let segments = if version < OLDEST {
        &with_magic_of_oldest(area, segments)[..]
    } else {
        segments
    };
    let program = host().server_program(version.max(OLDEST), "pg_waldump");
    let (first, last) = (&segments[0], &segments[segments.len() - 1]);
    // What follows the last segment is missing, which pg_waldump reports as an error.
    let output = host()
        .command(program)
        .env("TZ", "UTC")
        .args(["--bkp-details", "-p"])
        .arg(first.parent().unwrap())
        .args([first.file_name().unwrap(), last.file_name().unwrap()])
        .output()
        .unwrap();
    let mut records: Vec<Shown> = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if line.starts_with("rmgr: ") {
            records.push(record(line, version));
        } else if let Some((_, block)) = line.split_once("blkref #") {
            records.last_mut().unwrap().blocks.push(block_of(block));
        }
    }
    records
}

/// Copies of the segments that a newer `pg_waldump` takes for its own.
fn with_magic_of_oldest(area: &Area, segments: &[PathBuf]) -> Vec<PathBuf> {
    let magic = Version::parse(&OLDEST.to_string())
        .unwrap()
        .wal_page_magic()
        .to_le_bytes();
    let folder = area.make_dir("as-of-14");
    let copy = |path: &PathBuf| {
        let mut bytes = std::fs::read(path).unwrap();
        for page in bytes.chunks_mut(PAGE_BYTES) {
            if PageHeader::read(page).unwrap().magic != 0 {
                page[..2].copy_from_slice(&magic);
            }
        }
        let to = folder.join(path.file_name().unwrap());
        std::fs::write(&to, bytes).unwrap();
        host().give_to_user(&to);
        to
    };
    segments.iter().map(copy).collect()
}

/// `rmgr: Heap        len (rec/tot):     54/    54, tx:        738, lsn: 0/01500028, prev 0/01500000, desc: …`
fn record(line: &str, version: u32) -> Shown {
    let after = |mark: &str| line.split_once(mark).unwrap().1.trim_start();
    let until_comma = |text: &'static str| after(text).split(',').next().unwrap().trim();
    let lengths = until_comma("/tot):").split_once('/').unwrap();
    let resource_manager = after("rmgr: ").split_whitespace().next().unwrap();
    Shown {
        lsn: lsn(until_comma(" lsn: ")),
        previous: lsn(until_comma(" prev ")),
        resource_manager: resource_manager.to_owned(),
        size_bytes: lengths.1.trim().parse().unwrap(),
        size_without_images_bytes: lengths.0.trim().parse().unwrap(),
        xid: until_comma(" tx:").parse().unwrap(),
        blocks: Vec::new(),
        event: description(resource_manager, after(", desc: "), version),
    }
}

/// `0: rel 1663/5/16384 fork main blk 0 (FPW); hole: offset: 60, length: 64, compression saved: 20, method: pglz`
fn block_of(text: &str) -> (String, Option<u32>) {
    let text = text.split_once(": ").unwrap().1;
    let (block, image) = text
        .split_once(" (FPW")
        .map_or((text, None), |(block, image)| (block, Some(image)));
    let number = |text: &str, name: &str| {
        let (_, number) = text.split_once(name)?;
        number.split(',').next()?.trim().parse::<u32>().ok()
    };
    let image_bytes = image.map(|image| {
        let hole = number(image, ", length: ").unwrap();
        let saved = number(image, "compression saved: ").unwrap_or(0);
        8192 - hole - saved
    });
    (block.trim().to_owned(), image_bytes)
}

/// The description of what the reader decodes, in the words of `Shown::of`.
fn description(resource_manager: &str, text: &str, version: u32) -> Option<String> {
    let (operation, rest) = text.split_once(' ').unwrap_or((text, ""));
    let rest = rest.trim();
    let told = match (resource_manager, operation) {
        ("Transaction", "COMMIT" | "ABORT" | "COMMIT_PREPARED" | "ABORT_PREPARED") => {
            transaction(rest)
        }
        // `gid NAME: TIME; …`
        ("Transaction", "PREPARE") => {
            let (_, rest) = rest.split_once(": ")?;
            rest.split("; ").next()?.to_owned()
        }
        ("XLOG", "CHECKPOINT_SHUTDOWN" | "CHECKPOINT_ONLINE") => checkpoint(rest),
        // From 18 on followed by the wal_level.
        ("XLOG", "END_OF_RECOVERY") => rest.splitn(4, "; ").take(3).collect::<Vec<_>>().join("; "),
        ("XLOG", "PARAMETER_CHANGE") if version >= DESCRIBES_SETTINGS => {
            rest.split(" wal_log_hints=").next()?.to_owned()
        }
        ("XLOG", "RESTORE_POINT") | ("Tablespace", "CREATE" | "DROP") => rest.to_owned(),
        ("XLOG", "BACKUP_END") => lsn(rest).to_string(),
        ("XLOG", "SWITCH") => return Some("SWITCH".to_owned()),
        ("XLOG", "OVERWRITE_CONTRECORD") => {
            let position = rest.strip_prefix("lsn ")?.split(';').next()?;
            format!("lsn {}", lsn(position))
        }
        ("Storage", "CREATE") => relation(rest),
        ("Storage", "TRUNCATE") => {
            let (path, rest) = rest.split_once(' ')?;
            format!("{} {rest}", relation(path))
        }
        // Named by the strategy from 15 on.
        ("Database", "CREATE" | "CREATE_FILE_COPY" | "CREATE_WAL_LOG") => {
            return Some(format!("CREATE {rest}"));
        }
        ("Database", "DROP") if version >= DESCRIBES_DROP => rest.to_owned(),
        _ => return None,
    };
    Some(format!("{operation} {told}"))
}

fn transaction(text: &str) -> String {
    let mut parts = text.split("; ").map(str::trim);
    let mut told = vec![parts.next().unwrap().to_owned()];
    for part in parts {
        if let Some(paths) = part.strip_prefix("rels: ") {
            let names: Vec<_> = paths
                .split_whitespace()
                .map(|path| relation_of_path(path).0.to_string())
                .collect();
            told.push(format!("rels: {}", names.join(" ")));
        } else if part.starts_with("subxacts: ") {
            told.push(part.to_owned());
        } else if let Some(messages) = part.strip_prefix("inval msgs: ") {
            let is_word = |word: &&str| word.starts_with(char::is_alphabetic) && *word != "db";
            let count = messages.split_whitespace().filter(is_word).count();
            told.push(format!("inval msgs: {count}"));
        } else if let Some(origin) = part.strip_prefix("origin: ") {
            let (node, rest) = origin.split_once(", lsn ").unwrap();
            let (position, at) = rest.split_once(", at ").unwrap();
            told.push(format!("origin: {node}, lsn {}, at {at}", lsn(position)));
        }
    }
    told.join("; ")
}

/// `redo 0/1500028; tli 1; prev tli 1; fpw true; xid 0:738; …; online`
fn checkpoint(text: &str) -> String {
    let mut told = Vec::new();
    for part in text.split("; ") {
        if let Some(redo) = part.strip_prefix("redo ") {
            told.push(format!("redo {}", lsn(redo)));
        } else if let Some((_, xid)) = part
            .strip_prefix("xid ")
            .and_then(|xid| xid.split_once(':'))
        {
            told.push(format!("xid {xid}"));
        } else if part.starts_with("tli ")
            || part.starts_with("prev tli ")
            || matches!(part, "shutdown" | "online")
        {
            told.push(part.to_owned());
        }
    }
    told.join("; ")
}

fn relation(path: &str) -> String {
    let (relation, fork) = relation_of_path(path);
    format!("{relation} fork {fork}")
}

fn lsn(text: &str) -> Lsn {
    text.trim().parse().unwrap()
}
