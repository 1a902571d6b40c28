//! Settings that cannot work are refused with one sentence that names the setting and what works; zero is accepted
//! where it has a meaning.

use std::collections::BTreeSet;

use clap::CommandFactory;
use hotshelf::config::Cli;

use crate::harness::{Program, Stack, cache_status, get};

/// A flag, values out of bounds, and the bounds.
type Row = (&'static str, &'static [&'static str], &'static str);

const DURATIONS: [Row; 25] = [
    ("database-acquire-timeout", &["0s", "2h"], "1ms to 1h"),
    ("database-statement-timeout", &["0s", "999us", "25days"], "1ms to 1day"),
    ("startup-timeout", &["2days"], "0s to 1day"),
    ("redis-timeout", &["0s", "61s"], "1ms to 1m"),
    ("lease-ttl", &["0s", "1ms", "600000years"], "10ms to 1h"),
    ("lease-wait", &["0s", "600000years"], "10ms to 1h"),
    ("max-staleness", &["0s", "25h"], "1ms to 1day"),
    ("hot-lease", &["25h"], "0s to 1day"),
    ("soft-ttl", &["0s", "21days", "600000years"], "1ms to 20days"),
    ("stale-if-error", &["50days"], "0s to 20days"),
    ("tombstone-ttl", &["0s", "50days"], "1ms to 20days"),
    ("relay-interval", &["0s", "61s"], "1ms to 1m"),
    ("change-poll-interval", &["0s", "61s"], "1ms to 1m"),
    ("change-retention", &["0s", "99ms", "2days"], "100ms to 1day"),
    ("refresh-interval", &["0s", "600000years"], "10ms to 1h"),
    ("warm-timeout", &["61m"], "0s to 1h"),
    ("max-call-time", &["0s", "600000years"], "1ms to 1day"),
    ("keepalive-interval", &["0s", "99ms"], "100ms to 1day"),
    ("keepalive-timeout", &["0s", "2h"], "100ms to 1h"),
    ("max-connection-age", &["8days"], "0s to 7days"),
    ("max-connection-age-grace", &["0s", "2days"], "1ms to 1day"),
    ("max-connection-idle", &["8days"], "0s to 7days"),
    ("http-shared-max-age", &["2days"], "0s to 1day"),
    ("drain-delay", &["2days"], "0s to 1day"),
    ("auth-leeway", &["11m", "600000years"], "0s to 10m"),
];

const NUMBERS: [Row; 17] = [
    ("database-connections", &["0", "3", "4294967295"], "4 to 10000"),
    ("database-loads", &["0", "-1"], "1 to 9997"),
    ("database-queued-loads", &["100001", "many"], "0 to 100000"),
    ("redis-connections", &["0", "129", "18446744073709551615"], "1 to 128"),
    ("hot-capacity", &["0", "100000001"], "1 to 100000000"),
    ("hot-max-product-bytes", &["0", "18446744073709551615"], "1 to 1073741824"),
    ("refresh-keys", &["1001"], "0 to 1000"),
    ("shadow-reads", &["-1", "10001", "many"], "0 to 10000"),
    ("max-connections", &["0", "18446744073709551615"], "1 to 1000000"),
    ("max-streams-per-connection", &["0", "4294967295"], "1 to 1000000"),
    ("max-calls", &["0", "18446744073709551616"], "1 to 1000000"),
    ("max-unsent-bytes", &["0", "131071"], "131072 to 1099511627776"),
    ("max-incomplete-request-bytes", &["0", "16383"], "16384 to 1099511627776"),
    ("max-streams", &["0", "7", "1000001"], "8 to 1000000"),
    ("max-recent-changes", &["0", "1000000001"], "1 to 1000000000"),
    ("otel-exporter-otlp-timeout", &["0", "600001"], "1 to 600000"),
    ("max-watchers", &["18446744073709551615"], "0 to 100000"),
];

const OTHERS: [Row; 3] = [
    ("drain-grace", &["0s", "600000years"], "1ms to 1day"),
    ("max-request-bytes", &["0", "1023", "67108865"], "1024 to 67108864"),
    (
        "caller-metadata",
        &["X-Forwarded-For", "a b", "key-bin"],
        "a name of text metadata: a-z, 0-9, -, _ and ., and not -bin at the end",
    ),
];

/// Settings that cannot work together, and the sentence that refuses them.
const TOGETHER: [(&[(&str, &str)], &str); 25] = [
    (
        &[("database-connections", "7")],
        "DATABASE_LOADS is 5, and leaves less than one connection each for writes, latest reads and ExplainProduct; use at most 4, three less than DATABASE_CONNECTIONS",
    ),
    (
        &[("database-loads", "10")],
        "DATABASE_LOADS is 10, and leaves less than one connection each for writes, latest reads and ExplainProduct; use at most 9, three less than DATABASE_CONNECTIONS",
    ),
    (
        &[("lease-wait", "500ms")],
        "LEASE_TTL is 1s, and no load would wait long enough to take over the lease of a crashed instance; use at most LEASE_WAIT, which is 500ms",
    ),
    (
        &[("hot-lease", "6s")],
        "HOT_LEASE is 6s, and memory would be trusted for longer than an answer may be old; use at most MAX_STALENESS, which is 5s",
    ),
    (
        &[("max-staleness", "1s")],
        "HOT_LEASE is 3s, and memory would be trusted for longer than an answer may be old; use at most MAX_STALENESS, which is 1s",
    ),
    (
        &[("relay-interval", "10s")],
        "RELAY_INTERVAL is 10s, and changes would be seen later than an answer may be old; use at most MAX_STALENESS, which is 5s",
    ),
    (
        &[("grpc-addr", "127.0.0.1:31999"), ("admin-addr", "0.0.0.0:31999")],
        "GRPC_ADDR 127.0.0.1:31999 and ADMIN_ADDR 0.0.0.0:31999 are the same port; use two ports",
    ),
    (
        &[("max-request-bytes", "8388608")],
        "MAX_INCOMPLETE_REQUEST_BYTES is 67108864, so large requests that arrive in parts would be refused; use at least 134217728, 16 times MAX_REQUEST_BYTES",
    ),
    (
        &[("grpc-tls-cert", "cert.pem")],
        "GRPC_TLS_CERT and GRPC_TLS_KEY belong together; give both, or neither",
    ),
    (
        &[("grpc-tls-client-ca", "ca.pem")],
        "GRPC_TLS_CLIENT_CA needs TLS; give GRPC_TLS_CERT and GRPC_TLS_KEY, too",
    ),
    (
        &[
            ("grpc-tls-cert", "cert.pem"),
            ("grpc-tls-key", "key.pem"),
            ("grpc-tls-client-ca", "ca.pem"),
            ("grpc-tls-client-scopes", ""),
        ],
        "GRPC_TLS_CLIENT_SCOPES is empty, so every call would be refused; give scopes, or AUTH_JWKS_FILE for tokens",
    ),
    (
        &[("grpc-tls-client-scopes", "products.read products.delete")],
        "invalid value 'products.read products.delete' for '--grpc-tls-client-scopes <SCOPES>': products.delete is not a scope; use products.read, products.write, hotshelf.admin, separated by spaces; see hotshelf --help",
    ),
    (
        &[("auth-jwks-file", "jwks.json"), ("auth-issuer", "https://login.example")],
        "AUTH_JWKS_FILE alone would accept tokens that are meant for other services; give AUTH_AUDIENCE and AUTH_ISSUER, too",
    ),
    (
        &[("auth-audience", "products")],
        "AUTH_AUDIENCE and AUTH_ISSUER have no effect without keys; give AUTH_JWKS_FILE, too",
    ),
    (
        &[("database-url", "postgres://u:p@h/d"), ("database-url-file", "secret")],
        "DATABASE_URL and DATABASE_URL_FILE are both given; give one of them",
    ),
    (
        &[("redis-url", "redis://h"), ("redis-url-file", "secret")],
        "REDIS_URL and REDIS_URL_FILE are both given; give one of them",
    ),
    (
        &[("otel-exporter-otlp-endpoint", "collector:4318")],
        "OTEL_EXPORTER_OTLP_ENDPOINT has the scheme \"collector\"; use http://HOST:4318 or https://HOST:4318",
    ),
    (
        &[("otel-exporter-otlp-endpoint", "grpc://collector:4317")],
        "OTEL_EXPORTER_OTLP_ENDPOINT has the scheme \"grpc\"; use http://HOST:4318 or https://HOST:4318",
    ),
    (
        &[("otel-exporter-otlp-traces-endpoint", "collector")],
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT cannot be read: relative URL without a base; use http://HOST:4318 or https://HOST:4318",
    ),
    (
        &[("otel-exporter-otlp-endpoint", "http://me:secret@h")],
        "OTEL_EXPORTER_OTLP_ENDPOINT has a user or a password; give them as a header, in OTEL_EXPORTER_OTLP_HEADERS",
    ),
    (
        &[("otel-exporter-otlp-headers", "authorization: secret")],
        "OTEL_EXPORTER_OTLP_HEADERS has a header that cannot be sent (\"authorization\"); use name=value,name=value, with %-escapes in the values",
    ),
    (
        &[("otel-exporter-otlp-protocol", "grpc")],
        "invalid value 'grpc' for '--otel-exporter-otlp-protocol <NAME>': must be http/protobuf; a collector takes it at port 4318; see hotshelf --help",
    ),
    (
        &[("otel-traces-sampler", "jaeger_remote")],
        "invalid value 'jaeger_remote' for '--otel-traces-sampler <NAME>' [possible values: always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off, parentbased_traceidratio]; see hotshelf --help",
    ),
    (
        &[("otel-traces-sampler-arg", "1%")],
        "invalid value '1%' for '--otel-traces-sampler-arg <RATIO>': must be a number from 0 to 1; see hotshelf --help",
    ),
    (
        &[("log-format", "xml")],
        "invalid value 'xml' for '--log-format <FORMAT>' [possible values: text, json]; see hotshelf --help",
    ),
];

fn rows() -> impl Iterator<Item = Row> {
    DURATIONS.into_iter().chain(NUMBERS).chain(OTHERS)
}

/// The one line with which the program refuses these settings: the same for arguments and for environment variables.
async fn refusal(settings: &[(&str, &str)]) -> String {
    let flags: Vec<String> =
        settings.iter().map(|(flag, value)| format!("--{flag}={value}")).collect();
    let arguments: Vec<&str> = ["serve"].into_iter().chain(flags.iter().map(|f| &**f)).collect();
    let by_arguments = Program::run(&arguments).await;
    let mut command = Program::command(&["serve"]);
    for (flag, value) in settings {
        command.env(flag.to_uppercase().replace('-', "_"), value);
    }
    let by_environment = Program::finish(command).await;
    for ended in [&by_arguments, &by_environment] {
        assert_eq!((ended.code, &*ended.stdout), (Some(64), ""), "{settings:?}: {ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{settings:?}: {}", ended.stderr);
    }
    assert_eq!(by_arguments.stderr, by_environment.stderr);
    by_arguments.stderr.trim_end().to_owned()
}

pub(super) async fn out_of_bounds(_: Stack) {
    let mut wrong = 0;
    for (flag, values, works) in rows() {
        for value in values {
            let line = refusal(&[(flag, value)]).await;
            let begin = format!("hotshelf: invalid value '{value}' for '--{flag} <");
            assert!(line.starts_with(&begin), "{line}");
            let unit = if value.parse::<f64>().is_ok() || *value == "many" {
                "a number from "
            } else {
                ""
            };
            assert!(
                line.ends_with(&format!(">': must be {unit}{works}; see hotshelf --help")),
                "{line}"
            );
            wrong += 1;
        }
    }
    assert!(wrong > 60, "{wrong}");
}

pub(super) async fn together(_: Stack) {
    for (settings, sentence) in TOGETHER {
        assert_eq!(refusal(settings).await, format!("hotshelf: {sentence}"));
    }
}

/// Fails for a new setting that has neither a row above nor a place in the list below.
pub(super) fn complete() {
    // Text, which is checked where it is used, and booleans.
    const WITHOUT_BOUNDS: [&str; 32] = [
        "catalog",
        "database-url",
        "migrate",
        "redis-url",
        "redis-cluster",
        "redis-namespace",
        "grpc-addr",
        "admin-addr",
        "grpc-tls-cert",
        "grpc-tls-key",
        "read-only",
        "http-api",
        "cors-origins",
        "admin-service",
        "reflection",
        "grpc-tls-client-ca",
        "grpc-tls-client-scopes",
        "auth-jwks-file",
        "auth-audience",
        "auth-issuer",
        "database-url-file",
        "redis-url-file",
        "redis-tls-ca",
        "redis-tls-cert",
        "redis-tls-key",
        "otel-exporter-otlp-endpoint",
        "otel-exporter-otlp-traces-endpoint",
        "otel-exporter-otlp-headers",
        "otel-exporter-otlp-protocol",
        "otel-traces-sampler",
        "otel-traces-sampler-arg",
        "log-format",
    ];
    let command = Cli::command();
    let settings = command.get_arguments().filter(|argument| argument.get_env().is_some());
    let settings: BTreeSet<&str> = settings.map(|argument| argument.get_long().unwrap()).collect();
    let decided: BTreeSet<&str> = rows().map(|(flag, ..)| flag).chain(WITHOUT_BOUNDS).collect();
    assert_eq!(decided, settings);
}

async fn serves(stack: &Stack, arguments: &[String]) {
    let id = stack.insert("walnut desk lamp").await;
    let arguments: Vec<&str> = arguments.iter().map(|argument| &**argument).collect();
    let program = Program::serve(stack, &arguments).await;
    assert_eq!(program.admin("/readyz").await, (200, "ready\n".to_owned()));
    let mut client = program.client().await;
    let read = client.get_product(get(id)).await.unwrap();
    assert_eq!(cache_status(&read), "hotshelf; fwd=miss; detail=postgres");
    let absent = client.get_product(get(id + 1_000)).await.unwrap_err();
    assert_eq!(absent.code(), tonic::Code::NotFound);
    assert_eq!(client.get_product(get(id)).await.unwrap().into_inner().name, "walnut desk lamp");
    let (_, exposition) = program.admin("/metrics").await;
    let restarts = |line: &&str| line.starts_with("hotshelf_background_task_restarts_total");
    let restarted = exposition.lines().filter(restarts).find(|line| !line.ends_with(" 0"));
    assert_eq!(restarted, None);
}

/// Every lower bound of zero works.
pub(super) async fn zeros(stack: Stack) {
    let zero = |(flag, _, works): Row| {
        let least = works.split(' ').next().unwrap();
        ["0", "0s"].contains(&least).then(|| [format!("--{flag}"), least.to_owned()])
    };
    let arguments: Vec<String> = rows().filter_map(zero).flatten().collect();
    assert_eq!(arguments.len(), 2 * 13, "{arguments:?}");
    serves(&stack, &arguments).await;
}

/// Nothing overflows at the largest values.
pub(super) async fn largest(stack: Stack) {
    let most =
        |(flag, _, works): Row| [format!("--{flag}"), works.rsplit(' ').next().unwrap().to_owned()];
    // The largest hot capacity would allocate 800 MB at the start.
    let arguments: Vec<String> =
        rows().filter(|(flag, ..)| *flag != "hot-capacity").flat_map(most).collect();
    serves(&stack, &arguments).await;
}
