//! The dashboard, the rules of Prometheus and the runbooks name what the program exposes; every query of the dashboard
//! returns data from a real Prometheus.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::process::{Child, Command};

use super::links::{HISTORY, ROOT, pages};
use crate::harness::{HANG, Node, Stack, admin, eventually, finish, free_port};

const DASHBOARD: &str = include_str!("../../../deploy/grafana/hotshelf.json");
const RULES: &str = include_str!("../../../deploy/prometheus/rules.yml");
const RULES_TEST: &str = include_str!("../../../deploy/prometheus/rules_test.yml");
const RUNBOOKS: &str = "docs/runbooks";
/// The column that attach adds to a table, which is no metric.
const COLUMN: &str = "hotshelf_version";
/// Labels that Prometheus sets.
const OF_PROMETHEUS: [&str; 6] = ["instance", "job", "le", "alertname", "alertstate", "severity"];

/// The values of each label of each sample name.
type Exposed = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

pub async fn names(stack: Stack) {
    let (node, secure) = (stack.node().await, crate::tls::serving(&stack).await);
    let (_, text) = node.admin("/metrics").await;
    let (_, of_secure) = admin(secure.admin_addr.port(), "/metrics").await;
    let mut exposed = Exposed::new();
    for series in [text, of_secure].iter().flat_map(|text| text.lines()) {
        let (series, _) = series.rsplit_once(' ').unwrap();
        if let Some(selector) = selectors(series).pop().filter(|_| !series.starts_with('#')) {
            let labels = exposed.entry(selector.name).or_default();
            for (label, value) in selector.matchers {
                labels.entry(label).or_default().insert(value);
            }
        }
    }
    for wrong in [
        "hotshelf_nothing",
        "hotshelf_reads_total{tier=\"hot\"}",
        "hotshelf_reads_total{served_by=~\"hot|cold\"}",
        "sum by (nothing) (hotshelf_reads_total)",
        "hotshelf_reads_total {{nothing}}",
        "hotshelf:nothing:rate5m",
    ] {
        assert!(check(wrong, &exposed).is_err(), "{wrong} passes");
    }
    let mut named = 0;
    for (place, text) in pieces() {
        named += check(&text, &exposed).unwrap_or_else(|why| panic!("{place}: {why}"));
    }
    assert!(named > 150, "{named} metrics are named");
}

/// The texts that are checked, each with its place: queries and legends, rules and their tests, code in pages.
fn pieces() -> Vec<(String, String)> {
    let panels = panels().into_iter().flat_map(|panel| {
        let legends = panel.queries.iter().map(|(query, legend)| format!("{query} {legend}"));
        legends.map(move |text| (panel.title.clone(), text)).collect::<Vec<_>>()
    });
    let rules = RULES.split("\n      - ").map(|rule| ("rules.yml".to_owned(), rule.to_owned()));
    let tests = [("rules_test.yml".to_owned(), RULES_TEST.to_owned())];
    let pages = pages().into_iter().filter(|(page, _)| page != HISTORY);
    let pages = pages.map(|(page, text)| {
        let code: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
        (page, code.join("\n"))
    });
    panels.chain(rules).chain(tests).chain(pages).collect()
}

/// Checks every metric of a text, and its labels; returns how many there are.
fn check(text: &str, exposed: &Exposed) -> Result<usize, String> {
    let selectors = selectors(text);
    let mut labels: BTreeSet<&str> = OF_PROMETHEUS.into();
    for Selector { name, matchers } in &selectors {
        if name.starts_with("hotshelf:") {
            let recorded = RULES.contains(&format!("record: {name}\n"));
            recorded.then_some(()).ok_or_else(|| format!("no rule records {name}"))?;
            continue;
        }
        if name == "ALERTS" {
            labels.extend(exposed.values().flat_map(BTreeMap::keys).map(String::as_str));
            continue;
        }
        // A histogram is exposed under three names.
        let known = exposed.get(name).or_else(|| exposed.get(&format!("{name}_count")));
        let known = known.ok_or_else(|| format!("no metric {name}"))?;
        labels.extend(known.keys().map(String::as_str));
        for (label, value) in matchers {
            if ["instance", "job"].contains(&label.as_str()) {
                continue;
            }
            let values = known.get(label).ok_or_else(|| format!("{name} has no label {label}"))?;
            for value in value.split('|') {
                let known = values.contains(value).then_some(());
                known.ok_or_else(|| format!("{name} is never with {label} {value}"))?;
            }
        }
    }
    let unknown = grouped(text).into_iter().find(|label| !labels.contains(label.as_str()));
    unknown.map_or(Ok(selectors.len()), |label| Err(format!("nothing here has the label {label}")))
}

