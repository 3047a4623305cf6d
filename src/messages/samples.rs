//! A sample of each error.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::SignedDuration;
use walhalla_postgres::block_table::BlockTableDamage;
use walhalla_postgres::wal::Mismatch;
use walhalla_postgres::wal::reader::BrokenRecord;
use walhalla_postgres::wal::record::RecordNotUnderstood;
use walhalla_postgres::{
    Lsn, SegmentName, SegmentSize, SystemIdentifier, TimelineId, Version, WalFileName,
};
use walhalla_providers::{Distrust, Error as StoreError, ErrorKind, Operation};

use super::{parts, with_hints};
use crate::pipeline::encryption::{IdentityError, RecipientError};
use crate::pipeline::{self, Locked};
use crate::repository::entry::ChangeSource;
use crate::repository::{BackupId, ChainError, ChainProblem, FoundCluster, ObjectError};
use crate::restore::existing::Unproven;
use crate::restore::occupant::{Occupant, RunningServer};
use crate::restore::outside::Unfit;
use crate::restore::plan::{NewTablespace, Unreachable};
use crate::retention::decide::Refusal;
use crate::server::connection::Problem;
use crate::server::replication;
use crate::{
    archive, backup, config, contents, copying, drill, error, receive, repository, restore,
    retention, server, verify, wal,
};

const STORE: &str = "s3://acme/orders";
const OBJECT: &str =
    "s3://acme/orders/7443178563127885315/wal/00000001/00000001000000000000002A.lz4";
const SEGMENT: &str = "00000001000000000000002A";

fn s(text: &str) -> String {
    text.to_owned()
}

fn p(path: &str) -> PathBuf {
    path.into()
}

fn lsn(text: &str) -> Lsn {
    text.parse().unwrap()
}

fn segment() -> SegmentName {
    SEGMENT.parse().unwrap()
}

fn file(name: &str) -> WalFileName {
    name.parse().unwrap()
}

fn full() -> BackupId {
    "20261121T043000Z-F".parse().unwrap()
}

fn delta() -> BackupId {
    "20261122T043000Z-D".parse().unwrap()
}

fn cluster() -> SystemIdentifier {
    SystemIdentifier(7_443_178_563_127_885_315)
}

fn other_cluster() -> SystemIdentifier {
    SystemIdentifier(7_710_533_931_497_189_584)
}

fn version(text: &str) -> Version {
    Version::parse(text).unwrap()
}

fn missing_file() -> io::Error {
    io::Error::from_raw_os_error(2)
}

fn denied() -> io::Error {
    io::Error::from_raw_os_error(13)
}

fn full_disk() -> io::Error {
    io::Error::from_raw_os_error(28)
}

fn store_error(kind: ErrorKind) -> StoreError {
    StoreError::new(Operation::Get, OBJECT, kind)
}

fn no_json() -> serde_json::Error {
    serde_json::from_str::<u8>("{").unwrap_err()
}

fn nothing_there() -> repository::Error {
    repository::Error::from(store_error(ErrorKind::NotFound))
}

fn size(megabytes: u64) -> SegmentSize {
    SegmentSize::new(megabytes << 20).unwrap()
}

each_of!(settings: config::Error,
    E::Read { .. } => E::Read { path: p("/etc/walhalla/walhalla.toml"), source: denied() },
    E::Toml { .. } => E::Toml { path: p("/etc/walhalla/walhalla.toml"), source: Box::new(toml::from_str::<toml::Table>("store = ").unwrap_err()) },
    E::UnknownKey { .. } => E::UnknownKey { path: p("/etc/walhalla/walhalla.toml"), key: s("stroe"), nearest: "store" },
    E::UnknownVariable { .. } => E::UnknownVariable { name: s("WALHALLA_TEST_STROE"), nearest: "WALHALLA_STORE" },
    E::InvalidValue { .. } => E::InvalidValue { key: "compression", origin: config::Origin::Variable("WALHALLA_COMPRESSION"), problem: s("\"gzip\" is none of lz4, zstd, zstd:LEVEL and none") },
    E::NoStore => E::NoStore,
    E::MirrorOfItself(..) => E::MirrorOfItself(s(STORE)),
    E::NoRetention => E::NoRetention,
    E::Retention(..) => E::Retention(s("\"zwei\" is no rule")),
    E::Flag { .. } => E::Flag { flag: "--since", value: s("yesterday"), problem: s("write it like '2026-11-21 04:30:00+00'") },
);

