//! The live page at `/`, and the stream of events that it shows.
//!
//! A watcher is asked for its next event when its connection has room, so a slow reader misses events and delays no other. The
//! first watcher of an interval computes the event, and the others send the same bytes.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::unfold;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{AdminPort, Answer, plain, response};

/// Open pages. Too high: fewer of the port's connections are left to scrapers and probes. Too low: a team cannot watch.
const MAX_WATCHERS: usize = 16;
/// Between the starts of two computations. Too low: more CPU. Too high: the page moves later.
const INTERVAL: Duration = Duration::from_secs(1);
/// What the page may load: its own files only.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The port asks for no credentials.
const NOT_EXPLAINED: &str = "ExplainProduct is switched off, or needs credentials; ADMIN_SERVICE=admin-port serves it here\n";

/// The metrics that the page shows.
const SHOWN: [&str; 38] = [
    "grpc_server_handled_total",
    "grpc_server_handling_seconds",
    "grpc_server_started_total",
    "hotshelf_cache_lookups_total",
    "hotshelf_calls_in_flight",
    "hotshelf_calls_in_flight_limit",
    "hotshelf_change_feed_lag_seconds",
    "hotshelf_connections",
    "hotshelf_connections_limit",
    "hotshelf_hot_bytes",
    "hotshelf_hot_bytes_limit",
    "hotshelf_hot_entries",
    "hotshelf_hot_entries_limit",
    "hotshelf_hot_lease_valid",
    "hotshelf_incomplete_request_bytes",
    "hotshelf_incomplete_request_bytes_limit",
    "hotshelf_postgres_connections",
    "hotshelf_postgres_connections_limit",
    "hotshelf_postgres_share_in_use",
    "hotshelf_postgres_share_in_use_limit",
    "hotshelf_postgres_share_waiting",
    "hotshelf_postgres_share_waiting_limit",
    "hotshelf_reads_total",
    "hotshelf_recent_changes",
    "hotshelf_recent_changes_limit",
    "hotshelf_redis_breakers_open",
    "hotshelf_redis_connected",
    "hotshelf_redis_connected_limit",
    "hotshelf_relay_lag_seconds",
    "hotshelf_served_stale_total",
    "hotshelf_shed_total",
    "hotshelf_staleness_seconds",
    "hotshelf_streams",
    "hotshelf_streams_limit",
    "hotshelf_unsent_bytes",
    "hotshelf_unsent_bytes_limit",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
];
const STARTED: &str = "process_start_time_seconds";

/// What the page shows of products. The admin port is open before they can be read.
#[derive(Clone, Default)]
pub struct PageProducts(Arc<ArcSwapOption<Products>>);

/// The two rankings of hot products, as JSON.
type Rankings = Box<dyn Fn() -> BoxFuture<'static, Value> + Send + Sync>;
/// Explains the product of an id, as JSON, or says in one line why not.
type Explain = Box<dyn Fn(i64) -> BoxFuture<'static, Result<Value, String>> + Send + Sync>;

struct Products {
    rankings: Rankings,
    /// `None`: AdminService is switched off, or needs credentials.
    explain: Option<Explain>,
}

impl PageProducts {
    pub fn set(&self, rankings: Rankings, explain: Option<Explain>) {
        self.0.store(Some(Arc::new(Products { rankings, explain })));
    }
}

impl fmt::Debug for PageProducts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PageProducts").field(&self.0.load().is_some()).finish()
    }
}

#[derive(Debug)]
pub(super) struct Page {
    products: PageProducts,
    began: Instant,
    watchers: Arc<Semaphore>,
    latest: Mutex<Event>,
    /// Held by the watcher that computes the next event.
    computing: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug, Default)]
struct Event {
    number: u64,
    began: Option<Instant>,
    text: Bytes,
}

impl Event {
    /// Whether a watcher that has sent the event `sent` may send this one.
    fn is_next(&self, sent: u64) -> bool {
        self.number > sent && self.began.is_some_and(|began| began.elapsed() < INTERVAL)
    }
}

struct Watcher {
    port: Arc<AdminPort>,
    sent: u64,
    _place: OwnedSemaphorePermit,
}

