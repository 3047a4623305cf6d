//! Requests to one server, with the headers that say who asks.

use bytes::{Bytes, BytesMut};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;

use super::credentials::Access;
use super::failure::{Failure, Unexpected};
use crate::ErrorKind;

/// Longest JSON answer that is read: some ten times a page of a thousand objects with all their fields.
const MAX_JSON_BYTES: usize = 16 << 20;

/// What stands in a path or query for something else.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// A server, and the right to ask it. Sends each request once.
pub(super) struct Client {
    http: reqwest::Client,
    endpoint: String,
    access: Access,
}

impl Client {
    /// Requests to `endpoint`, which has no trailing slash.
    pub(super) fn new(http: reqwest::Client, endpoint: String, access: Access) -> Self {
        Self {
            http,
            endpoint,
            access,
        }
    }

    /// A request for a path of the server.
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.endpoint))
    }

    /// A request on an upload's session, whose address the server gave.
    pub(super) fn session_request(&self, method: Method, session: &str) -> RequestBuilder {
        self.http.request(method, session)
    }

    /// The answer, which is a success.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = self.exchange(request).await?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(Failure::of_answer(response).await)
        }
    }

    /// The answer, whatever it is but a 401.
    pub(super) async fn exchange(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let mut request = request.build()?;
        let (headers, age) = self.access.headers().await?;
        // Should a server name another host for an upload: the session's address alone is enough to write to it.
        if self.is_own(request.url()) {
            request.headers_mut().extend(headers);
        }
        let response = self.http.execute(request).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let failure = Failure::of_answer(response).await;
        Err(if self.access.renew(age) {
            failure.with_kind(ErrorKind::Unavailable)
        } else {
            failure
        })
    }

    /// The address of an upload's session as the server gave it, if it may be used.
    pub(super) fn session_address(&self, response: &Response) -> Result<String, Failure> {
        let location = response.headers().get(http::header::LOCATION);
        let address = location
            .and_then(|value| value.to_str().ok())
            .ok_or_else(|| Failure::new(ErrorKind::Other, Unexpected::MissingField))?;
        if is_encrypted(&self.endpoint) && !is_encrypted(address) {
            return Err(Failure::new(ErrorKind::Other, Unexpected::SessionInClear));
        }
        Ok(address.to_owned())
    }

    fn is_own(&self, url: &Url) -> bool {
        Url::parse(&self.endpoint).is_ok_and(|endpoint| endpoint.origin() == url.origin())
    }
}

fn is_encrypted(url: &str) -> bool {
    url.starts_with("https:")
}

/// A name as one component of a path.
pub(super) fn escape(name: &str) -> String {
    utf8_percent_encode(name, ESCAPED).to_string()
}

/// The JSON in an answer.
pub(super) async fn json<T: DeserializeOwned>(response: Response) -> Result<T, Failure> {
    serde_json::from_slice(&body(response).await?).map_err(Failure::of_json)
}

async fn body(mut response: Response) -> Result<Bytes, Failure> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_JSON_BYTES {
            return Err(Failure::new(ErrorKind::Other, TooLong));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// An answer longer than any of GCS's.
#[derive(Debug, thiserror::Error)]
#[error("the server's answer is longer than {MAX_JSON_BYTES} bytes")]
struct TooLong;

#[cfg(test)]
mod tests {
    use google_cloud_auth::credentials::anonymous;

    use super::*;

    fn client(endpoint: &str) -> Client {
        let access = Access::given(anonymous::Builder::new().build());
        Client::new(reqwest::Client::new(), endpoint.to_owned(), access)
    }

    #[test]
    fn an_upload_that_begins_encrypted_is_not_continued_in_clear() {
        let address = |endpoint: &str, location: &str| {
            let answer = http::Response::builder().header("location", location);
            let answer = Response::from(answer.body("").unwrap());
            client(endpoint).session_address(&answer).ok()
        };
        let (https, http) = ("https://host/upload?id=1", "http://host/upload?id=1");
        assert_eq!(address("https://host", https).as_deref(), Some(https));
        assert_eq!(address("https://host", http), None);
        assert_eq!(address("http://host", http).as_deref(), Some(http));
    }

    #[test]
    fn tokens_go_to_the_endpoint_only() {
        let client = client("https://host");
        let is_own = |url| client.is_own(&Url::parse(url).unwrap());
        assert!(is_own("https://host/upload?id=1"));
        assert!(is_own("https://host:443/"));
        for other in [
            "https://other/",
            "http://host/",
            "https://host:444/",
            "https://host.other/",
        ] {
            assert!(!is_own(other), "{other}");
        }
    }

    #[test]
    fn names_are_one_component_of_a_path() {
        assert_eq!(escape("a/b c+ü?#%~"), "a%2Fb%20c%2B%C3%BC%3F%23%25~");
    }
}