fn store_errors() -> Vec<StoreError> {
    let kinds = [
        ErrorKind::NotFound,
        ErrorKind::AlreadyExists,
        ErrorKind::StoreMissing,
        ErrorKind::PermissionDenied,
        ErrorKind::NoCredentials,
        ErrorKind::Unauthenticated,
        ErrorKind::NoSpace,
        ErrorKind::Corrupted,
        ErrorKind::Throttled(None),
        ErrorKind::Untrusted(Distrust::Authority),
        ErrorKind::Untrusted(Distrust::Name),
        ErrorKind::Untrusted(Distrust::Time),
        ErrorKind::Untrusted(Distrust::Other),
        ErrorKind::NoSuchHost,
        ErrorKind::Unavailable,
        ErrorKind::TimedOut,
        ErrorKind::Conflict,
        ErrorKind::DeadlineExceeded,
        ErrorKind::Invalid,
        ErrorKind::Unsupported,
        ErrorKind::Other,
    ];
    let placed = |kind| {
        let mut error = store_error(kind);
        // As the store's requests name it (`Error::at` of the providers).
        if !matches!(
            kind,
            ErrorKind::NotFound
                | ErrorKind::AlreadyExists
                | ErrorKind::Corrupted
                | ErrorKind::Conflict
                | ErrorKind::NoSpace
        ) {
            error.place = Some("endpoint https://s3.example.org, region us-east-1".into());
        }
        error
    };
    let put = StoreError::new(Operation::Put, OBJECT, ErrorKind::Corrupted);
    kinds.map(placed).into_iter().chain([put]).collect()
}

each_of!(objects: ObjectError,
    E::Denied(..) => E::Denied(store_error(ErrorKind::PermissionDenied)),
    E::Damaged(..) => E::Damaged(repository::DamagedObject { object: s(OBJECT), reason: "its content cannot be unpacked".into() }),
    E::WalMismatch { .. } => E::WalMismatch { object: s(OBJECT), file: file(SEGMENT), mismatch: Mismatch::Record(BrokenRecord::Crc(lsn("0/2A000028"))) },
    E::UnknownRecord { .. } => E::UnknownRecord { object: s(OBJECT), lsn: lsn("0/2A000028"), damage: RecordNotUnderstood::Lengths },
    E::Locked { .. } => E::Locked { object: s(OBJECT), reason: Locked::NoIdentity },
    E::TwoContents { .. } => E::TwoContents { first: s(OBJECT), second: OBJECT.replace(".lz4", ".zst") },
    ; E::Store(..)
);

each_of!(repositories: repository::Error,
    E::NoSuchBackup { .. } => E::NoSuchBackup { id: s("20261121T043000Z-D"), cluster: cluster(), nearest: Some(full()), store: s(STORE) },
    E::BrokenChain { .. } => E::BrokenChain { error: ChainError { backup: delta(), ancestor: full(), problem: ChainProblem::Missing }, source: None },
    E::KeptByDelta { .. } => E::KeptByDelta { backup: full(), delta: delta() },
    E::MarkedByOthers { .. } => E::MarkedByOthers { backup: full() },
    E::NoCluster { .. } => E::NoCluster { store: s(STORE) },
    E::NothingOfCluster { .. } => E::NothingOfCluster { found: vec![other_cluster()], store: s(STORE), system_identifier: cluster() },
    E::Unknown { .. } => E::Unknown { object: s(OBJECT), what: "lease", reason: "format 3".into() },
    E::Deleted { .. } => E::Deleted { what: format!("backup {}", full()) },
    E::BeingDeleted { .. } => E::BeingDeleted { user: s("postgres on db1"), request: s("delete retain 3") },
    E::SeveralClusters { .. } => E::SeveralClusters { store: s(STORE), found: vec![FoundCluster { system_identifier: cluster(), newest: Some((full(), s("17.2"))) }, FoundCluster { system_identifier: other_cluster(), newest: None }] },
    ; E::Object(..) | E::Entry(..)
);

each_of!(chains: ChainProblem,
    E::Missing => E::Missing,
    E::Damaged => E::Damaged,
    E::Cycle => E::Cycle,
    E::OtherHistory => E::OtherHistory,
);

each_of!(locks: Locked,
    E::NoIdentity => E::NoIdentity,
    E::OtherRecipients(..) => E::OtherRecipients(p("/etc/walhalla/identity")),
    E::Plugin { .. } => E::Plugin { file: p("/etc/walhalla/identity"), source: Box::new(age::DecryptError::DecryptionFailed) },
    E::Unusable { .. } => E::Unusable { file: p("/etc/walhalla/identity"), source: Arc::new(missing_file().into()) },
);

