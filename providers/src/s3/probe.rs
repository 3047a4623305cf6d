//! Servers that speak S3 and lack what Walhalla relies on.
//!
//! Some answer 200 to a second create with `If-None-Match: *` and overwrite in silence (Garage and
//! s3rver do), some take no checksums, or take them and never compare. The first is looked for before the first
//! create of each process, at one small request, unless a process saw it within the last day ([`ProbeMemory`]): where the server keeps the condition, the probe's
//! object is there from an earlier time and refused. The others are looked for by `walhalla check`.

use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;

use super::headers::as_the_settings_say;
use super::probe_memory::ProbeMemory;
use super::{Creates, Failure, S3Store, Session};
use crate::transfer::S3Settings;
use crate::{Error, ErrorKind, ObjectKey, Operation, PutMode, Result};

/// No [`ObjectKey`] begins with a dot, so that no listing shows it.
const PROBE: &str = ".walhalla-probe";

const PROBE_BODY: &[u8] =
    b"By this object Walhalla sees that the server refuses to create an object twice. \
    It may be deleted, and is then made again.\n";

/// The CRC-32 of something else than [`PROBE_BODY`], as S3 spells it.
const WRONG_CHECKSUM: &str = "AAAAAA==";

impl S3Store {
    /// The condition that a put of `key` carries, once it is known to be kept.
    pub(super) async fn condition(&self, key: &ObjectKey, mode: PutMode) -> Result<Option<String>> {
        if mode == PutMode::Overwrite {
            return Ok(None);
        }
        if self.creates == Creates::LookFirst {
            return self.look_first(key).await.map(|()| None);
        }
        self.must_keep_conditions().await?;
        Ok(Some("*".to_owned()))
    }

    pub(super) async fn must_keep_conditions(&self) -> Result<()> {
        if self.creates == Creates::Probed {
            let probe = || self.probe_unless_remembered();
            self.probed.get_or_try_init(probe).await?;
        }
        Ok(())
    }

