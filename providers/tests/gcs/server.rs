//! A server that answers as GCS documents it and is strict where the emulator is not: conditions and checksums of
//! resumable uploads, multiples of 256 KiB, tokens. It also gives tokens out, as Google's three token services do.
//!
//! A condition on a resumable upload is in the address of its session, as in GCS's own, and looked at when the object is
//! made; after [`GcsServer::look_at_conditions_early`] when the session begins, too.
//!
//! Each fault is met once, by the next request on an upload's session that brings bytes or ends it; one of the answer
//! by the next put, too. As GCS allows, the name of an object is in the query of what makes it; here it must be, and it
//! comes back in a session's address, so that the rules of a proxy find it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub(crate) const BUCKET: &str = "bucket";
const QUANTUM: usize = 256 << 10;
/// What is escaped in the address of a session, so that a proxy finds the names of objects in it.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

pub(crate) struct GcsServer {
    pub(crate) endpoint: String,
    state: Arc<Mutex<State>>,
    serving: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// None.
    Pass,
    /// Keeps only so many of the bytes, and says so.
    Keep(usize),
    /// Keeps so many of the bytes and hangs up.
    KeepAndHangUp(usize),
    /// Does all that was asked and hangs up.
    LoseAnswer,
    /// Changes a bit of what arrives.
    Spoil,
    /// Stores the object and gives another checksum for it.
    OtherChecksum,
    /// Knows nothing of the upload any more.
    Forget,
}

#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: HashMap<String, String>,
    pub(crate) headers: HeaderMap,
    /// The resource in the body of a request that makes one.
    pub(crate) resource: Value,
}

#[derive(Default)]
struct State {
    endpoint: String,
    objects: BTreeMap<String, Object>,
    uploads: HashMap<String, Upload>,
    faults: VecDeque<Fault>,
    is_early: bool,
    seen: Vec<Seen>,
    generations: u64,
    tokens: Option<Tokens>,
}

#[derive(Clone)]
struct Object {
    body: Bytes,
    resource: Value,
}

struct Upload {
    resource: Value,
    body: Vec<u8>,
    /// The object that it became.
    stored: Option<Value>,
}

/// Tokens with what the clients are told of their time, and the time they really have.
struct Tokens {
    told: Duration,
    lifetime: Duration,
    given: HashMap<String, Instant>,
}

/// `Err` is no answer at all.
type Answer = Result<Response<Full<Bytes>>, io::Error>;

