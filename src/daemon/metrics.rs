//! What the daemon counts, and the page on which Prometheus reads it.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use walhalla_postgres::SystemIdentifier;

use crate::session::Network;
use crate::status::Status;
use crate::status::metrics::{self, OfCluster, Seconds};

/// The format that `prometheus_client` writes.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How long a scraper may take.
const MOST_TIME: Duration = Duration::from_secs(10);
/// After a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// What is counted.
#[derive(Debug, Default)]
pub struct Metrics {
    ready: Family<OfCluster, Gauge>,
    archived: Family<OfCluster, Counter>,
    failures: Family<OfCluster, Counter>,
    last_archived: Family<OfCluster, Seconds>,
    fetched: Family<OfCluster, Counter>,
    /// Not set before the first request.
    store_up: OnceLock<Gauge>,
}

impl Metrics {
    /// Takes up that a segment was archived.
    pub fn archived(&self, cluster: SystemIdentifier) {
        self.archived.get_or_create(&of(cluster)).inc();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs_f64();
        self.last_archived.get_or_create(&of(cluster)).set(now);
        self.store_is(1);
    }

    /// Takes up that a segment for which the server waits was not archived.
    pub fn failed(&self, cluster: SystemIdentifier) {
        self.failures.get_or_create(&of(cluster)).inc();
    }

    /// Takes up that the store did not answer.
    pub fn store_is_down(&self) {
        self.store_is(0);
    }

    fn store_is(&self, up: i64) {
        self.store_up.get_or_init(Gauge::default).set(up);
    }

    /// Takes up that a segment was fetched.
    pub fn fetched(&self, cluster: SystemIdentifier) {
        self.fetched.get_or_create(&of(cluster)).inc();
        self.store_is(1);
    }

    /// Takes up how many segments wait for the archive.
    pub fn ready(&self, cluster: SystemIdentifier, segments: usize) {
        let segments = i64::try_from(segments).unwrap_or(i64::MAX);
        self.ready.get_or_create(&of(cluster)).set(segments);
    }

    /// All figures, and how the archives stand, as Prometheus reads them.
    pub fn page(&self, archives: &[Status]) -> String {
        let mut registry = metrics::registry(self.store_up.get());
        let (ready, last) = (self.ready.clone(), self.last_archived.clone());
        metrics::register_archiving(&mut registry, ready, last, self.failures.clone());
        metrics::WAL_ARCHIVED_SEGMENTS.register(&mut registry, self.archived.clone());
        metrics::WAL_FETCHED_SEGMENTS.register(&mut registry, self.fetched.clone());
        metrics::register(&mut registry, archives);
        metrics::text_of(&registry)
    }
}

fn of(cluster: SystemIdentifier) -> OfCluster {
    OfCluster {
        system_id: cluster.to_string(),
    }
}

/// Shows `page` at `http://address/metrics`.
///
/// # Errors
/// The address cannot be listened on.
pub fn serve(
    network: &Network,
    address: SocketAddr,
    page: impl Fn() -> String + Send + Sync + 'static,
) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let page = Arc::new(page);
    network.spawn(async move {
        let listener = match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!("the metrics are not shown: {error}"),
        };
        loop {
            let Ok((connection, _)) = listener.accept().await else {
                // Too many open files, perhaps: the next one may fare better.
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let page = Arc::clone(&page);
            tokio::spawn(async move {
                let answer = service_fn(|request| {
                    let answer = answer(&request, &*page);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let mut http = hyper::server::conn::http1::Builder::new();
                http.keep_alive(false);
                let served = http.serve_connection(TokioIo::new(connection), answer);
                // A scraper that goes away is no matter.
                drop(tokio::time::timeout(MOST_TIME, served).await);
            });
        }
    });
    Ok(())
}

fn answer(request: &Request<Incoming>, page: &dyn Fn() -> String) -> Response<Full<Bytes>> {
    let is_known = request.method() == Method::GET && request.uri().path() == "/metrics";
    let (status, body) = if is_known {
        (StatusCode::OK, page())
    } else {
        (StatusCode::NOT_FOUND, "see /metrics\n".to_owned())
    };
    let response = Response::builder().status(status);
    let response = response.header("content-type", CONTENT_TYPE);
    let body = Full::new(Bytes::from(body));
    response.body(body).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_the_figures_of_each_cluster() {
        let metrics = Metrics::default();
        assert!(!metrics.page(&[]).contains("store_up"), "nobody asked it");
        metrics.archived(SystemIdentifier(7));
        metrics.archived(SystemIdentifier(7));
        metrics.failed(SystemIdentifier(8));
        metrics.ready(SystemIdentifier(7), 3);
        let page = metrics.page(&[]);
        for line in [
            "walhalla_wal_archived_segments_total{system_id=\"7\"} 2",
            "walhalla_wal_archive_failures_total{system_id=\"8\"} 1",
            "walhalla_wal_ready_segments{system_id=\"7\"} 3",
            "walhalla_store_up 1",
        ] {
            assert!(page.contains(line), "{line} in {page}");
        }
        assert!(page.contains("walhalla_build_info{version="), "{page}");
    }
}
