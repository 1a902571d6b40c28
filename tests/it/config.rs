//! Configuration: a setting that cannot work is refused in one line.

mod refused;
mod sentences;

use clap::CommandFactory;
use hotshelf::config::Cli;
use sqlx::{AssertSqlSafe, Executor};

use crate::harness::{Ended, Program, Stack, Suite, cache_status, eventually, get};

pub fn register(suite: &mut Suite<'_>) {
    suite.single("config::a_bad_option_is_one_line_that_names_it", bad_options);
    suite.single(
        "config::a_setting_that_cannot_work_is_refused_with_what_works",
        refused::out_of_bounds,
    );
    suite.single("config::settings_that_cannot_work_together_are_refused", refused::together);
    suite.single("config::each_wrong_setting_has_its_sentence", sentences::each);
    suite.plain("config::every_setting_has_bounds_or_is_text", refused::complete);
    suite.single("config::zero_is_accepted_where_it_means_something", refused::zeros);
    suite.single("config::the_largest_settings_work", refused::largest);
    suite.single("config::a_port_in_use_is_one_line_that_names_it", ports_in_use);
    suite.single("config::a_database_out_of_reach_is_one_line_after_the_wait", database_down);
    suite.single("config::a_database_that_refuses_is_one_line", database_refuses);
    suite.single(
        "config::an_unknown_schema_is_refused_in_one_line_and_left_unchanged",
        other_schema,
    );
    suite.single("config::a_bad_file_of_settings_is_one_line", bad_dotenv);
    suite.single("config::settings_come_from_the_file_too", good_dotenv);
    suite.single("config::redis_out_of_reach_is_a_warning_and_reads_work", redis_down);
    suite.single("config::help_has_every_knob_with_its_variable_and_default", help);
    suite.single("config::config_prints_every_setting_with_its_source_and_no_password", printed);
    suite.single("config::health_ends_with_0_only_while_the_instance_is_ready", health);
    suite.single("config::completions_and_version_are_printed", completions);
    suite.single("config::migrating_a_fresh_database_works_and_again_changes_nothing", migrate);
    suite.single("config::none_are_kept_warm_when_none_are_asked_for", none_warm);
    suite.cluster(
        "config::a_plain_url_of_a_cluster_node_works_with_redis_cluster_set",
        plain_cluster_url,
    );
}

/// Asserts a failure with one line that has all of `words`. Log lines may come before it.
fn assert_one_line(what: &str, ended: &Ended, words: &[&str]) {
    assert!(ended.code.is_some_and(|code| code != 0), "{what}: {ended:?}");
    assert_eq!(ended.stdout, "", "{what}");
    let logged = |line: &&str| [" INFO ", " WARN "].iter().any(|level| line.contains(level));
    let errors: Vec<&str> = ended.stderr.lines().filter(|line| !logged(line)).collect();
    assert_eq!(errors.len(), 1, "{what}: {}", ended.stderr);
    assert_eq!(ended.stderr.lines().last(), Some(errors[0]), "{what}: the last word");
    assert!(errors[0].starts_with("hotshelf: "), "{what}: {}", errors[0]);
    for word in words {
        assert!(errors[0].contains(word), "{what}: no {word:?} in {}", errors[0]);
    }
}

async fn fails(what: &str, stack: &Stack, more: &[&str], words: &[&str]) {
    let ended = Program::finish(Program::serving(stack, more)).await;
    assert_one_line(what, &ended, words);
}