each_of!(identities: IdentityError,
    E::Read(..) => E::Read(denied()),
    E::Passphrase => E::Passphrase,
    E::SshKind => E::SshKind,
    E::Empty => E::Empty,
    E::OfPlugin(..) => E::OfPlugin(s("yubikey")),
    E::NoPlugin(..) => E::NoPlugin(s("age-plugin-yubikey")),
    E::Plugin(..) => E::Plugin(age::DecryptError::DecryptionFailed),
);

each_of!(recipients: RecipientError,
    E::IsIdentity => E::IsIdentity,
    E::Unknown(..) => E::Unknown(s("age2qqq")),
    E::UnknownLine { .. } => E::UnknownLine { path: p("/etc/walhalla/recipients"), line: 3 },
    E::NoPlugin { .. } => E::NoPlugin { name: s("yubikey"), recipient: s("age1yubikey1q…") },
    E::Read { .. } => E::Read { path: p("/etc/walhalla/recipients"), source: missing_file() },
    E::NoneInFile(..) => E::NoneInFile(p("/etc/walhalla/recipients")),
    E::NoneInList => E::NoneInList,
);

each_of!(pipelines: pipeline::Error,
    E::Compress { .. } => E::Compress { object: s(OBJECT), source: full_disk() },
    E::Encrypt { .. } => E::Encrypt { object: s(OBJECT), source: Box::new(age::EncryptError::Io(denied())) },
    E::BrokenOff { .. } => E::BrokenOff { object: s(OBJECT) },
    ; E::Store(..)
);

each_of!(wal_files: wal::Error,
    E::Local { .. } => E::Local { doing: "read", path: p("/srv/pg/pg_wal/00000001000000000000002A"), source: denied() },
    E::Mismatch { .. } => E::Mismatch { path: p("pg_wal/00000001000000000000002A"), file: file(SEGMENT), mismatch: Mismatch::Record(BrokenRecord::Crc(lsn("0/2A000028"))) },
    E::OtherContent { .. } => E::OtherContent { file: file(SEGMENT), object: s(OBJECT) },
    E::OtherSegmentSize { .. } => E::OtherSegmentSize { file: file(SEGMENT), object: s(OBJECT), archived: size(16), now: size(64) },
    E::NotMirrored { .. } => E::NotMirrored { what: s(SEGMENT), first: s(STORE), second: s("gs://acme-elsewhere/orders"), source: Box::new(nothing_there()) },
    E::NotKnown { .. } => E::NotKnown { file: file(SEGMENT), store: s(STORE) },
    E::Hole { .. } => E::Hole { file: file(SEGMENT), archive: s(STORE), later: s("00000001000000000000002C is archived") },
    E::Superseded(..) => E::Superseded(p("/srv/pg/pg_wal/RECOVERYXLOG")),
    E::NotArchived { .. } => E::NotArchived { file: file(SEGMENT), archive: s(STORE) },
    E::NotStaged(..) => E::NotStaged(file(SEGMENT)),
    ; E::Postgres(..) | E::Repository(..) | E::Pipeline(..)
);

fn unfit_wal_files() -> Vec<wal::Error> {
    let at = lsn("0/2A000000");
    let mismatches = [
        Mismatch::Length {
            actual: 4096,
            expected: size(16),
        },
        Mismatch::TooLong(size(16)),
        Mismatch::Magic {
            at,
            actual: 0x7777,
            expected: 0xD116,
            version: version("17"),
        },
        Mismatch::Flags {
            at: lsn("0/2A002000"),
            actual: 0x80,
        },
        Mismatch::Cluster {
            actual: other_cluster(),
            expected: cluster(),
        },
        Mismatch::Timeline {
            at,
            actual: 2,
            expected: TimelineId::FIRST,
        },
        Mismatch::Address {
            at,
            actual: lsn("0/11000000"),
        },
        Mismatch::Sizes {
            segment: 16 << 20,
            page: 4096,
        },
        Mismatch::Name(size(64)),
        Mismatch::Hole {
            at: lsn("0/2A002000"),
        },
        Mismatch::Cut {
            at: lsn("0/2A0120D8"),
        },
        Mismatch::Record(BrokenRecord::Crc(lsn("0/2A000028"))),
        Mismatch::Text,
    ];
    let pushed = |mismatch| wal::Error::Mismatch {
        path: p("pg_wal/00000001000000000000002A"),
        file: file(SEGMENT),
        mismatch,
    };
    mismatches.map(pushed).into()
}

