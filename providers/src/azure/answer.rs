//! What an answer must be before anything in it is believed, and how much of it is read.

use std::sync::Arc;

use async_trait::async_trait;
use azure_core::Bytes;
use azure_core::error::ErrorKind as AzureKind;
use azure_core::http::headers::HeaderName;
use azure_core::http::policies::{Policy, PolicyResult};
use azure_core::http::{AsyncRawResponse, Context, HttpClient, Method, Request};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};

/// In every answer of a blob service.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-request-id");

/// Most bytes of an error's body that are read.
const MAX_ERROR_BYTES: usize = 64 << 10;

/// Longest body of a success that is read, unless it is a blob's: some three times a page of five thousand long names.
const MAX_XML_BYTES: usize = 32 << 20;

/// Takes no success from anybody but a blob service: a page of a proxy can have any status.
#[derive(Debug)]
pub(super) struct OriginPolicy;

#[async_trait]
impl Policy for OriginPolicy {
    async fn send(
        &self,
        ctx: &Context,
        request: &mut Request,
        next: &[Arc<dyn Policy>],
    ) -> PolicyResult {
        let answer = super::forward(ctx, request, next).await?;
        if answer.status().is_success() && answer.headers().get_optional_str(&REQUEST_ID).is_none()
        {
            return Err(azure_core::Error::new(
                AzureKind::DataConversion,
                NoBlobService,
            ));
        }
        Ok(answer)
    }
}

/// An HTTP client that reads only so much of what is kept in memory; the bodies of blobs pass.
///
/// A policy would come too late: the SDK reads a body before the first policy sees the answer.
#[derive(Debug)]
pub(super) struct BoundedClient(pub(super) reqwest::Client);

#[async_trait]
impl HttpClient for BoundedClient {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let answer = self.0.execute_request(request).await?;
        let (status, headers, body) = answer.deconstruct();
        let body = if !status.is_success() {
            cut(body, MAX_ERROR_BYTES).boxed()
        } else if is_read(request) {
            body.boxed()
        } else {
            bounded(body, MAX_XML_BYTES).boxed()
        };
        Ok(AsyncRawResponse::new(status, headers, body))
    }
}

/// Whether the body of a success is a blob's.
fn is_read(request: &Request) -> bool {
    let mut query = request.url().query_pairs();
    request.method() == Method::Get && !query.any(|(name, _)| name == "comp")
}

/// The first bytes of `body`, about `limit_bytes` of them: of a refusal, the status says enough.
fn cut(
    body: impl Stream<Item = azure_core::Result<Bytes>>,
    limit_bytes: usize,
) -> impl Stream<Item = azure_core::Result<Bytes>> {
    let mut read_bytes = 0;
    body.try_take_while(move |chunk| {
        let is_taken = read_bytes < limit_bytes;
        read_bytes += chunk.len();
        std::future::ready(Ok(is_taken))
    })
}

/// `body`, with an error in the place of what is beyond `limit_bytes`.
fn bounded(
    body: impl Stream<Item = azure_core::Result<Bytes>> + Unpin,
    limit_bytes: usize,
) -> impl Stream<Item = azure_core::Result<Bytes>> {
    stream::try_unfold((body, limit_bytes), move |(mut body, left)| async move {
        let Some(chunk) = body.next().await.transpose()? else {
            return Ok(None);
        };
        match left.checked_sub(chunk.len()) {
            Some(left) => Ok(Some((chunk, (body, left)))),
            None => Err(azure_core::Error::new(
                AzureKind::Other,
                TooLong { limit_bytes },
            )),
        }
    })
}

/// A success of somebody else's.
#[derive(Debug, thiserror::Error)]
#[error(
    "the answer is not a blob service's, it has no x-ms-request-id; \
     hint: a proxy on the way may have answered, or check the endpoint's URL"
)]
struct NoBlobService;

/// An answer longer than any of Azure's.
#[derive(Debug, thiserror::Error)]
#[error("the server's answer is longer than {limit_bytes} bytes")]
struct TooLong {
    limit_bytes: usize,
}

#[cfg(test)]
mod tests {
    use azure_core::http::Url;

    use super::*;

    fn body() -> impl Stream<Item = azure_core::Result<Bytes>> + Unpin {
        stream::iter(["0123", "4567", "89"].map(|chunk| Ok(Bytes::from_static(chunk.as_bytes()))))
    }

    async fn length(
        body: impl Stream<Item = azure_core::Result<Bytes>>,
    ) -> azure_core::Result<usize> {
        body.try_fold(0, |length, chunk| async move { Ok(length + chunk.len()) })
            .await
    }

    #[tokio::test]
    async fn answers_are_read_to_their_limit() {
        assert_eq!(length(bounded(body(), 10)).await.unwrap(), 10);
        let error = length(bounded(body(), 9)).await.unwrap_err();
        assert!(error.to_string().contains("longer than 9 bytes"), "{error}");
        assert_eq!(length(cut(body(), 100)).await.unwrap(), 10);
        assert_eq!(length(cut(body(), 4)).await.unwrap(), 4);
        assert_eq!(length(cut(body(), 5)).await.unwrap(), 8);
    }

    #[test]
    fn only_the_bodies_of_blobs_have_no_limit() {
        let is_read = |url, method| is_read(&Request::new(Url::parse(url).unwrap(), method));
        assert!(is_read("http://host/c/blob?sig=x", Method::Get));
        assert!(!is_read(
            "http://host/c?restype=container&comp=list",
            Method::Get
        ));
        assert!(!is_read("http://host/c/blob", Method::Put));
    }
}
