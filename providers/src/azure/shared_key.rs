//! Requests signed with an account's key ("Shared Key"), which the SDK does not do.

use std::fmt::Write as _;
use std::sync::Arc;

use async_trait::async_trait;
use azure_core::credentials::Secret;
use azure_core::hmac::hmac_sha256;
use azure_core::http::headers::{AUTHORIZATION, HeaderName};
use azure_core::http::policies::{Policy, PolicyResult};
use azure_core::http::{Context, Request, Url};
use azure_core::time::{OffsetDateTime, to_rfc7231};

/// The headers whose values are signed by their place. The date is left empty, as `x-ms-date` stands for it.
const SIGNED_HEADERS: [&str; 11] = [
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
];

/// Signs each attempt, with its own date.
#[derive(Debug)]
pub(super) struct SharedKeyPolicy {
    account: String,
    key: Secret,
}

impl SharedKeyPolicy {
    /// `key` is what Azure shows: the key's bytes in base64.
    pub(super) fn new(account: String, key: Secret) -> Self {
        Self { account, key }
    }
}

#[async_trait]
impl Policy for SharedKeyPolicy {
    async fn send(
        &self,
        ctx: &Context,
        request: &mut Request,
        next: &[Arc<dyn Policy>],
    ) -> PolicyResult {
        name_length(request);
        request.insert_header("x-ms-date", to_rfc7231(&OffsetDateTime::now_utc()));
        let signature = hmac_sha256(&string_to_sign(&self.account, request), &self.key)?;
        let authorization = format!("SharedKey {}:{signature}", self.account);
        request.insert_header(AUTHORIZATION, authorization);
        super::forward(ctx, request, next).await
    }
}

/// Puts the body's length into the headers, where the transport would put it too late to be signed.
fn name_length(request: &mut Request) {
    let length = request.body().len().filter(|length| *length > 0);
    if let Some(length) = length {
        request.insert_header("content-length", length.to_string());
    }
}

/// What the signature is of: "Authorize with Shared Key" in Azure's reference, version 2015-02-21 and later.
fn string_to_sign(account: &str, request: &Request) -> String {
    let mut text = request.method().as_str().to_owned();
    for name in SIGNED_HEADERS {
        let value = request
            .headers()
            .get_optional_str(&HeaderName::from_static(name));
        // A length of zero is signed as nothing.
        let value = value.filter(|value| (name, *value) != ("content-length", "0"));
        text.push('\n');
        text.push_str(value.unwrap_or_default());
    }
    text.push('\n');
    for (name, value) in storage_headers(request) {
        let _infallible = writeln!(text, "{name}:{value}");
    }
    text.push_str(&resource(account, request.url()));
    text
}

/// All `x-ms-` headers, in the order of their names, which are in lower case already.
fn storage_headers(request: &Request) -> Vec<(&str, &str)> {
    let mut headers: Vec<_> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str().trim()))
        .filter(|(name, _)| name.starts_with("x-ms-"))
        .collect();
    headers.sort_unstable();
    headers
}

/// The path as sent, after the account's name, and the decoded parameters in order.
fn resource(account: &str, url: &Url) -> String {
    let mut parameters: Vec<_> = url
        .query_pairs()
        .map(|(name, value)| (name.to_lowercase(), value))
        .collect();
    parameters.sort_unstable();
    let mut text = format!("/{account}{}", url.path());
    for (name, value) in parameters {
        let _infallible = write!(text, "\n{name}:{value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use azure_core::http::Method;

    use super::*;

    fn request(method: Method, url: &str, headers: &[(&'static str, &'static str)]) -> Request {
        let mut request = Request::new(url.parse().unwrap(), method);
        for (name, value) in headers {
            request.insert_header(*name, *value);
        }
        request
    }

    /// The examples of "Authorize with Shared Key".
    #[test]
    fn the_signed_text_is_the_one_of_azures_documentation() {
        let metadata = request(
            Method::Get,
            "http://myaccount.blob.core.windows.net/mycontainer?restype=container&comp=metadata",
            &[
                ("x-ms-version", "2015-02-21"),
                ("x-ms-date", "Fri, 26 Jun 2015 23:39:12 GMT"),
            ],
        );
        assert_eq!(
            string_to_sign("myaccount", &metadata),
            "GET\n\n\n\n\n\n\n\n\n\n\n\n\
             x-ms-date:Fri, 26 Jun 2015 23:39:12 GMT\nx-ms-version:2015-02-21\n\
             /myaccount/mycontainer\ncomp:metadata\nrestype:container"
        );
        let put = request(
            Method::Put,
            "http://myaccount.blob.core.windows.net/mycontainer/my%20blob?timeout=20",
            &[
                ("content-length", "11"),
                ("content-type", "text/plain; charset=UTF-8"),
                ("x-ms-blob-type", "BlockBlob"),
                ("x-ms-date", "Sun, 20 Sep 2009 20:36:40 GMT"),
                ("x-ms-meta-m2", " v2 "),
                ("x-ms-meta-m1", "v1"),
                ("if-none-match", "*"),
            ],
        );
        assert_eq!(
            string_to_sign("myaccount", &put),
            "PUT\n\n\n11\n\ntext/plain; charset=UTF-8\n\n\n\n*\n\n\n\
             x-ms-blob-type:BlockBlob\nx-ms-date:Sun, 20 Sep 2009 20:36:40 GMT\n\
             x-ms-meta-m1:v1\nx-ms-meta-m2:v2\n\
             /myaccount/mycontainer/my%20blob\ntimeout:20"
        );
    }

    #[test]
    fn a_length_of_zero_is_not_signed() {
        let empty = request(
            Method::Put,
            "http://a.example/c/b",
            &[("content-length", "0")],
        );
        assert_eq!(
            string_to_sign("a", &empty),
            "PUT\n\n\n\n\n\n\n\n\n\n\n\n/a/c/b"
        );
    }

    #[test]
    fn the_key_does_not_show() {
        let policy = SharedKeyPolicy::new("account".to_owned(), Secret::new("c2VjcmV0"));
        assert!(!format!("{policy:?}").contains("c2VjcmV0"));
    }
}