each_of!(servers: server::Error,
    E::Format(..) => E::Format(version_error()),
    E::Read { .. } => E::Read { path: p("/srv/pg/PG_VERSION"), source: denied() },
    E::LinkedData { .. } => E::LinkedData { path: p("/srv/pg/base/16384"), target: p("/mnt/fast/16384") },
    E::NoTablespace { .. } => E::NoTablespace { oid: 16406, link: p("/srv/pg/pg_tblspc/16406"), location: p("/mnt/fast") },
    E::UnknownCatalog { .. } => E::UnknownCatalog { folder: p("/mnt/fast/PG_19_202611191") },
    E::NotUtf8 { .. } => E::NotUtf8 { what: "the data directory", path: p("/srv/pg") },
    E::Control { .. } => E::Control { path: p("/srv/pg/global/pg_control"), reason: walhalla_postgres::control::ControlFileDamage::Crc },
    E::NotADataDirectory { .. } => E::NotADataDirectory { path: p("/srv") },
    E::Server { .. } => E::Server { doing: "starting the backup", source: Box::new(sqlx::Error::PoolTimedOut) },
    E::Connection { .. } => E::Connection { name: "PGSSLMODE", problem: Problem::Value { value: s("sure") } },
    E::NoConnection { .. } => E::NoConnection { whom: s("socket /tmp/.s.PGSQL.5432 as role \"postgres\", database \"postgres\""), others: vec![s("socket /var/run/postgresql/.s.PGSQL.5432 (No such file or directory (os error 2))")], source: Box::new(sqlx::Error::Io(missing_file())) },
    E::ConnectionTimeout { .. } => E::ConnectionTimeout { whom: s("db1 port 5432 as role \"backup\", database \"postgres\""), seconds: 30 },
    E::UnwantedServer { .. } => E::UnwantedServer { place: s("db1 port 5432") },
);

fn version_error() -> walhalla_postgres::Error {
    Version::parse("8.4").unwrap_err()
}

each_of!(connections: Problem,
    E::Value { .. } => E::Value { value: s("sure") },
    E::NotText => E::NotText,
    E::Count { .. } => E::Count { given: 3, hosts: 2 },
    E::Unsupported { .. } => E::Unsupported { value: s("require") },
    E::NoService { .. } => E::NoService { name: s("orders") },
    E::ServiceLine { .. } => E::ServiceLine { path: p("/etc/pg_service.conf"), line: 7 },
    E::File { .. } => E::File { path: p("/etc/pg_service.conf"), source: denied() },
    E::NoUser(..) => E::NoUser(1234),
);

fn replication(problem: replication::Problem) -> replication::Error {
    replication::Error::Session {
        place: s("db1 port 5432 as role \"walhalla\""),
        problem,
        source: None,
    }
}

each_of!(problems_of_replication: replication::Problem,
    E::Broken(..) => E::Broken(io::Error::from_raw_os_error(104)),
    E::Refused { .. } => E::Refused { doing: s("START_REPLICATION"), code: s("58P01"), message: s("requested WAL segment has already been removed") },
    E::TimedOut(..) => E::TimedOut(30),
    E::NoTls => E::NoTls,
    E::Tls(..) => E::Tls(io::Error::other("invalid peer certificate: UnknownIssuer")),
    E::NoPassword => E::NoPassword,
    E::Scram(..) => E::Scram(io::Error::other("SCRAM")),
    E::Unsupported => E::Unsupported,
    E::Unexpected(..) => E::Unexpected("an empty row"),
    ; E::Format(..)
);

fn replications() -> Vec<replication::Error> {
    let mut errors: Vec<_> = problems_of_replication()
        .into_iter()
        .map(replication)
        .collect();
    for code in [
        "42704", "55006", "42501", "53300", "55000", "28000", "28P01",
    ] {
        let refused = replication::Problem::Refused {
            doing: s("connecting"),
            code: s(code),
            message: s("the server's own words"),
        };
        errors.push(replication(refused));
    }
    errors.push(replication::Error::Unwanted {
        place: s("db1 port 5432"),
    });
    errors
}

each_of!(receiving: receive::Error,
    E::NoSpool => E::NoSpool,
    E::SpoolInUse(..) => E::SpoolInUse(p("/var/lib/walhalla/spool")),
    E::OtherCluster { .. } => E::OtherCluster { place: s("db1 port 5432"), found: other_cluster(), expected: cluster() },
    E::OtherTimeline { .. } => E::OtherTimeline { place: s("db1 port 5432"), found: 1, expected: 2 },
    E::NotDue { .. } => E::NotDue { place: s("db1 port 5432"), found: lsn("0/2B000000"), expected: lsn("0/2A000000") },
    E::Ended(..) => E::Ended(TimelineId::FIRST),
    ; E::Server(..) | E::Wal(..) | E::Pipeline(..)
);