    async fn look_first(&self, key: &ObjectKey) -> Result<()> {
        use crate::ObjectStore as _;
        match self.head(key).await {
            Ok(_) => {
                let kind = ErrorKind::AlreadyExists;
                Err(Error::new(Operation::Put, self.object_url(key), kind))
            }
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn probe_unless_remembered(&self) -> Result<()> {
        if self.memory.as_ref().is_some_and(ProbeMemory::holds) {
            return Ok(());
        }
        self.probe_creates().await?;
        if let Some(memory) = &self.memory {
            memory.note();
        }
        Ok(())
    }

    /// Creates the probe's object, twice if it was not there; `Ok` once the server refused.
    async fn probe_creates(&self) -> Result<()> {
        for _ in 0..2 {
            let session = self.sessions.current();
            let Err(failure) = self.put_probe(&session, PROBE, true, None).await else {
                continue;
            };
            if failure.kind() == ErrorKind::AlreadyExists {
                return Ok(());
            }
            let failure = self.renewed_after(&session, failure).await;
            let error = match self.lacking(&session, &failure).await {
                Some(what) => self.lacks(what),
                None => self.probe_error(failure),
            };
            return Err(error);
        }
        Err(self.lacks(Lacking::ConditionalWrites))
    }

    /// Which part of the probe's request the server does not know, if it said no to the whole for good.
    async fn lacking(&self, session: &Session, failure: &Failure) -> Option<Lacking> {
        // What passes says nothing of what the server knows, and neither does who may write.
        let is_of_request = matches!(
            failure.kind(),
            ErrorKind::Unsupported | ErrorKind::Invalid | ErrorKind::Corrupted | ErrorKind::Other
        );
        if !is_of_request {
            None
        } else if self.put_probe(session, PROBE, false, None).await.is_ok() {
            Some(Lacking::Conditions)
        } else if session.checksums && self.put_bare_probe(session).await.is_ok() {
            Some(Lacking::Checksums)
        } else {
            None
        }
    }

    pub(super) async fn probe_shortcomings(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        match self.creates {
            Creates::Trusted | Creates::Probed => match self.probe_creates().await {
                Ok(()) => {}
                Err(error) if error.kind == ErrorKind::Unsupported => {
                    found.extend(error.source.map(|source| source.to_string()));
                }
                Err(error) => return Err(error),
            },
            Creates::LookFirst => found.push(Lacking::Unwatched.to_string()),
        }
        if self.takes_wrong_checksums().await? {
            found.push(Lacking::ComparedChecksums.to_string());
        }
        Ok(found)
    }

    /// Whether the server stores a body whose checksum is another's. What it stores then is deleted, if that is allowed.
    async fn takes_wrong_checksums(&self) -> Result<bool> {
        let session = self.sessions.current();
        if !session.checksums {
            return Ok(false);
        }
        // A name of its own, so that nothing but the checksum can be wrong with it.
        let name = format!("{PROBE}-{:016x}", fastrand::u64(..));
        let is_create = self.creates != Creates::LookFirst;
        let put = self.put_probe(&session, &name, is_create, Some(WRONG_CHECKSUM));
        match put.await {
            Ok(()) => {
                let request = session.client.delete_object().bucket(self.bucket());
                let request = request
                    .key(self.full(&name))
                    .set_request_payer(self.payer());
                drop(request.send().await);
                Ok(true)
            }
            Err(failure) if failure.kind() == ErrorKind::Corrupted => Ok(false),
            Err(failure) => {
                let failure = self.renewed_after(&session, failure).await;
                Err(failure.on(Operation::Put, format!("{}/{name}", self.url)))
            }
        }
    }

    async fn put_probe(
        &self,
        session: &Session,
        name: &str,
        is_create: bool,
        checksum: Option<&str>,
    ) -> std::result::Result<(), Failure> {
        let request = self
            .probe_request(session, name)
            .set_if_none_match(is_create.then(|| "*".to_owned()))
            .set_checksum_crc32(checksum.map(str::to_owned));
        request.send().await.map(drop).map_err(Failure::from)
    }

    fn probe_request(&self, session: &Session, name: &str) -> PutObjectFluentBuilder {
        // As real objects, since policies may demand it; but nothing needs the probe to last.
        let settings = S3Settings {
            object_lock: None,
            ..self.settings.clone()
        };
        let request = session
            .client
            .put_object()
            .bucket(self.bucket())
            .key(self.full(name))
            .set_request_payer(self.payer())
            .body(ByteStream::from_static(PROBE_BODY));
        as_the_settings_say!(request, settings)
    }

    async fn put_bare_probe(&self, session: &Session) -> std::result::Result<(), Failure> {
        use aws_sdk_s3::config::{Builder, RequestChecksumCalculation};
        let bare =
            Builder::new().request_checksum_calculation(RequestChecksumCalculation::WhenRequired);
        let request = self
            .probe_request(session, PROBE)
            .customize()
            .config_override(bare);
        request.send().await.map(drop).map_err(Failure::from)
    }

    fn probe_error(&self, failure: Failure) -> Error {
        failure.on(Operation::Put, format!("{}/{PROBE}", self.url))
    }

    fn lacks(&self, what: Lacking) -> Error {
        let object = format!("{}/{PROBE}", self.url);
        Error::new(Operation::Put, object, ErrorKind::Unsupported).with_source(what)
    }
}

/// What a server does not do.
#[derive(Debug, thiserror::Error)]
enum Lacking {
    #[error(
        "the server replaced an object that it was asked to create only if there is none (If-None-Match), so that \
         two servers could overwrite each other's WAL; hint: take a server that keeps this condition, or, \
         where only one PostgreSQL server will ever archive, set s3_conditional_writes = \"off\""
    )]
    ConditionalWrites,
    #[error(
        "the server refuses to create an object only if there is none (If-None-Match); hint: take a server that \
         knows this condition, or, where only one PostgreSQL server will ever archive, set \
         s3_conditional_writes = \"off\""
    )]
    Conditions,
    #[error(
        "the server takes no CRC-32 checksums; hint: take one that does, or set s3_checksums = false, \
         and nothing but TLS guards the bytes on their way"
    )]
    Checksums,
    #[error(
        "the server took a body with a wrong checksum, so it would store bytes that were damaged on their way; \
         hint: take a server that compares checksums, and use https"
    )]
    ComparedChecksums,
    #[error(
        "s3_conditional_writes is off: of two servers that archive the same file at the same moment, \
         the second replaces what the first one stored"
    )]
    Unwatched,
}