impl Page {
    pub(super) fn new(products: PageProducts) -> Self {
        Self {
            products,
            began: Instant::now(),
            watchers: Arc::new(Semaphore::new(MAX_WATCHERS)),
            latest: Mutex::default(),
            computing: tokio::sync::Mutex::default(),
        }
    }

    /// A file of the page.
    pub(super) fn file(path: &str) -> Option<Answer> {
        let (kind, text) = match path {
            "/" => ("text/html; charset=utf-8", include_str!("page/index.html")),
            "/page.css" => ("text/css; charset=utf-8", include_str!("page/page.css")),
            "/page.js" => ("text/javascript; charset=utf-8", include_str!("page/page.js")),
            _ => return None,
        };
        Some(response(StatusCode::OK, kind, Bytes::from_static(text.as_bytes())))
    }

    /// A stream of events, until the connection ends; the browser then connects again.
    pub(super) fn watch(port: &Arc<AdminPort>) -> Answer {
        let Ok(place) = Arc::clone(&port.page.watchers).try_acquire_owned() else {
            return plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "as many pages as may are open; close one, or read /metrics\n",
            );
        };
        let watcher = Watcher { port: Arc::clone(port), sent: 0, _place: place };
        let events = unfold(watcher, |mut watcher| async move {
            let event = watcher.port.page.next(&watcher.port, watcher.sent).await;
            watcher.sent = event.number;
            Some((Ok::<_, Infallible>(Frame::data(event.text)), watcher))
        });
        let mut answer = Response::new(StreamBody::new(events).boxed_unsync());
        let kind = HeaderValue::from_static("text/event-stream");
        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
        answer
    }

    /// Explains a product, for `?id=42`.
    pub(super) async fn explain(&self, query: Option<&str>) -> Answer {
        let id = query.and_then(|query| query.strip_prefix("id=")).and_then(|id| id.parse().ok());
        let Some(id) = id.filter(|id| *id > 0) else {
            return plain(StatusCode::BAD_REQUEST, "use ?id= and a product id, 1 or more\n");
        };
        let products = self.products.0.load_full();
        let Some(products) = products else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "the instance is starting\n");
        };
        let Some(explain) = &products.explain else {
            return plain(StatusCode::FORBIDDEN, NOT_EXPLAINED);
        };
        match explain(id).await {
            Ok(answer) => {
                response(StatusCode::OK, "application/json", answer.to_string().into_bytes().into())
            }
            Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, why + "\n"),
        }
    }

    /// Waits for an event that a watcher has not sent, at most as old as the interval.
    async fn next(&self, port: &AdminPort, sent: u64) -> Event {
        let known = || Some(self.latest.lock().clone()).filter(|latest| latest.is_next(sent));
        if let Some(event) = known() {
            return event;
        }
        let _computing = self.computing.lock().await;
        if let Some(event) = known() {
            return event;
        }
        let Event { number, began, .. } = *self.latest.lock();
        if let Some(began) = began {
            tokio::time::sleep_until((began + INTERVAL).into()).await;
        }
        let began = Some(Instant::now());
        let text = format!("data: {}\n\n", self.compute(port).await).into();
        let event = Event { number: number + 1, began, text };
        *self.latest.lock() = event.clone();
        event
    }

    async fn compute(&self, port: &AdminPort) -> Value {
        let products = self.products.0.load_full();
        let hot = match &products {
            Some(products) => (products.rankings)().await,
            None => json!({ "instance": [], "fleet": [] }),
        };
        let names: Vec<&str> = SHOWN.into_iter().chain([STARTED]).collect();
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        json!({
            "at": millis(self.began.elapsed()),
            "time": millis(time),
            "version": env!("CARGO_PKG_VERSION"),
            "reasons": port.reasons(),
            "notes": port.readiness.notes(),
            "metrics": port.metrics.values(&names),
            "callers": port.refusals.ranked(),
            "hot": hot,
        })
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Keeps the page to its own files, and out of frames and caches.
pub(super) fn restrict(answer: &mut Answer) {
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
}