each_of!(backups: backup::Error,
    E::Read { .. } => E::Read { path: p("/srv/pg/base/5/16384"), source: denied() },
    E::OtherCluster { .. } => E::OtherCluster { server: other_cluster(), directory: cluster(), pgdata: p("/srv/pg") },
    E::OtherServer(..) => E::OtherServer(p("/srv/pg")),
    E::UnwantedCluster { .. } => E::UnwantedCluster { place: s("db1 port 5432"), found: other_cluster(), wanted: cluster() },
    E::LedElsewhere { .. } => E::LedElsewhere { place: s("db1 port 5432"), found: other_cluster(), expected: cluster() },
    E::SentArchive(..) => E::SentArchive(std::io::ErrorKind::UnexpectedEof.into()),
    E::SentWithout(..) => E::SentWithout("backup_label"),
    E::Scratch { .. } => E::Scratch { path: p("/tmp/walhalla/pg_wal/00000002.history"), source: denied() },
    E::NotSent(..) => E::NotSent(p("base/16384")),
    E::SentControl { .. } => E::SentControl { reason: walhalla_postgres::control::ControlFileDamage::Crc },
    E::SentOtherCluster => E::SentOtherCluster,
    E::Parent { .. } => E::Parent { id: full(), reason: backup::parent::Unusable::Corrupt },
    E::Changes { .. } => E::Changes { parent: full(), source_name: ChangeSource::Wal, reason: s("WAL segment 00000001000000000000002A is missing") },
    E::NothingToMerge => E::NothingToMerge,
    E::WouldBeOpen(..) => E::WouldBeOpen(full()),
    E::LeaseLost => E::LeaseLost,
    E::BrokenOff => E::BrokenOff,
    E::NotArchiving(..) => E::NotArchiving("archive_mode is off"),
    E::ArchiverFails { .. } => E::ArchiverFails { file: s(SEGMENT), tried: s("2026-11-21 04:30:00+00") },
    E::PageAfterEnd { .. } => E::PageAfterEnd { path: p("/srv/pg/base/5/16384"), block: 7, page: lsn("0/2C000000"), end: lsn("0/2B000000") },
    E::MovedDatabase(..) => E::MovedDatabase(16384),
    E::TimelineSwitch { .. } => E::TimelineSwitch { begin: 1, end: 2 },
    E::NotOwnWal { .. } => E::NotOwnWal { start: lsn("0/2A000028"), stop: lsn("0/2A000120") },
    E::WalMissing { .. } => E::WalMissing { segment: segment(), seconds: 300, failing: Some(s(SEGMENT)) },
    ; E::Postgres(..) | E::Repository(..) | E::Wal(..) | E::Pipeline(..) | E::Contents(..) | E::Replication(..)
);

each_of!(parents: backup::parent::Unusable,
    E::Abandoned { .. } => E::Abandoned { stop: lsn("0/2A000120"), timeline: 1, left: lsn("0/29000000") },
    E::OtherTimeline { .. } => E::OtherTimeline { timeline: 1, own: 2 },
    E::Later { .. } => E::Later { stop: lsn("0/2A000120"), own: lsn("0/29000000") },
    E::Checksums { .. } => E::Checksums { now: true },
    E::SegmentSize => E::SegmentSize,
    E::Version(..) => E::Version(version("16")),
    E::ChainTooLong { .. } => E::ChainTooLong { deltas: 7, most: 7 },
    E::Named(..) => E::Named(p("/srv/pg")),
    E::NotShown => E::NotShown,
    E::Corrupt => E::Corrupt,
    E::NoIndex(..) => E::NoIndex(s("0.0.1")),
    E::Missing(..) => E::Missing(s(OBJECT)),
    ; E::Contents(..) | E::Chain(..)
);

each_of!(gaps: archive::changed::Gap,
    E::Missing(..) => E::Missing(segment()),
    E::Locked(..) => E::Locked(segment()),
    E::Damaged { .. } => E::Damaged { segment: segment(), reason: s("the record at 0/2A000028 has a wrong CRC") },
    E::Foreign(..) => E::Foreign(lsn("0/2A000028")),
    E::Minimal(..) => E::Minimal(lsn("0/2A000028")),
);

each_of!(server_gaps: wal::server_summaries::Gap,
    E::Version(..) => E::Version(version("16")),
    E::Missing { .. } => E::Missing { timeline: TimelineId::FIRST, at: lsn("0/2A000028") },
    E::Damaged { .. } => E::Damaged { path: p("/srv/pg/pg_wal/summaries/x.summary"), damage: BlockTableDamage::Short },
);