struct Selector {
    name: String,
    matchers: Vec<(String, String)>,
}

/// The metrics that a text names, with what it asks of their labels.
fn selectors(text: &str) -> Vec<Selector> {
    let is_part = |char: char| char.is_ascii_alphanumeric() || char == '_' || char == ':';
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(is_part) {
        rest = &rest[start..];
        let (name, after) = rest.split_at(rest.find(|char| !is_part(char)).unwrap_or(rest.len()));
        rest = after;
        // A name that ends with its prefix is a pattern.
        let prefixes = ["hotshelf_", "grpc_server_", "process_"];
        let metric = prefixes.iter().any(|prefix| name.starts_with(prefix));
        let recorded = name.starts_with("hotshelf:") && name.matches(':').count() == 2;
        let metric = metric && name != COLUMN && !name.ends_with('_');
        if name != "ALERTS" && !recorded && !metric {
            continue;
        }
        let mut matchers = Vec::new();
        if let Some((inside, after)) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'))
        {
            let pairs = inside.trim_end_matches(',').split("\",").filter(|pair| !pair.is_empty());
            matchers.extend(pairs.map(|pair| {
                let (label, value) = pair.split_once('"').unwrap();
                let label = label.trim_end_matches(['=', '!', '~']);
                (label.to_owned(), value.trim_end_matches('"').to_owned())
            }));
            rest = after;
        }
        found.push(Selector { name: name.to_owned(), matchers });
    }
    found
}

/// The labels that a text groups by, or shows.
fn grouped(text: &str) -> Vec<String> {
    let lists = [" by (", " on (", " ignoring (", " group_left ("];
    let lists = lists.iter().flat_map(|list| text.split(*list).skip(1));
    let lists = lists.filter_map(|rest| Some(rest.split_once(')')?.0));
    let grouped = lists.flat_map(|list| list.split(',')).map(str::trim);
    let braces = text.split("{{").skip(1).filter_map(|rest| Some(rest.split_once("}}")?.0.trim()));
    let shown =
        braces.filter(|inside| inside.chars().all(|char| char.is_alphanumeric() || char == '_'));
    let of_alerts = text.split("$labels.").skip(1);
    let of_alerts = of_alerts.filter_map(|rest| rest.split([' ', '}']).next());
    let all =
        grouped.chain(shown.filter(|word| *word != "end" && *word != "else")).chain(of_alerts);
    all.filter(|label| !label.is_empty()).map(str::to_owned).collect()
}

pub fn alerts() {
    let rules = RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let alerts: BTreeSet<String> = rules.map(str::to_owned).collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    assert_eq!(runbooks(), alerts, "each alert has a page, each page an alert");
    for block in RULES.split("- alert: ").skip(1) {
        let (name, _) = block.split_once('\n').unwrap();
        assert!(block.contains(&format!("runbook_url: {RUNBOOKS}/{name}.md\n")), "{name}");
        let severities = ["page", "ticket"].map(|name| format!("severity: {name}}}"));
        assert!(severities.iter().any(|severity| block.contains(severity)), "{name}");
        for severity in severities.iter().filter(|severity| block.contains(*severity)) {
            let tests = RULES_TEST.split("\n  - name: ").filter(|test| test.contains(name));
            let fires = |test: &str| test.contains(severity);
            let silent = |test: &str| test.contains("exp_alerts: []");
            let tested = tests.into_iter().any(|test| fires(test) && silent(test));
            assert!(tested, "no test in which {name} is silent and then fires with {severity}");
        }
    }
}