async fn bad_options(stack: Stack) {
    let cases: [(&[&str], &[&str]); 10] = [
        (&["--database-url", "mysql://localhost/db"], &["DATABASE_URL", "mysql", "postgres://"]),
        (&["--database-url", "nonsense"], &["DATABASE_URL", "postgres://"]),
        (&["--database-url", "postgres://h:notaport/db"], &["DATABASE_URL"]),
        (&["--redis-url", "http://localhost:6379"], &["REDIS_URL", "http", "redis://"]),
        (&["--redis-url", "redis://localhost:notaport"], &["REDIS_URL"]),
        (&["--soft-ttl", "soon"], &["--soft-ttl", "soon", "--help"]),
        (&["--max-calls", "0"], &["--max-calls", "1 to 1000000"]),
        (&["--grpc-addr", "localhost"], &["--grpc-addr", "localhost"]),
        (&["--redis-namespace", "a{b}"], &["--redis-namespace", "letters"]),
        (&["--sotf-ttl", "1s"], &["--sotf-ttl", "--soft-ttl"]),
    ];
    for (arguments, words) in cases {
        fails(&format!("{arguments:?}"), &stack, arguments, words).await;
    }
    let environment: [(&str, &str, &[&str]); 5] = [
        ("SOFT_TTL", "soon", &["--soft-ttl", "soon"]),
        ("REDIS_CLUSTER", "perhaps", &["--redis-cluster", "perhaps"]),
        ("READ_ONLY", "perhaps", &["--read-only", "perhaps"]),
        ("REFLECTION", "perhaps", &["--reflection", "perhaps", "admin-port"]),
        ("RUST_LOG", "hotshelf=loud", &["RUST_LOG", "info"]),
    ];
    for (name, value, words) in environment {
        let mut command = Program::serving(&stack, &[]);
        command.env(name, value);
        assert_one_line(name, &Program::finish(command).await, words);
    }
}

async fn ports_in_use(stack: Stack) {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().map(|address| (taken, address.to_string())).unwrap();
    for (flag, name) in [("--grpc-addr", "GRPC_ADDR"), ("--admin-addr", "ADMIN_ADDR")] {
        fails(flag, &stack, &[flag, &taken.1], &[name, &taken.1, "in use", flag]).await;
    }
}

async fn database_down(stack: Stack) {
    // Bound without a listener: no other process can take the port, and connections are refused.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let url = format!("postgres://somebody:secret@{address}/db");
    let arguments = ["--database-url", &url, "--database-acquire-timeout", "500ms"];
    let arguments = [&arguments[..], &["--startup-timeout", "1s"]].concat();
    let ended = Program::finish(Program::serving(&stack, &arguments)).await;
    assert_one_line("serve", &ended, &["PostgreSQL", &address, "DATABASE_URL"]);
    assert!(ended.stderr.contains("waiting for PostgreSQL"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("secret"), "{}", ended.stderr);
    let ended = Program::run(&["migrate", "--database-url", &url]).await;
    assert_one_line("migrate", &ended, &["PostgreSQL", &address, "DATABASE_URL"]);
}

async fn database_refuses(stack: Stack) {
    let absent = stack.database_url.replace(&stack.namespace, "absent");
    let words = ["DATABASE_URL", "\"absent\" does not exist"];
    fails("no such database", &stack, &["--database-url", &absent], &words).await;
    let stranger = stack.database_url.replace("hotshelf@", "stranger@");
    assert_ne!(stranger, stack.database_url);
    let words = ["DATABASE_URL", "\"stranger\" does not exist"];
    fails("no such user", &stack, &["--database-url", &stranger], &words).await;
}

async fn other_schema(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let newer = "INSERT INTO hotshelf._sqlx_migrations \
         (version, description, success, checksum, execution_time) \
         VALUES (9999, 'of the future', true, '\\x00', 0)";
    stack.sql.execute(newer).await.unwrap();
    let words = ["DATABASE_URL", "9999", "newer hotshelf"];
    fails("newer", &stack, &[], &words).await;
    let ended = Program::run(&["migrate", "--database-url", &stack.database_url]).await;
    assert_one_line("migrate", &ended, &words);
    let changed = "DELETE FROM hotshelf._sqlx_migrations WHERE version = 9999; \
         UPDATE hotshelf._sqlx_migrations SET checksum = '\\x00' WHERE version = 1";
    stack.sql.execute(changed).await.unwrap();
    fails("changed", &stack, &[], &["DATABASE_URL", "migration 1 ", "other contents"]).await;
    let kept: i64 =
        sqlx::query_scalar("SELECT id FROM products").fetch_one(&stack.sql).await.unwrap();
    assert_eq!(kept, id, "nothing is lost");
}

fn with_dotenv(text: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(".env"), text).unwrap();
    directory
}

async fn bad_dotenv(stack: Stack) {
    let directory = with_dotenv("DATABASE_URL=\"postgres://u:secret@h\nand so on");
    let mut command = Program::serving(&stack, &[]);
    command.current_dir(directory.path());
    let ended = Program::finish(command).await;
    assert_one_line("malformed", &ended, &[".env", "DATABASE_URL", "NAME=value"]);
    assert!(!ended.stderr.contains("secret"), "{}", ended.stderr);
}