each_of!(content: contents::Error,
    E::NoIndex(..) => E::NoIndex(full()),
    ; E::Repository(..)
);

each_of!(restores: restore::Error,
    E::Unreachable(..) => E::Unreachable(Unreachable { reason: s("time 2099-01-01 00:00:00+00 is after the end of the archive: the newest transaction in it (xid 812) committed at 2026-11-21 04:29:58+00"), nearest: Some(s("no --target option, which restores everything that is archived")) }),
    E::NotEmpty(..) => E::NotEmpty(p("/srv/pg"), Box::new(occupant())),
    E::Restoring(..) => E::Restoring(p("/srv/pg")),
    E::InUse(..) => E::InUse(p("/srv/pg"), RunningServer { process: 812, data: p("/srv/pg") }),
    E::UnprovenTablespace { .. } => E::UnprovenTablespace { tablespace: 16406, place: p("/mnt/fast") },
    E::StandbysTablespace { .. } => E::StandbysTablespace { backup: full(), tablespace: 16406, place: p("/mnt/fast") },
    E::WalIsALink(..) => E::WalIsALink(p("/srv/pg/pg_wal"), p("/mnt/wal")),
    E::NotTheOwners { .. } => E::NotTheOwners { tablespace: 16406, place: p("/mnt/fast"), user: 26 },
    E::OtherOwner { .. } => E::OtherOwner { path: p("/srv/pg"), user: 0, wanted: 26 },
    E::ForeignLink(..) => E::ForeignLink(p("/srv/pg")),
    E::LeadsNowhere(..) => E::LeadsNowhere(p("/srv/pg")),
    E::MountInside(..) => E::MountInside(p("/srv/pg/base")),
    E::NoFolder(..) => E::NoFolder(p("/var/lib/postgres")),
    E::NoRight { .. } => E::NoRight { path: p("/srv"), source: denied() },
    E::NoStage { .. } => E::NoStage { path: p("/srv/pg.walhalla-wal"), source: denied() },
    E::NoRoomAside(..) => E::NoRoomAside(p("/srv/pg")),
    E::NoRoomForStage(..) => E::NoRoomForStage(p("/srv/pg.walhalla-wal")),
    E::StrangePath(..) => E::StrangePath(p("../etc/passwd")),
    E::NoInodes { .. } => E::NoInodes { path: p("/srv"), available: 12, needed: 980 },
    E::NotAStage(..) => E::NotAStage(p("/srv/pg.walhalla-wal")),
    E::NotThisCluster { .. } => E::NotThisCluster { path: p("/srv/pg"), reason: Unproven::Other(other_cluster()) },
    E::SharedPlace(..) => E::SharedPlace(p("/srv/pg"), p("/srv/pg/fast")),
    E::ReplayPlace { .. } => E::ReplayPlace { tablespace: Box::new(new_tablespace()), unfit: Unfit::Missing },
    E::NoRoom { .. } => E::NoRoom { path: p("/srv"), available_bytes: 1 << 30, needed_bytes: 5 << 30 },
    E::Local { .. } => E::Local { doing: "write", path: p("/srv/pg/base/5/16384"), source: full_disk() },
    E::Look { .. } => E::Look { doing: "look at", path: p("/srv/pg"), source: denied() },
    E::Needed(..) => E::Needed(p("/srv/pg/store"), p("/srv/pg")),
    E::LongCommand(..) => E::LongCommand(1100),
    E::NestedCluster(..) => E::NestedCluster(p("/srv/pg/copy")),
    E::NoSuchTablespace(..) => E::NoSuchTablespace(16406),
    E::NoSuchDatabase { .. } => E::NoSuchDatabase { name: s("shpo"), known: vec![s("postgres"), s("shop")] },
    E::SealedPlan { .. } => E::SealedPlan { path: p("/srv/pg.walhalla-wal/plan.json"), source: no_json() },
    E::NoSealedPlan { .. } => E::NoSealedPlan { path: p("/srv/pg.walhalla-wal/plan.json"), source: missing_file() },
    E::OtherSeal(..) => E::OtherSeal(p("/srv/pg.walhalla-wal/plan.json")),
    E::Staged(..) => E::Staged(p("/srv/pg.walhalla-wal/00000001000000000000002A")),
    E::NeedsConfig => E::NeedsConfig,
    E::TailOnDemand => E::TailOnDemand,
    E::StoreLeftOut(..) => E::StoreLeftOut(s(STORE)),
    E::IdentityBesideFile => E::IdentityBesideFile,
    E::BrokenOff => E::BrokenOff,
    ; E::Repository(..) | E::Wal(..) | E::Postgres(..) | E::Contents(..) | E::UnusableBackup(..)
);

