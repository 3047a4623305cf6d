//! How many requests each command sends: PostgreSQL waits for them one after the other.
//!
//! ```text
//! walhalla ─▶ Proxy (counts) ─▶ S3, Google Cloud Storage, Azure
//! ```

use walhalla_providers::testing::proxy::{Ending, Fault, Proxy, Requests, Side, When};

use crate::support::{Area, Segments, Store, Walhalla};

/// Two segments, of which neither is archived yet, and a store whose requests are counted.
struct Site {
    segments: Segments,
    walhalla: Walhalla,
    proxy: Proxy,
    store: Store,
    area: Area,
}

impl Site {
    fn before(make: fn(&Area) -> Store) -> Self {
        let area = Area::new();
        let store = make(&area);
        let proxy = Proxy::start(store.address());
        let walhalla = store.through(&proxy.endpoint(), &Walhalla::new(&area, &store));
        let segments = Segments::make(&area, 2);
        // The probe of a server that is not known yet, and the first folders.
        segments.push(&walhalla, &segments.names[0]).succeeds();
        Self {
            segments,
            walhalla,
            proxy,
            store,
            area,
        }
    }

    /// Requests that `work` sends, but those for summaries, which are not waited for.
    fn count(&self, work: impl FnOnce()) -> usize {
        let count = || {
            let all = self.proxy.count(&Requests::all());
            all - self.proxy.count(&Requests::naming("summary"))
        };
        let before = count();
        work();
        count() - before
    }

    /// `more` are asked by each fetch, `end` by one that comes to the end of the archive.
    fn check(&self, more: usize, end: usize) {
        let (first, second) = (&self.segments.names[0], &self.segments.names[1]);
        let push = || _ = self.segments.push(&self.walhalla, second).succeeds();
        // A listing, the create, and a listing that shows whether another server created it in another form meanwhile.
        assert_eq!(self.count(push), 3, "a push");
        let fetch = || {
            let (outcome, fetched) = self.segments.fetch(&self.walhalla, first);
            outcome.succeeds();
            assert!(fetched.is_some());
        };
        self.segments.signal("standby.signal");
        assert_eq!(self.count(fetch), 2 + more, "a fetch by a standby");
        let miss = || {
            let absent = "0000000100000000000000F0";
            let (outcome, fetched) = self.segments.fetch(&self.walhalla, absent);
            outcome.exits_with(74);
            assert!(fetched.is_none());
        };
        // It shows what of the segment was received, too.
        assert_eq!(
            self.count(miss),
            1,
            "what is not there, asked for by a standby"
        );
        self.segments.signal("recovery.signal");
        assert_eq!(self.count(fetch), 2 + more, "a fetch in archive recovery");
        let number = u64::from_str_radix(&second[8..], 16).unwrap();
        let next = format!("{}{:016X}", &second[..8], number + 1);
        let at_the_end = || {
            let (outcome, fetched) = self.segments.fetch(&self.walhalla, &next);
            outcome.exits_with(74);
            assert!(fetched.is_none());
        };
        assert_eq!(
            self.count(at_the_end),
            end,
            "the end of the archive in recovery"
        );
    }
}

/// Whether the server refuses to create an object twice is known since the first push.
#[test]
fn a_push_a_fetch_and_a_miss_send_few_requests_to_s3() {
    Site::before(Store::s3).check(0, 1);
}

#[test]
fn an_s3_server_is_probed_once_for_each_spool() {
    let site = Site::before(Store::s3);
    let push = |walhalla: &Walhalla| {
        let pushed = site.segments.push(walhalla, &site.segments.names[1]);
        pushed.succeeds();
        std::fs::remove_file(site.store.object_of(&site.segments.names[1])).unwrap();
    };
    let probes = || site.proxy.count(&Requests::naming(".walhalla-probe"));
    assert_eq!(probes(), 2, "where no object of the probe was");
    push(&site.walhalla);
    assert_eq!(probes(), 2);
    let spool = site.area.make_dir("spool");
    let spool = spool.to_str().unwrap();
    let elsewhere = site.walhalla.with_env("WALHALLA_SPOOL_DIR", spool);
    push(&elsewhere);
    push(&elsewhere);
    assert_eq!(probes(), 3);
    let missing = site
        .walhalla
        .with_env("WALHALLA_SPOOL_DIR", &format!("{spool}/missing"));
    push(&missing);
    assert_eq!(probes(), 4);
    assert!(!std::path::Path::new(&format!("{spool}/missing")).exists());
}

/// The emulator does not say with an object how long it is, so that it is asked for that, too.
#[test]
fn a_push_a_fetch_and_a_miss_send_few_requests_to_google() {
    Site::before(Store::gcs).check(1, 1);
}

/// Azure's listings begin with a prefix, and not after a key: what is after a segment is asked for apart.
#[test]
fn a_push_a_fetch_and_a_miss_send_few_requests_to_azure() {
    Site::before(Store::azure).check(0, 2);
}

/// A push is a success without its summary, and says so.
#[test]
fn a_summary_that_does_not_get_through_does_not_fail_the_push() {
    let site = Site::before(Store::s3);
    let silence = Fault::Break {
        side: Side::Request,
        after_bytes: 0,
        ending: Ending::Silence,
    };
    site.proxy
        .on(Requests::naming("summary"), When::Always, silence);
    let pushed = site.segments.push(&site.walhalla, &site.segments.names[1]);
    pushed.succeeds().says(&["its summary is not"]);
}