impl GcsServer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = State {
            endpoint: endpoint.clone(),
            ..State::default()
        };
        let state = Arc::new(Mutex::new(state));
        let serving = tokio::spawn(serve(listener, Arc::clone(&state)));
        Self {
            endpoint,
            state,
            serving,
        }
    }

    /// From now on takes only tokens that it gave out, for `lifetime`, while it tells that they have `told`.
    pub(crate) fn demand_tokens(&self, told: Duration, lifetime: Duration) {
        self.state().tokens = Some(Tokens {
            told,
            lifetime,
            given: HashMap::new(),
        });
    }

    /// Takes none of the tokens any more that it gave out so far.
    pub(crate) fn revoke_tokens(&self) {
        let mut state = self.state();
        let tokens = state.tokens.as_mut().unwrap();
        for end in tokens.given.values_mut() {
            *end = Instant::now();
        }
    }

    pub(crate) fn tokens_given(&self) -> usize {
        self.state().tokens.as_ref().unwrap().given.len()
    }

    pub(crate) fn look_at_conditions_early(&self) {
        self.state().is_early = true;
    }

    pub(crate) fn meet(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state().faults.extend(faults);
    }

    /// What was asked since the last time.
    pub(crate) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state().seen)
    }

    /// The `Content-Range` of each request on a session since the last time.
    pub(crate) fn take_ranges(&self) -> Vec<String> {
        let seen = self.take_seen();
        let ranges = seen
            .iter()
            .filter_map(|seen| seen.headers.get("content-range"));
        ranges
            .map(|range| range.to_str().unwrap().to_owned())
            .collect()
    }

    pub(crate) fn object_names(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    /// Changes an object behind the back of its checksum.
    pub(crate) fn damage(&self, name: &str) {
        let mut state = self.state();
        let object = state.objects.get_mut(name).unwrap();
        object.body = spoilt(&object.body);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for GcsServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let service = service_fn(move |request| handle(Arc::clone(&state), request));
            let server = auto::Builder::new(TokioExecutor::new());
            // A client that goes away, or is to believe that the server did.
            let _ = server.serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

async fn handle(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let uri = parts.uri;
    let mut seen = Seen {
        method: parts.method,
        path: percent_decode(uri.path()),
        query: query(uri.query().unwrap_or_default()),
        headers: parts.headers,
        resource: Value::Null,
    };
    let mut state = state.lock().unwrap();
    if let Some(answer) = state.give_token(&seen) {
        return Ok(answer);
    }
    if !state.knows(&seen.headers) {
        return Ok(refusal(401, "authError", "Invalid Credentials"));
    }
    let answer = state.answer(&mut seen, &body);
    state.seen.push(seen);
    answer
}

impl State {
    fn answer(&mut self, seen: &mut Seen, body: &Bytes) -> Answer {
        let path = seen.path.clone();
        let rest = path
            .strip_prefix("/upload")
            .unwrap_or(&path)
            .strip_prefix("/storage/v1/b/");
        let Some((bucket, name)) = rest.and_then(|rest| rest.split_once("/o")) else {
            return Ok(refusal(400, "invalid", "no such method"));
        };
        if bucket != BUCKET {
            let message = "The specified bucket does not exist.";
            return Ok(refusal(404, "notFound", message));
        }
        let name = name.strip_prefix('/');
        let kind = seen.query.get("uploadType").map(String::as_str);
        match (&seen.method, name, kind) {
            (&Method::POST, None, Some("multipart")) => Ok(self.put(seen, body)),
            (&Method::POST, None, Some("resumable")) => Ok(self.begin(seen, body)),
            (&Method::PUT, None, Some("resumable")) => self.continue_upload(seen, body),
            (&Method::DELETE, None, Some("resumable")) => {
                self.uploads.remove(&seen.query["upload_id"]);
                Ok(status(499))
            }
            (&Method::GET, None, None) => Ok(self.list(&seen.query)),
            (method, Some(name), None) => Ok(self.object(method, name, seen)),
            _ => Ok(refusal(400, "invalid", "no such method")),
        }
    }

    fn put(&mut self, seen: &mut Seen, body: &Bytes) -> Response<Full<Bytes>> {
        let content_type = seen.headers["content-type"].to_str().unwrap();
        let boundary = content_type
            .strip_prefix("multipart/related; boundary=")
            .unwrap();
        let (resource, body) = multipart(body, boundary);
        seen.resource = named(&resource, &seen.query);
        let hash = seen.resource["crc32c"].as_str().map(str::to_owned);
        let answer = self.store(&seen.query.clone(), &seen.resource, body, hash.as_deref());
        if answer.status() == 200 && matches!(self.faults.front(), Some(Fault::OtherChecksum)) {
            self.faults.pop_front();
            let stored = &self.objects[&seen.query["name"]];
            return json_answer(200, &with_other_checksum(&stored.resource));
        }
        answer
    }

    fn begin(&mut self, seen: &mut Seen, body: &Bytes) -> Response<Full<Bytes>> {
        seen.resource = named(body, &seen.query);
        if self.is_early && self.is_taken(&seen.query, &seen.resource) {
            return precondition_failed();
        }
        self.generations += 1;
        let id = format!("upload-{}", self.generations);
        let upload = Upload {
            resource: seen.resource.clone(),
            body: Vec::new(),
            stored: None,
        };
        self.uploads.insert(id.clone(), upload);
        let condition = seen.query.get("ifGenerationMatch");
        let condition = condition.map(|value| format!("&ifGenerationMatch={value}"));
        let name = utf8_percent_encode(&seen.query["name"], ESCAPED);
        // Where the client found the server, which may be through a proxy. Google's crate leaves out the port.
        let host = seen.headers["host"].to_str().unwrap();
        let server = if host.contains(':') {
            format!("http://{host}")
        } else {
            self.endpoint.clone()
        };
        let address = format!(
            "{server}/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&upload_id={id}{}&name={name}",
            condition.unwrap_or_default()
        );
        let mut answer = status(200);
        let address = HeaderValue::from_str(&address).unwrap();
        answer.headers_mut().insert("location", address);
        answer
    }

    fn continue_upload(&mut self, seen: &Seen, body: &Bytes) -> Answer {
        let id = &seen.query["upload_id"];
        let Some(mut upload) = self.uploads.remove(id) else {
            return Ok(status(410));
        };
        let range = seen.headers["content-range"].to_str().unwrap();
        if range == "bytes */*" {
            let answer = progress(&upload);
            self.uploads.insert(id.clone(), upload);
            return Ok(answer);
        }
        let fault = self.faults.pop_front().unwrap_or(Fault::Pass);
        if matches!(fault, Fault::Forget) {
            return Ok(status(404));
        }
        let hash = seen.headers.get("x-goog-hash");
        let hash = hash.map(|hash| hash.to_str().unwrap().strip_prefix("crc32c=").unwrap());
        let mut answer = self.take_bytes(&mut upload, seen, body, hash, fault);
        if let (Fault::OtherChecksum, Some(stored)) = (fault, &upload.stored) {
            answer = json_answer(200, &with_other_checksum(stored));
        }
        // Kept after a 412 as well: an upload that was refused can be aborted.
        self.uploads.insert(id.clone(), upload);
        match fault {
            Fault::KeepAndHangUp(_) | Fault::LoseAnswer => Err(io::Error::other("hang up")),
            _ => Ok(answer),
        }
    }

    fn take_bytes(
        &mut self,
        upload: &mut Upload,
        seen: &Seen,
        body: &Bytes,
        hash: Option<&str>,
        fault: Fault,
    ) -> Response<Full<Bytes>> {
        let range = seen.headers["content-range"].to_str().unwrap();
        let (bytes, total) = range
            .strip_prefix("bytes ")
            .unwrap()
            .split_once('/')
            .unwrap();
        let total = (total != "*").then(|| total.parse::<usize>().unwrap());
        let start = bytes
            .split_once('-')
            .map_or(upload.body.len(), |(start, _)| start.parse().unwrap());
        let is_short = !body.len().is_multiple_of(QUANTUM);
        let length = bytes.split_once('-').map_or(0, |(start, last)| {
            last.parse::<usize>().unwrap() + 1 - start.parse::<usize>().unwrap()
        });
        if start != upload.body.len() || length != body.len() || (total.is_none() && is_short) {
            return refusal(400, "invalid", &format!("{range} does not fit"));
        }
        let body = match fault {
            Fault::Keep(kept) | Fault::KeepAndHangUp(kept) => body.slice(..kept),
            Fault::Spoil => spoilt(body),
            _ => body.clone(),
        };
        upload.body.extend_from_slice(&body);
        if total != Some(upload.body.len()) {
            return progress(upload);
        }
        let bytes = Bytes::from(upload.body.clone());
        let answer = self.store(&seen.query, &upload.resource, bytes, hash);
        if answer.status() == 200 {
            let name = upload.resource["name"].as_str().unwrap();
            upload.stored = Some(self.objects[name].resource.clone());
        }
        answer
    }

    fn store(
        &mut self,
        query: &HashMap<String, String>,
        resource: &Value,
        body: Bytes,
        hash: Option<&str>,
    ) -> Response<Full<Bytes>> {
        let crc32c = STANDARD.encode(crc32c::crc32c(&body).to_be_bytes());
        if let Some(hash) = hash.filter(|hash| *hash != crc32c) {
            let message =
                format!("Provided CRC32C \"{hash}\" doesn't match calculated CRC32C \"{crc32c}\".");
            return refusal(400, "invalid", &message);
        }
        if self.is_taken(query, resource) {
            return precondition_failed();
        }
        self.generations += 1;
        let mut resource = resource.clone();
        resource["size"] = json!(body.len().to_string());
        resource["crc32c"] = json!(crc32c);
        resource["generation"] = json!(self.generations.to_string());
        resource["timeCreated"] = json!("2026-11-21T04:30:00.123Z");
        let name = resource["name"].as_str().unwrap().to_owned();
        let answer = json_answer(200, &resource);
        self.objects.insert(name, Object { body, resource });
        answer
    }

    fn is_taken(&self, query: &HashMap<String, String>, resource: &Value) -> bool {
        let name = resource["name"].as_str().unwrap();
        query
            .get("ifGenerationMatch")
            .is_some_and(|value| value == "0")
            && self.objects.contains_key(name)
    }

    fn object(&mut self, method: &Method, name: &str, seen: &Seen) -> Response<Full<Bytes>> {
        let message = format!("No such object: {BUCKET}/{name}");
        let is_media = seen.query.get("alt").is_some_and(|alt| alt == "media");
        let Some(object) = self.objects.get(name).cloned() else {
            // A body's absence is told in plain text.
            return if is_media {
                with_body(404, message.into())
            } else {
                refusal(404, "notFound", &message)
            };
        };
        if *method == Method::DELETE {
            self.objects.remove(name);
            return status(204);
        }
        if is_media {
            media(&object, &seen.headers)
        } else {
            json_answer(200, &object.resource)
        }
    }

    fn list(&self, query: &HashMap<String, String>) -> Response<Full<Bytes>> {
        let text = |name: &str| query.get(name).cloned().unwrap_or_default();
        let (prefix, from, delimiter) = (text("prefix"), text("startOffset"), text("delimiter"));
        let limit: usize = text("maxResults").parse().unwrap();
        let page = text("pageToken");
        let (mut items, mut prefixes) = (Vec::new(), Vec::<String>::new());
        let mut next = None;
        for (name, object) in self.objects.range(from..) {
            let Some(rest) = name.strip_prefix(&prefix) else {
                continue;
            };
            let folder = rest
                .find('/')
                .filter(|_| !delimiter.is_empty())
                .map(|slash| format!("{prefix}{}", &rest[..=slash]));
            let entry = folder.clone().unwrap_or_else(|| name.clone());
            if entry <= page || Some(&entry) == prefixes.last() {
                continue;
            }
            if items.len() + prefixes.len() == limit {
                break;
            }
            next = Some(entry);
            match folder {
                Some(folder) => prefixes.push(folder),
                None => items.push(object.resource.clone()),
            }
        }
        let mut listing = json!({ "kind": "storage#objects" });
        let is_full = items.len() + prefixes.len() == limit;
        // GCS leaves out what is empty.
        if !items.is_empty() {
            listing["items"] = json!(items);
        }
        if !prefixes.is_empty() {
            listing["prefixes"] = json!(prefixes);
        }
        if is_full {
            listing["nextPageToken"] = json!(next);
        }
        json_answer(200, &listing)
    }

    fn knows(&self, headers: &HeaderMap) -> bool {
        let Some(tokens) = &self.tokens else {
            return true;
        };
        let authorization = headers.get("authorization");
        let token = authorization.and_then(|value| value.to_str().unwrap().strip_prefix("Bearer "));
        // What a service account signs itself needs no token service.
        token.is_some_and(|token| {
            let end = tokens.given.get(token);
            end.is_some_and(|end| *end > Instant::now()) || token.starts_with("ey")
        })
    }

    fn give_token(&mut self, seen: &Seen) -> Option<Response<Full<Bytes>>> {
        let is_metadata = seen.path
            == "/computeMetadata/v1/instance/service-accounts/default/token"
            && seen.headers["metadata-flavor"] == "Google";
        if !(is_metadata || ["/token", "/sts"].contains(&seen.path.as_str())) {
            return None;
        }
        let tokens = self.tokens.as_mut()?;
        let token = format!("token-secret-{}", tokens.given.len() + 1);
        let end = Instant::now() + tokens.lifetime;
        tokens.given.insert(token.clone(), end);
        let answer = json!({
            "access_token": token,
            "expires_in": tokens.told.as_secs(),
            "token_type": "Bearer",
            "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
        });
        Some(json_answer(200, &answer))
    }
}

fn progress(upload: &Upload) -> Response<Full<Bytes>> {
    if let Some(stored) = &upload.stored {
        return json_answer(200, stored);
    }
    let mut answer = status(308);
    if let Some(last) = upload.body.len().checked_sub(1) {
        let range = HeaderValue::from_str(&format!("bytes=0-{last}")).unwrap();
        answer.headers_mut().insert("range", range);
    }
    answer
}

fn media(object: &Object, headers: &HeaderMap) -> Response<Full<Bytes>> {
    let size = object.body.len();
    let asked = headers.get("range").map(|range| range.to_str().unwrap());
    let asked = asked.map(|range| range.strip_prefix("bytes=").unwrap());
    let mut answer = match asked.map(|range| range.split_once('-').unwrap()) {
        None => with_body(200, object.body.clone()),
        Some((start, last)) => {
            let start: usize = start.parse().unwrap();
            let last = last.parse().unwrap_or(u64::MAX);
            let end = usize::try_from(last.saturating_add(1)).unwrap().min(size);
            if start >= size {
                return status(416);
            }
            let mut answer = with_body(206, object.body.slice(start..end));
            let range = format!("bytes {start}-{}/{size}", end - 1);
            let range = HeaderValue::from_str(&range).unwrap();
            answer.headers_mut().insert("content-range", range);
            answer
        }
    };
    let field = |name: &str| object.resource[name].as_str().unwrap();
    for (name, value) in [
        ("x-goog-generation", field("generation").to_owned()),
        ("x-goog-hash", format!("crc32c={}", field("crc32c"))),
        ("x-goog-stored-content-encoding", "identity".to_owned()),
        ("x-goog-stored-content-length", size.to_string()),
    ] {
        let value = HeaderValue::from_str(&value).unwrap();
        answer.headers_mut().insert(name, value);
    }
    answer
}

/// The resource in a body, with the name that is in the query; where it is in both, they are the same.
fn named(body: &[u8], query: &HashMap<String, String>) -> Value {
    let mut resource: Value = serde_json::from_slice(body).unwrap();
    let name = json!(query["name"]);
    assert!(resource.get("name").is_none_or(|own| *own == name));
    resource["name"] = name;
    resource
}

/// The two bodies in one.
fn multipart(body: &Bytes, boundary: &str) -> (Bytes, Bytes) {
    let find = |from: usize, text: &str| {
        let found = body[from..]
            .windows(text.len())
            .position(|window| window == text.as_bytes());
        from + found.unwrap()
    };
    let part = |from: usize| {
        let begin = find(from, "\r\n\r\n") + 4;
        let end = find(begin, &format!("\r\n--{boundary}"));
        (body.slice(begin..end), end)
    };
    let (resource, end) = part(0);
    let (bytes, end) = part(end);
    assert_eq!(&body[end..], format!("\r\n--{boundary}--\r\n").as_bytes());
    (resource, bytes)
}

fn with_other_checksum(resource: &Value) -> Value {
    let mut resource = resource.clone();
    resource["crc32c"] = json!("AAAAAA==");
    resource
}

fn spoilt(body: &Bytes) -> Bytes {
    let mut body = body.to_vec();
    body[0] ^= 1;
    body.into()
}

fn precondition_failed() -> Response<Full<Bytes>> {
    let message = "At least one of the pre-conditions you specified did not hold.";
    refusal(412, "conditionNotMet", message)
}

fn refusal(status: u16, reason: &str, message: &str) -> Response<Full<Bytes>> {
    let errors = json!([{ "message": message, "domain": "global", "reason": reason }]);
    let error = json!({ "code": status, "message": message, "errors": errors });
    json_answer(status, &json!({ "error": error }))
}

fn json_answer(status: u16, value: &Value) -> Response<Full<Bytes>> {
    with_body(status, value.to_string().into())
}

fn status(status: u16) -> Response<Full<Bytes>> {
    with_body(status, Bytes::new())
}

fn with_body(status: u16, body: Bytes) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer
}

fn query(text: &str) -> HashMap<String, String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), percent_decode(&value.replace('+', " "))))
        .collect()
}

fn percent_decode(text: &str) -> String {
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    decoded.unwrap().into_owned()
}