async fn good_dotenv(stack: Stack) {
    let directory = with_dotenv("# settings\nSOFT_TTL=soon\n");
    let mut command = Program::serving(&stack, &[]);
    command.current_dir(directory.path());
    let ended = Program::finish(command).await;
    assert_one_line("it was read", &ended, &["--soft-ttl", "soon"]);
}

async fn redis_down(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("redis://{}", socket.local_addr().unwrap());
    let program = Program::serve(&stack, &["--redis-url", &url]).await;
    let warned = |line: &str| line.contains(" WARN ") && line.contains("Redis cannot be reached");
    eventually("it warns", async || program.log().lines().any(warned)).await;
    assert_eq!(program.admin("/readyz").await.0, 200);
    let mut client = program.client().await;
    let first = client.get_product(get(id)).await.unwrap();
    assert_eq!(cache_status(&first), "hotshelf; fwd=miss; detail=postgres");
    assert_eq!(first.into_inner().name, "walnut desk lamp");
    eventually("memory serves it", async || {
        let again = client.clone().get_product(get(id)).await.unwrap();
        cache_status(&again) == "hotshelf; hit; detail=hot"
    })
    .await;
}

async fn help(_: Stack) {
    let serve = Program::run(&["serve", "--help"]).await;
    let short = Program::run(&["--help"]).await;
    for ended in [&serve, &short] {
        assert_eq!((ended.code, &*ended.stderr), (Some(0), ""));
    }
    let command = Cli::command();
    let mut knobs = 0;
    for argument in command.get_arguments().filter(|argument| argument.get_env().is_some()) {
        let long = argument.get_long().unwrap();
        let name = long.to_uppercase().replace('-', "_");
        for text in [&serve.stdout, &short.stdout] {
            let (_, entry) = text.split_once(&format!("--{long} ")).unwrap_or_else(|| {
                let (_, entry) = text.split_once(&format!("--{long}[")).expect(long);
                ("", entry)
            });
            let entry = entry.split("\n      --").next().unwrap();
            assert!(entry.contains(&format!("[env: {name}")), "{name} is not in {entry}");
            assert!(entry.contains("[default: "), "{name} has no default in {entry}");
        }
        knobs += 1;
    }
    assert!(knobs > 25, "{knobs} knobs");
    for subcommand in ["migrate", "import"] {
        let ended = Program::run(&[subcommand, "--help"]).await;
        assert!(ended.stdout.contains("[env: DATABASE_URL]"), "{}", ended.stdout);
    }
}

async fn printed(_: Stack) {
    let mut command =
        Program::command(&["config", "--redis-timeout", "7ms", "--redis-url", "redis://:s3cret@h"]);
    command.env("DATABASE_URL", "postgres://u:s3cret@h/db").env("HOT_CAPACITY", "17");
    let ended = Program::finish(command).await;
    assert_eq!((ended.code, &*ended.stderr), (Some(0), ""));
    let has = |setting: &str, source: &str| {
        let line = ended.stdout.lines().find(|line| line.starts_with(setting));
        assert!(line.is_some_and(|line| line.ends_with(source)), "{setting}: {}", ended.stdout);
    };
    has("REDIS_TIMEOUT=7ms ", "# command line");
    has("REDIS_URL=redis://:***@h ", "# command line");
    has("DATABASE_URL=postgres://u:***@h/db ", "# environment");
    has("HOT_CAPACITY=17 ", "# environment");
    has("SOFT_TTL=", "# default");
    assert!(!ended.stdout.contains("s3cret"), "{}", ended.stdout);
    let settings = Cli::command().get_arguments().filter(|arg| arg.get_env().is_some()).count();
    assert_eq!(ended.stdout.lines().count(), settings);
    // What it prints is a file of settings.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(".env"), &ended.stdout).unwrap();
    let mut again = Program::command(&["config"]);
    again.current_dir(folder.path());
    let again = Program::finish(again).await;
    assert_eq!((again.code, &*again.stderr), (Some(0), ""));
    assert!(again.stdout.contains("REDIS_TIMEOUT=7ms"), "{}", again.stdout);
    for refused in [["--lease-ttl", "3s"], ["--database-url-file", "/nonexistent"]] {
        let ended = Program::run(&[&["config"], &refused[..]].concat()).await;
        assert_eq!((ended.code, &*ended.stdout), (Some(64), ""), "checked as serve checks it");
    }
}

