//! Servers that speak S3 and lack what Walhalla relies on.
//!
//! Some answer 200 to a second create with `If-None-Match: *` and overwrite in silence (Garage and
//! s3rver do), some take no checksums, or take them and never compare. The first is looked for before the first
//! create of each process, at one small request: where the server keeps the condition, the probe's
//! object is there from an earlier time and refused. The others are looked for by `walhalla check`.

use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;

use super::headers::as_the_settings_say;
use super::{Creates, Failure, S3Store};
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
        match self.creates {
            Creates::Trusted => {}
            Creates::Probed => {
                let probe = || self.probe_creates();
                self.probed.get_or_try_init(probe).await?;
            }
            Creates::LookFirst => return self.look_first(key).await.map(|()| None),
        }
        Ok(Some("*".to_owned()))
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

    /// Creates the probe's object, twice if it was not there; `Ok` once the server refused.
    async fn probe_creates(&self) -> Result<()> {
        for _ in 0..2 {
            match self.put_probe(true, None).await {
                Ok(()) => {}
                Err(failure) if failure.kind() == ErrorKind::AlreadyExists => return Ok(()),
                Err(failure)
                    if failure.is_refusal() || failure.kind() == ErrorKind::Unsupported =>
                {
                    return Err(self.explain(failure).await);
                }
                Err(failure) => return Err(self.probe_error(failure)),
            }
        }
        Err(self.lacks(Lacking::ConditionalWrites))
    }

    /// Which part of the probe's request the server refused.
    async fn explain(&self, failure: Failure) -> Error {
        let session = self.sessions.current();
        if self.put_probe(false, None).await.is_ok() {
            return self.lacks(Lacking::Conditions);
        }
        if session.checksums && self.put_bare_probe().await.is_ok() {
            return self.lacks(Lacking::Checksums);
        }
        self.probe_error(self.renewed_after(&session, failure).await)
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
        if self.sessions.current().checksums
            && self.put_probe(false, Some(WRONG_CHECKSUM)).await.is_ok()
        {
            found.push(Lacking::ComparedChecksums.to_string());
            // What is there now is sound all the same: the body was right, the checksum was not.
        }
        Ok(found)
    }

    async fn put_probe(
        &self,
        is_create: bool,
        checksum: Option<&str>,
    ) -> std::result::Result<(), Failure> {
        let request = self
            .probe_request()
            .set_if_none_match(is_create.then(|| "*".to_owned()))
            .set_checksum_crc32(checksum.map(str::to_owned));
        request.send().await.map(drop).map_err(Failure::from)
    }

    fn probe_request(&self) -> PutObjectFluentBuilder {
        // As real objects, since policies may demand it; but nothing needs the probe to last.
        let settings = S3Settings {
            object_lock: None,
            ..self.settings.clone()
        };
        let request = self
            .sessions
            .current()
            .client
            .put_object()
            .bucket(self.bucket())
            .key(self.full(PROBE))
            .set_request_payer(self.payer())
            .body(ByteStream::from_static(PROBE_BODY));
        as_the_settings_say!(request, settings)
    }

    async fn put_bare_probe(&self) -> std::result::Result<(), Failure> {
        use aws_sdk_s3::config::{Builder, RequestChecksumCalculation};
        let bare =
            Builder::new().request_checksum_calculation(RequestChecksumCalculation::WhenRequired);
        let request = self.probe_request().customize().config_override(bare);
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
