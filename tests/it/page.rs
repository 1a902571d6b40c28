//! The live page of the admin port: its files, its stream of events, and what it shows in a browser.

pub mod browser;

use std::path::PathBuf;
use std::time::Duration;

use hotshelf::rpc::ServedOn;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::auth::Jwks;
use crate::auth::tokens::Signer;
use crate::harness::{HANG, Node, Private, Stack, Suite, eventually};
use crate::newest_wins::rename;

/// The bound on open pages.
const MOST: usize = 16;

pub fn register(suite: &mut Suite<'_>) {
    suite.single("page::it_keeps_to_its_own_files", files);
    suite.private("page::events_show_hot_products_staleness_and_an_open_breaker", events);
    suite.single("page::all_watchers_share_one_computation_and_are_bounded", shared);
    suite.single("page::a_reader_that_does_not_read_delays_no_other", slow_reader);
    suite.single("page::it_explains_a_product", explained);
    suite.single("page::it_explains_nothing_when_the_admin_service_is_off", switched_off);
    let browser = browser::program();
    let missing =
        browser.is_none().then_some("Chromium is not installed (apt-get install chromium)");
    suite.own("page::it_moves_in_a_browser_and_says_what_is_wrong", missing, move || {
        in_a_browser(browser.clone())
    });
}

