//! The checksum that Azure calls `crc64`: CRC-64/NVME, sent with every body and kept with the object.

use std::sync::Arc;

use async_trait::async_trait;
use azure_core::error::ErrorKind as AzureKind;
use azure_core::http::headers::HeaderName;
use azure_core::http::policies::{Policy, PolicyResult};
use azure_core::http::{Body, Context, Method, Request};
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest, checksum, checksum_combine};
use futures_util::{Stream, StreamExt, stream};

use crate::{Error, ErrorKind, Operation, PartReceipt, Result};

const ALGORITHM: CrcAlgorithm = CrcAlgorithm::Crc64Nvme;

/// Azure compares it with what it computes of the body, and refuses a body that differs.
const HEADER: HeaderName = HeaderName::from_static("x-ms-content-crc64");

/// A CRC-64/NVME of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Crc64(u64);

impl Crc64 {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(checksum(ALGORITHM, bytes))
    }

    /// Of all parts one after the other; none when a part has no checksum.
    pub(super) fn of_parts(parts: &[PartReceipt]) -> Option<Self> {
        let whole = parts.iter().try_fold(0, |whole, part| {
            let Self(next) = part.checksum.as_deref().and_then(Self::parse)?;
            Some(checksum_combine(ALGORITHM, whole, next, part.size_bytes))
        });
        whole.map(Self)
    }

    /// Reads what [`Crc64::text`] wrote.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let is_whole = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let text = is_whole.then_some(text)?;
        u64::from_str_radix(text, 16).ok().map(Self)
    }

    /// As the object's metadata keep it: 16 hexadecimal digits.
    pub(super) fn text(self) -> String {
        format!("{:016x}", self.0)
    }

    /// As Azure's headers spell it: the lowest byte first, in base64.
    pub(super) fn header(self) -> String {
        azure_core::base64::encode(self.0.to_le_bytes())
    }
}

/// Gives every body its checksum on the way out, and compares it with the one in the answer, which Azure gives where it
/// stored the bytes.
///
/// The SDK's `upload` has no option for one.
#[derive(Debug)]
pub(super) struct ChecksumPolicy;

#[async_trait]
impl Policy for ChecksumPolicy {
    async fn send(
        &self,
        ctx: &Context,
        request: &mut Request,
        next: &[Arc<dyn Policy>],
    ) -> PolicyResult {
        let Some(sent) = checksum_of_body(request) else {
            return super::forward(ctx, request, next).await;
        };
        request.insert_header(HEADER, sent.clone());
        let answer = super::forward(ctx, request, next).await?;
        match answer.headers().get_optional_str(&HEADER) {
            Some(stored) if answer.status().is_success() && stored != sent => {
                Err(azure_core::Error::new(AzureKind::Other, StoredOtherBytes))
            }
            Some(_) | None => Ok(answer),
        }
    }
}

fn checksum_of_body(request: &Request) -> Option<String> {
    match request.body() {
        Body::Bytes(body) if request.method() == Method::Put => Some(Crc64::of(body).header()),
        _ => None,
    }
}

/// `body`, followed by [`ErrorKind::Corrupted`] when its bytes are not those that `expected` was taken of.
pub(super) fn verified(
    body: impl Stream<Item = Result<Bytes>> + Send + Unpin,
    expected: Crc64,
    object: String,
) -> impl Stream<Item = Result<Bytes>> + Send {
    let state = Some((body, Digest::new(ALGORITHM), object));
    stream::try_unfold(state, move |state| async move {
        let Some((mut body, mut digest, object)) = state else {
            return Ok(None);
        };
        match body.next().await.transpose()? {
            Some(chunk) => {
                digest.update(&chunk);
                Ok(Some((chunk, Some((body, digest, object)))))
            }
            None if digest.finalize() == expected.0 => Ok(None),
            None => {
                Err(Error::new(Operation::Get, object, ErrorKind::Corrupted)
                    .with_source(WrongChecksum))
            }
        }
    })
}

/// The bytes are there, and are not those that were sent: to send them again would meet them, not mend them.
#[derive(Debug, thiserror::Error)]
#[error(
    "the server stored other bytes than were sent, by its CRC-64 of them; \
     hint: delete the object and push again"
)]
struct StoredOtherBytes;

/// A whole object was read that is not the one that was written.
#[derive(Debug, thiserror::Error)]
#[error("the bytes do not match the CRC-64 that was stored with them")]
struct WrongChecksum;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_azures() {
        // The check value of CRC-64/NVME in the catalogue of CRC algorithms.
        let crc = Crc64::of(b"123456789");
        assert_eq!(crc, Crc64(0xAE8B_1486_0A79_9888));
        assert_eq!(crc.header(), "iJh5CoYUi64=");
        assert_eq!(crc.text(), "ae8b14860a799888");
        assert_eq!(Crc64::parse(&crc.text()), Some(crc));
        for other in [
            "",
            "no digits",
            "+e8b14860a799888",
            "ae8b14860a79988",
            "ae8b14860a7998880",
        ] {
            assert_eq!(Crc64::parse(other), None, "{other}");
        }
    }

    #[test]
    fn the_parts_give_the_whole() {
        let whole: Vec<u8> = (0..10_000_u32).map(|byte| byte.to_le_bytes()[0]).collect();
        let receipts: Vec<_> = whole
            .chunks(3_333)
            .zip(1..)
            .map(|(part, number)| PartReceipt {
                number,
                tag: String::new(),
                checksum: Some(Crc64::of(part).text()),
                size_bytes: part.len() as u64,
            })
            .collect();
        assert_eq!(Crc64::of_parts(&receipts), Some(Crc64::of(&whole)));
        assert_eq!(Crc64::of_parts(&[]), Some(Crc64::of(b"")));
    }
}