fn occupant() -> Occupant {
    Occupant {
        cluster: Some((cluster(), version("17"))),
        unfinished: None,
        tablespace_folders: Vec::new(),
        server: None,
        pid_file: None,
        tablespace: None,
        restored: Some(cluster()),
    }
}

fn new_tablespace() -> NewTablespace {
    NewTablespace {
        oid: 16406,
        location: std::ffi::OsString::from("/mnt/fast").into(),
        lsn: lsn("0/2A000028"),
        is_dropped: false,
    }
}

fn broken_backups() -> Vec<restore::Error> {
    let content = || contents::Error::NoIndex(full());
    vec![
        restore::Error::Contents(content()),
        restore::Error::UnusableBackup(content()),
    ]
}

each_of!(unproven: Unproven,
    E::Nothing => E::Nothing,
    E::Other(..) => E::Other(other_cluster()),
    E::Running(..) => E::Running(812),
    E::NotSeen(..) => E::NotSeen(812),
    E::PidFile => E::PidFile,
);

each_of!(unfit: Unfit,
    E::NotEmpty => E::NotEmpty,
    E::Missing => E::Missing,
    E::NoDirectory => E::NoDirectory,
    E::NotOwned => E::NotOwned,
    E::NotMapped(..) => E::NotMapped(p("/srv/fast")),
    E::Shared(..) => E::Shared(p("/srv/pg")),
    E::MapNotEmpty(..) => E::MapNotEmpty(p("/srv/fast")),
);

each_of!(deletions: retention::Error,
    E::Unreadable { .. } => E::Unreadable { id: full(), source: Arc::new(nothing_there()) },
    E::EntryLost(..) => E::EntryLost(full()),
    E::Clocks(..) => E::Clocks(SignedDuration::from_secs(7200)),
    E::LeaseLost => E::LeaseLost,
    E::Kept(..) => E::Kept(3),
    E::BrokenOff => E::BrokenOff,
    ; E::Repository(..) | E::Wal(..) | E::Refused(..)
);

each_of!(refusals: Refusal,
    E::Unknown(..) => E::Unknown(full()),
    E::Newest(..) => E::Newest(full()),
    E::Branch { .. } => E::Branch { id: full(), timeline: 2 },
    E::Permanent(..) => E::Permanent(full()),
    E::InUse { .. } => E::InUse { id: full(), user: s("a restore of postgres on db1") },
    E::ClusterInUse(..) => E::ClusterInUse(s("a restore of postgres on db1")),
    E::Ancestor { .. } => E::Ancestor { id: full(), delta: delta() },
);

fn refused_deletions() -> Vec<retention::Error> {
    refusals().into_iter().map(retention::Error::from).collect()
}

each_of!(copies: copying::Error,
    E::Local(..) => E::Local(full_disk()),
    E::Nothing(..) => E::Nothing(s(STORE)),
    E::SameStore(..) => E::SameStore(s(STORE)),
    E::WouldBeOpen(..) => E::WouldBeOpen(s("gs://acme-elsewhere/orders")),
    E::WouldMix(..) => E::WouldMix(s("gs://acme-elsewhere/orders")),
    E::MadeByAnother(..) => E::MadeByAnother(full()),
    E::Damaged { .. } => E::Damaged { object: s(OBJECT), source: nothing_there() },
    E::NotAsEntered { .. } => E::NotAsEntered { object: s(OBJECT) },
    E::NotAsSent { .. } => E::NotAsSent { object: s(OBJECT) },
    E::OtherContent { .. } => E::OtherContent { source_object: s(OBJECT), copy_object: s("gs://acme-elsewhere/orders/x") },
    E::OtherBackup { .. } => E::OtherBackup { id: full(), copy: s("gs://acme-elsewhere/orders") },
    E::ParentRepacked { .. } => E::ParentRepacked { backup: delta(), parent: full() },
    E::LeaseLost => E::LeaseLost,
    E::NotMirrored { .. } => E::NotMirrored { id: full(), first: s(STORE), second: s("gs://acme-elsewhere/orders"), source: Box::new(E::LeaseLost) },
    E::LeftOut(..) => E::LeftOut(2),
    E::BrokenOff => E::BrokenOff,
    ; E::Repository(..) | E::Pipeline(..) | E::Contents(..) | E::Wal(..)
);