/// A response with its head.
async fn fetch(node: &Node, path: &str) -> (String, String) {
    let mut socket = BufReader::new(open(node, path).await);
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut socket, &mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

async fn open(node: &Node, path: &str) -> TcpStream {
    let mut socket = TcpStream::connect(("127.0.0.1", node.admin_addr.port())).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    socket
}

/// A stream of events.
struct Events(BufReader<TcpStream>);

impl Events {
    async fn open(node: &Node) -> Self {
        Self(BufReader::new(open(node, "/events").await))
    }

    /// The next line that begins with `start`, without that.
    async fn line(&mut self, start: &str) -> String {
        let found = async {
            let mut line = String::new();
            while self.0.read_line(&mut line).await.unwrap() > 0 {
                if let Some(rest) = line.strip_prefix(start) {
                    return rest.trim().to_owned();
                }
                line.clear();
            }
            panic!("the stream has ended");
        };
        tokio::time::timeout(HANG, found).await.expect("there is one")
    }

    async fn next(&mut self) -> Value {
        serde_json::from_str(&self.line("data: ").await).unwrap()
    }

    /// The first event for which `condition` holds. A stream ends after half a minute; then another one is opened.
    async fn until(node: &Node, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let found = async {
            loop {
                let mut events = Self::open(node).await;
                for _ in 0..20 {
                    let event = events.next().await;
                    if condition(&event) {
                        return event;
                    }
                }
            }
        };
        tokio::time::timeout(HANG, found).await.unwrap_or_else(|_| panic!("no event: {what}"))
    }
}

/// The sum of the series of a metric in which a label has a value.
fn sum(event: &Value, name: &str, of: &str, label: &str, value: &str) -> f64 {
    let series = event["metrics"][name].as_array().into_iter().flatten();
    let series = series.filter(|series| label.is_empty() || series["labels"][label] == value);
    series.map(|series| series[of].as_f64().unwrap()).sum()
}

async fn files(stack: Stack) {
    let node = stack.node().await;
    for (path, kind) in
        [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")]
    {
        let (head, text) = fetch(&node, path).await;
        assert!(head.starts_with("http/1.1 200") && head.contains(kind), "{path}: {head}");
        assert!(
            head.contains("content-security-policy: default-src 'none'; script-src 'self'"),
            "{head}"
        );
        assert!(head.contains("x-content-type-options: nosniff"), "{head}");
        for foreign in ["http://", "https://", "//cdn", "@import"] {
            assert!(!text.contains(foreign), "{path} refers to {foreign}");
        }
        // What products and callers are named must never become HTML.
        for unsafe_way in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "onclick=",
            "style=",
        ] {
            assert!(!text.contains(unsafe_way), "{path} uses {unsafe_way}");
        }
    }
    let (_, html) = fetch(&node, "/").await;
    let (_, script) = fetch(&node, "/page.js").await;
    // Each element that the script fills exists.
    for id in script.split("text(\"").skip(1).filter_map(|rest| rest.split_once('"')) {
        if id.1.starts_with(',') {
            assert!(html.contains(&format!("id=\"{}\"", id.0)), "no element {}", id.0);
        }
    }
    assert_eq!(node.admin("/nothing").await.0, 404);
}

async fn events(world: Private) {
    let (id, other) = (world.insert("hot").await, world.insert("cold").await);
    let node = world.node_with_short_timeouts(|_| {}).await;
    let mut first = Events::open(&node).await;
    let event = first.next().await;
    assert_eq!(event["reasons"], serde_json::json!([]));
    assert_eq!(sum(&event, "hotshelf_redis_breakers_open", "value", "dependency", "commands"), 0.0);
    let known = id.to_string();
    for _ in 0..300 {
        node.product(id).await;
    }
    node.product(other).await;
    let event = Events::until(&node, "the hot product leads", |event| {
        event["hot"]["instance"][0]["id"] == known.as_str()
            && event["hot"]["fleet"][0]["id"] == known.as_str()
    })
    .await;
    assert!(sum(&event, "hotshelf_reads_total", "value", "served_by", "hot") >= 299.0);
    assert!(
        sum(&event, "grpc_server_handling_seconds", "count", "grpc_method", "GetProduct") >= 301.0
    );
    rename(&node, id, "new").await;
    Events::until(&node, "the change is counted", |event| {
        sum(event, "hotshelf_staleness_seconds", "count", "tier", "hot") >= 1.0
    })
    .await;
    world.redis.kill();
    let reads = async {
        loop {
            let _ = node.get(other).await;
            let _ = world.insert_unrelayed("another").await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let open = Events::until(&node, "the breaker is open", |event| {
        sum(event, "hotshelf_redis_breakers_open", "value", "dependency", "commands") == 1.0
    });
    tokio::select! { () = reads => {}, _ = open => {} }
}

async fn shared(stack: Stack) {
    let node = stack.node().await;
    let mut watchers = Vec::new();
    for _ in 0..MOST {
        watchers.push(Events::open(&node).await);
    }
    // Each has an event, so that all places are taken.
    let mut seen = Vec::new();
    for watcher in &mut watchers {
        seen.push(watcher.line("data: ").await);
    }
    let (head, why) = fetch(&node, "/events").await;
    assert!(head.starts_with("http/1.1 503") && why.contains("as many pages"), "{head} {why}");
    assert_eq!(node.admin("/livez").await, (200, "alive\n".to_owned()));
    assert_eq!(node.admin("/metrics").await.0, 200);
    // One computation: the same text at all of them.
    let mut of_first = vec![seen[0].clone()];
    for _ in 0..3 {
        of_first.push(watchers[0].line("data: ").await);
    }
    for watcher in &mut watchers[1..] {
        let next = watcher.line("data: ").await;
        assert!(of_first.contains(&next), "another text: {next}");
    }
    watchers.pop();
    eventually("a place is free again", async || {
        let mut socket = BufReader::new(open(&node, "/events").await);
        let mut status = String::new();
        socket.read_line(&mut status).await.unwrap();
        status.starts_with("HTTP/1.1 200")
    })
    .await;
}

async fn slow_reader(stack: Stack) {
    let node = stack.node().await;
    let _sleeping = Events::open(&node).await;
    let mut reading = Events::open(&node).await;
    let mut before = reading.next().await["at"].as_u64().unwrap();
    for _ in 0..3 {
        let at = reading.next().await["at"].as_u64().unwrap();
        assert!(at >= before + 900, "{before}, then {at}");
        before = at;
    }
}

async fn explained(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = stack.node().await;
    node.product(id).await;
    let (status, text) = node.admin(&format!("/explain?id={id}")).await;
    assert_eq!(status, 200, "{text}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    let version = stack.version(id).await.to_string();
    assert_eq!(answer["id"], id.to_string());
    assert_eq!(answer["served_from"], "memory");
    assert_eq!(answer["memory"]["state"], "fresh");
    for copy in [&answer["memory"]["copy"], &answer["redis"]["copy"], &answer["postgres"]] {
        assert_eq!(copy["version"], version, "{answer}");
    }
    for bad in ["", "?id=", "?id=0", "?id=-1", "?id=x", "?id=99999999999999999999", "?x=1"] {
        assert_eq!(node.admin(&format!("/explain{bad}")).await.0, 400, "{bad}");
    }
    let (_, absent) = node.admin(&format!("/explain?id={}", i64::MAX)).await;
    let absent: Value = serde_json::from_str(&absent).unwrap();
    assert_eq!(absent["postgres"]["exists"], false);
}

async fn switched_off(stack: Stack) {
    let node = stack.node_with(|args| args.switches.admin_service = ServedOn::Nowhere).await;
    let (status, why) = node.admin("/explain?id=1").await;
    assert!(status == 403 && why.contains("ADMIN_SERVICE=admin-port"), "{status} {why}");
    // A page without credentials gives nobody what the gRPC port asks credentials for.
    let keys = Jwks::of(&[&Signer::ed25519("signer")]);
    let node = stack.node_with(|args| keys.configure(args)).await;
    assert_eq!(node.admin("/explain?id=1").await.0, 403);
}

/// Screenshots are left in target/tmp, for people to look at.
async fn in_a_browser(program: Option<PathBuf>) {
    let world = Private::new().await;
    let (id, other) = (world.insert("hot").await, world.insert("cold").await);
    let node = world.node_with_short_timeouts(|_| {}).await;
    let mut page =
        browser::Page::open(&program.unwrap(), &format!("http://{}/", node.admin_addr)).await;
    let shows = |product: i64| {
        format!("document.querySelector('#hot-instance th')?.textContent === '{product}'")
    };
    let busy = |hot: i64| {
        let node = &node;
        async move {
            loop {
                for _ in 0..20 {
                    let _ = node.get(hot).await;
                }
                rename(node, id, "changed").await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    };
    let first = async {
        page.until("healthy", "document.getElementById('verdict').textContent === 'healthy'").await;
        page.until("it leads", &shows(id)).await;
        page.until(
            "calls are counted",
            "parseFloat(document.getElementById('calls').textContent) > 0",
        )
        .await;
        page.until("staleness", "/ms|µs/.test(document.getElementById('lived').textContent)").await;
        page.run(&format!("document.getElementById('id').value = '{id}'; document.getElementById('ask').requestSubmit()")).await;
        page.until(
            "it is explained",
            "/A read is answered by/.test(document.getElementById('answer').textContent)",
        )
        .await;
        for (name, dark, width) in [
            ("light", false, 1_280),
            ("dark", true, 1_280),
            ("phone", false, 390),
            ("phone-dark", true, 390),
        ] {
            page.appear(dark, width).await;
            page.until("it fits", "document.documentElement.scrollWidth <= innerWidth").await;
            page.screenshot(&format!("page-{name}.png")).await;
        }
    };
    tokio::select! { () = first => {}, () = busy(id) => {} }
    let leads = shows(other);
    let rises = page.until("the other product rises", &leads);
    let more = async {
        loop {
            let _ = node.get(other).await;
            tokio::task::yield_now().await;
        }
    };
    tokio::select! { () = rises => {}, () = more => {} }
    world.redis.kill();
    let says = async {
        page.until(
            "the breaker is shown",
            "document.getElementById('breaker-commands').textContent === 'open'",
        )
        .await;
        page.until(
            "the page says so",
            "/breaker/.test(document.getElementById('verdict').textContent)",
        )
        .await;
        page.screenshot("page-redis-down.png").await;
    };
    let reads = async {
        loop {
            let _ = node.get(world.insert_unrelayed("another").await).await;
        }
    };
    tokio::select! { () = says => {}, () = reads => {} }
    assert_eq!(
        page.complaints(),
        Vec::<String>::new(),
        "no error, and nothing that the policy forbids"
    );
}
