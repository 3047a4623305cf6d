//! What a session for replication tells of a server.

use walhalla_postgres::{ControlFile, Limits, Lsn, SegmentSize, SystemIdentifier};

use crate::backup::Error;
use crate::server::replication::{self, Replication, Session};
use crate::session::StoreSession;

/// `BLCKSZ` and `XLOG_BLCKSZ`, and `RELSEG_SIZE`, of all builds that are known of a version that does not tell them.
const BLOCK_BYTES: u32 = 8192;
const BLOCKS_PER_FILE: u32 = 131_072;

/// A server that is to be backed up, and what it says of itself.
#[derive(Debug)]
pub struct ReplicatedServer {
    pub(super) connection: Replication,
    /// What its control file says, as far as the server tells it before it sends the file.
    pub control: ControlFile,
    /// Up to where its WAL was on its disk when it was asked.
    pub(super) flushed: Lsn,
    /// Whether it told if its pages have checksums.
    pub(super) knows_checksums: bool,
    /// Whether it keeps WAL summaries.
    pub(super) summarizes: bool,
}

impl ReplicatedServer {
    /// Connects as libpq's variables say, to a server of the cluster `wanted` if one is.
    ///
    /// # Errors
    /// [`Error::Replication`] and [`Error::UnwantedCluster`].
    pub fn connect(
        session: &StoreSession,
        wanted: Option<SystemIdentifier>,
    ) -> Result<Self, Error> {
        let server = session.wait(Self::connected())?;
        let found = server.control.system_identifier;
        match wanted {
            Some(wanted) if wanted != found => Err(Error::UnwantedCluster {
                place: server.connection.place().to_owned(),
                found,
                wanted,
            }),
            _ => Ok(server),
        }
    }

    async fn connected() -> Result<Self, replication::Error> {
        let mut connection = Replication::connect(Session::Replication).await?;
        let identity = connection.identify().await?;
        let version = connection.version()?;
        let mut told = Told::default();
        if version.shows_settings_to_replication() {
            told.block_bytes = connection.show("block_size").await?.parse().ok();
            told.file_bytes = connection.shown_bytes("segment_size").await?;
            told.wal_block_bytes = connection.show("wal_block_size").await?.parse().ok();
            told.checksums = Some(connection.show("data_checksums").await? == "on");
        }
        let summarizes =
            version.has_wal_summaries() && connection.show("summarize_wal").await? == "on";
        let segment_size: SegmentSize = connection.segment_size().await?;
        let block_size_bytes = told.block_bytes.unwrap_or(BLOCK_BYTES);
        let blocks_per_file = told
            .file_bytes
            .and_then(|bytes| u32::try_from(bytes / u64::from(block_size_bytes.max(1))).ok());
        let control = ControlFile {
            system_identifier: identity.system_identifier,
            version,
            state: 0,
            written: 0,
            checkpoint_lsn: Lsn::ZERO,
            checkpoint_redo: Lsn::ZERO,
            timeline: identity.timeline,
            min_recovery_point: Lsn::ZERO,
            min_recovery_timeline: 0,
            limits: Limits::default(),
            block_size_bytes,
            blocks_per_file: blocks_per_file.unwrap_or(BLOCKS_PER_FILE),
            wal_block_size_bytes: told.wal_block_bytes.unwrap_or(BLOCK_BYTES),
            segment_size,
            data_checksums: told.checksums.unwrap_or(true),
            secret: None,
        };
        Ok(Self {
            connection,
            control,
            flushed: identity.flushed,
            knows_checksums: told.checksums.is_some(),
            summarizes,
        })
    }

    /// The control file that was sent must be that of the server that was asked.
    pub(super) fn must_have_sent(&self, sent: &ControlFile) -> Result<(), Error> {
        let told = &self.control;
        let is_same = sent.system_identifier == told.system_identifier
            && sent.version == told.version
            && sent.block_size_bytes == told.block_size_bytes
            && sent.blocks_per_file == told.blocks_per_file
            && sent.wal_block_size_bytes == told.wal_block_size_bytes
            && sent.segment_size == told.segment_size;
        if is_same {
            Ok(())
        } else {
            Err(Error::SentOtherCluster)
        }
    }
}

/// What `SHOW` tells.
#[derive(Default)]
struct Told {
    block_bytes: Option<u32>,
    file_bytes: Option<u64>,
    wal_block_bytes: Option<u32>,
    checksums: Option<bool>,
}