each_of!(verifications: verify::Error,
    E::BrokenOff => E::BrokenOff,
    ; E::Repository(..) | E::Contents(..) | E::Wal(..) | E::Receipts(..)
);

each_of!(receipts: verify::receipts::Error,
    E::File { .. } => E::File { doing: "read", path: p("/var/lib/walhalla/receipts"), source: denied() },
    E::InUse(..) => E::InUse(p("/var/lib/walhalla/receipts")),
    E::NotReceipts { .. } => E::NotReceipts { path: p("/var/lib/walhalla/receipts"), line: 4 },
);

each_of!(drills: drill::Error,
    E::NoServer { .. } => E::NoServer { version: Version::parse("17").unwrap(), looked: vec![p("/usr/bin"), p("/usr/lib/postgresql/17/bin")] },
    E::NoUser(..) => E::NoUser(s("postgres")),
    E::UserIsRoot(..) => E::UserIsRoot(s("root")),
    E::OtherUser(..) => E::OtherUser(s("postgres")),
    E::LongSocketPath(..) => E::LongSocketPath(p("/srv/scratch/walhalla-drill")),
    E::TablespaceOutside(..) => E::TablespaceOutside(Box::new(new_tablespace())),
    E::Local { .. } => E::Local { doing: "make", path: p("/srv/scratch/walhalla-drill"), source: denied() },
    E::NoRole { .. } => E::NoRole { roles: vec![s("postgres"), s("alice")], source: Box::new(sqlx::Error::PoolTimedOut) },
    E::Query { .. } => E::Query { doing: "asking for the last commit", source: Box::new(sqlx::Error::PoolTimedOut) },
    E::Interrupted => E::Interrupted,
    ; E::Restore(..) | E::Repository(..) | E::Wal(..) | E::Postgres(..)
);

each_of!(commands: error::Error,
    E::File { .. } => E::File { path: p("/var/www/backups.html"), source: denied() },
    E::Fetch { .. } => E::Fetch { name: s(SEGMENT), source: Box::new(E::from(nothing_there())) },
    E::Keys { .. } => E::Keys { doing: "write the identity to", path: p("/safe/walhalla.key"), source: io::Error::from(io::ErrorKind::AlreadyExists).into() },
    E::Socket { .. } => E::Socket { path: p("/run/walhalla/walhalla.sock"), source: denied() },
    E::System { .. } => E::System { doing: "start the network's threads", source: io::Error::from_raw_os_error(11) },
    ; E::Settings(..) | E::Store(..) | E::Repository(..) | E::Postgres(..) | E::Wal(..) | E::Backup(..) | E::Receive(..) | E::Restore(..) | E::Verify(..) | E::Retention(..) | E::Copy(..) | E::Output(..) | E::Drill(..)
);

/// All samples, by what they are about.
pub(super) fn sections() -> Vec<(&'static str, String)> {
    vec![
        ("settings", with_hints(settings())),
        ("stores", with_hints(store_errors())),
        ("objects of the store", with_hints(objects())),
        ("repository", with_hints(repositories())),
        ("what breaks a chain of backups", parts(&chains())),
        (
            "identities and recipients: what is locked",
            with_hints(locks()),
        ),
        ("identities", parts(&identities())),
        ("recipients", parts(&recipients())),
        ("writing objects", with_hints(pipelines())),
        ("WAL files", with_hints(wal_files())),
        (
            "WAL files that are not what their names say",
            with_hints(unfit_wal_files()),
        ),
        ("PostgreSQL and its data directory", with_hints(servers())),
        ("settings of a connection", parts(&connections())),
        ("replication", with_hints(replications())),
        ("receiving WAL", with_hints(receiving())),
        ("backups", with_hints(backups())),
        ("why a backup is no parent of a delta", parts(&parents())),
        (
            "why the WAL does not say which blocks changed",
            parts(&gaps()),
        ),
        (
            "why the server's summaries do not say which blocks changed",
            parts(&server_gaps()),
        ),
        ("contents of backups", with_hints(content())),
        ("restores", with_hints(restores())),
        (
            "restores from a backup that is not whole",
            with_hints(broken_backups()),
        ),
        (
            "why a directory is not proven to be of the cluster",
            parts(&unproven()),
        ),
        (
            "why replay cannot use a tablespace's place",
            parts(&unfit()),
        ),
        ("deletions", with_hints(deletions())),
        (
            "deletions that are refused",
            with_hints(refused_deletions()),
        ),
        ("copies", with_hints(copies())),
        ("verification", with_hints(verifications())),
        ("receipts of verification", parts(&receipts())),
        ("drills", with_hints(drills())),
        ("commands", with_hints(commands())),
    ]
}