fn runbooks() -> BTreeSet<String> {
    let pages = fs::read_dir(Path::new(ROOT).join(RUNBOOKS)).unwrap();
    let names = pages.map(|page| page.unwrap().file_name().into_string().unwrap());
    names.map(|name| name.trim_end_matches(".md").to_owned()).collect()
}

struct Panel {
    title: String,
    /// The panel says what it means that there is no data.
    may_be_empty: bool,
    queries: Vec<(String, String)>,
}

fn panels() -> Vec<Panel> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter().filter(|it| it["type"] != "row");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let panels = panels.map(|panel| Panel {
        title: text(&panel["title"]),
        may_be_empty: panel["fieldConfig"]["defaults"]["noValue"].is_string(),
        queries: panel["targets"]
            .as_array()
            .unwrap()
            .iter()
            .map(|target| (text(&target["expr"]), text(&target["legendFormat"])))
            .collect(),
    });
    panels.collect()
}

/// The prometheus of this machine, or of the package that scripts/prometheus.sh unpacks.
pub fn program() -> Result<PathBuf, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let script = Path::new(ROOT).join("scripts/prometheus.sh");
    let place = runtime.block_on(finish(&mut Command::new(script), HANG));
    let place = place.map_err(|_| "scripts/prometheus.sh cannot have Prometheus".to_owned())?;
    Ok(Path::new(place.trim()).join("prometheus"))
}

pub async fn queries(stack: Stack, program: PathBuf) {
    let (node, secure) = (stack.node().await, crate::tls::serving(&stack).await);
    let ports = [node.app.admin_addr.port(), secure.admin_addr.port()];
    let place = tempfile::tempdir().unwrap();
    let (prometheus, _child) = prometheus(&program, place.path(), &ports);
    let up = async || tokio::net::TcpStream::connect(("127.0.0.1", prometheus)).await.is_ok();
    eventually("Prometheus listens", up).await;
    let answered = async {
        for panel in panels() {
            for (query, _) in &panel.queries {
                let has_data = async || returns_data(prometheus, query, panel.may_be_empty).await;
                eventually(&format!("{}: {query} has data", panel.title), has_data).await;
            }
        }
    };
    tokio::select! {
        () = answered => {}
        () = load(&stack, &node) => {}
    }
}

fn prometheus(program: &Path, place: &Path, targets: &[u16]) -> (u16, Child) {
    let targets: Vec<String> = targets.iter().map(|port| format!("'127.0.0.1:{port}'")).collect();
    let config = format!(
        "global: {{scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}}\n\
         rule_files: ['{ROOT}/deploy/prometheus/rules.yml']\n\
         scrape_configs: [{{job_name: hotshelf, static_configs: [{{targets: [{}]}}]}}]\n",
        targets.join(", ")
    );
    fs::write(place.join("prometheus.yml"), config).unwrap();
    let port = free_port();
    let child = Command::new(program)
        .current_dir(place)
        .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=error"])
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    (port, child.unwrap())
}

/// Whether Prometheus answers a query with at least one number.
async fn returns_data(port: u16, query: &str, may_be_empty: bool) -> bool {
    let query = query.replace("$__rate_interval", "10s").replace("$instance", ".*");
    let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let (status, body) = admin(port, &format!("/api/v1/query?query={encoded}")).await;
    // 503: Prometheus starts.
    assert!([200, 503].contains(&status), "{query}: {body}");
    let numbers = body.matches("\"value\":").count() - body.matches("\"NaN\"").count();
    status == 200 && (may_be_empty || numbers > 0)
}

/// Reads and writes that every tier answers, without end.
async fn load(stack: &Stack, node: &Node) {
    let hot = stack.insert("hot").await;
    loop {
        let cold = stack.insert("cold").await;
        node.product(cold).await;
        for _ in 0..10 {
            node.product(hot).await;
        }
        assert!(node.get(0).await.is_err());
        crate::newest_wins::rename(node, cold, "changed").await;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