async fn health(stack: Stack) {
    let program = Program::serve(&stack, &[]).await;
    let address = format!("127.0.0.1:{}", program.admin_port());
    let ask = async |more: &[&str]| {
        Program::run(&[&["health", "--admin-addr", &address], more].concat()).await
    };
    let ready = ask(&[]).await;
    assert_eq!((ready.code, &*ready.stderr), (Some(0), ""), "{ready:?}");
    assert_eq!(ask(&["--live"]).await.code, Some(0));
    let mut by_environment = Program::command(&["health"]);
    by_environment.env("ADMIN_ADDR", address.replace("127.0.0.1", "0.0.0.0"));
    assert_eq!(Program::finish(by_environment).await.code, Some(0), "the wildcard is not called");
    program.kill().await;
    let gone = ask(&[]).await;
    assert_one_line("it is gone", &gone, &[&address, "does not answer"]);
    assert_eq!(gone.code, Some(1));
}

async fn completions(_: Stack) {
    for shell in ["bash", "zsh", "fish"] {
        let ended = Program::run(&["completions", shell]).await;
        assert_eq!((ended.code, &*ended.stderr), (Some(0), ""));
        assert!(ended.stdout.contains("redis-namespace"), "{shell}");
    }
    let version = Program::run(&["--version"]).await.stdout;
    assert!(version.starts_with("hotshelf 0."), "{version}");
}

async fn migrate(stack: Stack) {
    let fresh = format!("{}_fresh", stack.namespace);
    let create = format!("CREATE DATABASE {fresh}");
    stack.sql.execute(AssertSqlSafe(create)).await.unwrap();
    let url = stack.database_url.replace(&stack.namespace, &fresh);
    let sql = sqlx::PgPool::connect(&url).await.unwrap();
    sql.execute(devstack::sample::TABLE).await.unwrap();
    for time in ["first", "again"] {
        let ended = Program::run(&["migrate", "--database-url", &url]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stderr.contains("up to date"), "{}", ended.stderr);
        let attach = ["attach", "products", "--if-needed", "--yes", "--database-url", &url];
        let ended = Program::run(&attach).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stderr.contains("attached"), "{}", ended.stderr);
        let insert = "INSERT INTO products (name, price) VALUES ($1, 1)";
        sqlx::query(insert).bind(time).execute(&sql).await.unwrap();
    }
    let names: Vec<String> =
        sqlx::query_scalar("SELECT name FROM products ORDER BY id").fetch_all(&sql).await.unwrap();
    assert_eq!(names, ["first", "again"]);
}

async fn none_warm(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let ranker = stack
        .node_with(|args| args.caching.refresh_interval = std::time::Duration::from_millis(50))
        .await;
    ranker.product(id).await;
    eventually("the fleet ranks it", async || {
        !ranker.catalog.fleet_hot_keys(1).await.keys.is_empty()
    })
    .await;
    let (keeper, not) =
        tokio::join!(stack.node(), stack.node_with(|args| args.caching.refresh_keys = 0));
    let read = r#"hotshelf_cache_lookups_total{result="hit",tier="redis"}"#;
    assert!(keeper.metric(read).await >= 1.0, "kept warm by default");
    assert_eq!(not.metric(read).await, 0.0);
}

async fn plain_cluster_url(stack: Stack) {
    let node = stack.redis_url.split_once("://").unwrap().1.split('?').next().unwrap();
    let url = format!("redis://{node}");
    let mut command = Program::serving(&stack, &["--redis-url", &url]);
    command.env("REDIS_CLUSTER", "true");
    let program = Program::start(command).await;
    let mut client = program.client().await;
    for n in 0..30 {
        let id = stack.insert(&format!("shelf {n}")).await;
        let product = client.get_product(get(id)).await.unwrap().into_inner();
        let held = stack.redis_revision(id).await;
        assert_eq!(held, Some((product.version, false)), "in whichever slot");
    }
    let (_, exposition) = program.admin("/metrics").await;
    let failed = exposition
        .lines()
        .find(|line| line.starts_with("hotshelf_redis_errors_total") && !line.ends_with(" 0"));
    assert_eq!(failed, None);
}
