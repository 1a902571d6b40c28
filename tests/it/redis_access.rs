//! P6 with a Redis that refuses some commands, or all: the others are used, and the limit is reported by one log line,
//! `/readyz` and a gauge.

mod reached;

use std::time::Duration;

use hotshelf::proto::ProductServiceClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::Channel;

use crate::harness::{Private, PrivateCluster, Program, Suite, cache_status, eventually, get};

const OPERATING: &str = include_str!("../../docs/operating.md");

/// Long enough for dozens of failed connections, and a dozen probes.
const A_WHILE: Duration = Duration::from_secs(3);

pub fn register(suite: &mut Suite<'_>) {
    suite.private("redis_access::without_info_redis_is_used_and_it_is_reported_once", without_info);
    suite.private(
        "redis_access::without_a_replication_id_redis_is_used_and_it_is_reported_once",
        without_replication_id,
    );
    suite.private("redis_access::without_info_replication_the_run_id_is_used", run_id);
    suite.private("redis_access::a_wrong_password_is_one_line_and_its_end_another", wrong_password);
    suite.private("redis_access::a_missing_password_is_reported_once", no_auth);
    suite.private("redis_access::without_scripts_what_redis_holds_is_served", no_scripts);
    suite.private("redis_access::without_mget_batches_are_served", no_mget);
    suite.private("redis_access::the_commands_that_the_documentation_lists_are_enough", listed);
    suite.private("redis_access::its_connections_have_a_name", named);
    suite.private("redis_access::a_database_that_does_not_exist_is_reported_once", bad_database);
    suite.private("redis_access::a_server_that_is_no_cluster_is_reported_once", not_a_cluster);
    suite.private("redis_access::a_replica_is_reported_once_and_used_when_promoted", replica);
    suite.private("redis_access::a_unix_socket_is_used", reached::unix_socket);
    suite.private("redis_access::tls_with_an_own_authority_and_a_client_certificate", reached::tls);
    suite.private(
        "redis_access::after_a_failover_the_master_of_the_sentinels_is_used",
        reached::sentinels,
    );
    suite.private_cluster(
        "redis_access::a_node_of_a_cluster_as_single_server_is_reported_once",
        cluster_node,
    );
}

struct Served {
    program: Program,
    client: ProductServiceClient<Channel>,
}

impl Served {
    async fn by(world: &Private, url: &str, more: &[&str]) -> Self {
        let usual = ["--redis-url", url, "--redis-timeout", "1s", "--refresh-keys", "0"];
        let program = Program::serve(world, &[&usual[..], more].concat()).await;
        let client = program.client().await;
        Self { program, client }
    }

    /// The `cache-status` of a read.
    async fn read(&self, id: i64) -> String {
        let read = self.client.clone().get_product(get(id)).await.unwrap();
        cache_status(&read).to_owned()
    }

    /// The number of log lines at this level with this part.
    fn lines(&self, level: &str, part: &str) -> usize {
        let log = self.program.log();
        log.lines().filter(|line| line.contains(level) && line.contains(part)).count()
    }

    async fn metric(&self, series: &str) -> f64 {
        let (_, text) = self.program.admin("/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no series {series}")).trim().parse().unwrap()
    }

    async fn refusing(&self, reason: &str) -> f64 {
        self.metric(&format!("hotshelf_redis_refusing{{reason=\"{reason}\"}}")).await
    }

    async fn limited(&self) -> f64 {
        self.metric("hotshelf_redis_limited{capability=\"replication_id\"}").await
    }

    /// The reason is in one log line, in the gauge and in `/readyz`; the instance is ready; and fred logs nothing.
    async fn reports_once(&self, reason: &str) {
        eventually(reason, || async { self.refusing(reason).await == 1.0 }).await;
        tokio::time::sleep(A_WHILE).await;
        let named = format!("reason=\"{reason}\"");
        assert_eq!(self.lines(" WARN ", &named), 1, "{}", self.program.log());
        assert_eq!(self.lines("", &named), 1, "{}", self.program.log());
        assert_eq!(self.lines("", "fred"), 0, "{}", self.program.log());
        assert_eq!(self.refusing(reason).await, 1.0);
        let (status, text) = self.program.admin("/readyz").await;
        assert_eq!(status, 200);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.starts_with("ready\n") && text.contains(reason), "{text}");
    }

    async fn reports_its_end(&self, reason: &str) {
        let (named, silent) = (format!("reason=\"{reason}\""), "ready\n");
        eventually("it ends", || async { self.program.admin("/readyz").await.1 == silent }).await;
        assert_eq!(self.refusing(reason).await, 0.0);
        tokio::time::sleep(A_WHILE).await;
        assert_eq!(self.lines(" INFO ", &named), 1, "{}", self.program.log());
        assert_eq!(self.lines("", &named), 2, "{}", self.program.log());
    }
}

/// Makes a user with these rules, and returns the URL for it.
fn user(world: &Private, rules: &[&str]) -> String {
    acl(world, &[&["reset", "on", ">secret", "~*", "&*", "+@all"], rules].concat());
    format!("redis://app:secret@127.0.0.1:{}", world.redis.port())
}

fn acl(world: &Private, rules: &[&str]) {
    world.redis.command(&[&["ACL", "SETUSER", "app"], rules].concat()).unwrap();
}

fn disconnect(world: &Private) {
    world.redis.command(&["CLIENT", "KILL", "USER", "app"]).unwrap();
}

/// Asserts that Redis is filled, and that the entry is served.
async fn is_used(world: &Private, one: &Served, other: &Served) -> i64 {
    let id = world.insert("lamp").await;
    assert_eq!(one.read(id).await, "hotshelf; fwd=miss; detail=postgres");
    assert!(world.redis_holds(id));
    assert_eq!(other.read(id).await, "hotshelf; hit; detail=redis");
    id
}

/// Without a replication id, entries from before a reconnect are loaded again.
async fn lacks_the_id(world: &Private, url: &str, lose_connections: impl Fn()) {
    // The recent changes do not cover the time before the reconnect.
    let short_retention = ["--change-retention", "100ms"];
    let (one, other) = tokio::join!(
        Served::by(world, url, &short_retention),
        Served::by(world, url, &short_retention)
    );
    let id = is_used(world, &one, &other).await;
    assert_eq!(other.limited().await, 1.0);
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(other.lines(" WARN ", "replication id"), 1, "{}", other.program.log());
    assert_eq!(other.lines("", "no_permission"), 0, "{}", other.program.log());
    let loads = world.loads().await;
    lose_connections();
    eventually("it is loaded again", || async {
        one.read(id).await;
        other.read(id).await;
        world.loads().await > loads
    })
    .await;
    assert_eq!(other.lines(" WARN ", "replication id"), 1, "{}", other.program.log());
    is_used(world, &one, &other).await;
}

async fn without_info(world: Private) {
    let url = user(&world, &["-info"]);
    lacks_the_id(&world, &url, || disconnect(&world)).await;
}

async fn without_replication_id(world: Private) {
    let port = without_ids(world.redis.port()).await;
    let url = user(&world, &[]).replace(&world.redis.port().to_string(), &port.to_string());
    lacks_the_id(&world, &url, || disconnect(&world)).await;
}

/// A proxy that hides the replication id and the run id of a Redis.
async fn without_ids(redis: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", redis)).await.unwrap();
            let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                (client.into_split(), server.into_split());
            tokio::spawn(async move {
                let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
            });
            tokio::spawn(async move {
                let mut buffer = vec![0; 65_536];
                while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
                    for name in [&b"master_replid:"[..], b"run_id:"] {
                        let place = buffer[..read].windows(name.len()).position(|at| at == name);
                        if let Some(place) = place {
                            buffer[place] = b'x';
                        }
                    }
                    if to_client.write_all(&buffer[..read]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    port
}

async fn run_id(world: Private) {
    let url = user(&world, &["-info", "+info|server"]);
    let (one, other) = tokio::join!(Served::by(&world, &url, &[]), Served::by(&world, &url, &[]));
    is_used(&world, &one, &other).await;
    assert_eq!(other.limited().await, 0.0);
    assert_eq!(other.lines(" WARN ", "redis"), 0, "{}", other.program.log());
    world.redis.kill();
    world.redis.start_again().unwrap();
    user(&world, &["-info", "+info|server"]);
    eventually("the restart is noticed", || async {
        other.metric("hotshelf_redis_replication_changes_total").await == 1.0
    })
    .await;
    // A thread of its own writes the log.
    eventually("it is said", async || other.lines("", "Redis replication id changed") == 1).await;
}

async fn wrong_password(world: Private) {
    let url = user(&world, &[]);
    let (one, other) = tokio::join!(Served::by(&world, &url, &[]), Served::by(&world, &url, &[]));
    is_used(&world, &one, &other).await;
    acl(&world, &["resetpass", ">another"]);
    disconnect(&world);
    one.reports_once("wrong_password").await;
    let id = world.insert_unrelayed("meanwhile").await;
    assert_eq!(one.read(id).await, "hotshelf; fwd=miss; detail=postgres");
    acl(&world, &["resetpass", ">secret"]);
    one.reports_its_end("wrong_password").await;
    is_used(&world, &one, &other).await;
}

async fn no_auth(world: Private) {
    world.redis.command(&["CONFIG", "SET", "requirepass", "secret"]).unwrap();
    let url = format!("redis://127.0.0.1:{}", world.redis.port());
    let served = Served::by(&world, &url, &[]).await;
    served.reports_once("no_auth").await;
    let id = world.insert_unrelayed("lamp").await;
    assert_eq!(served.read(id).await, "hotshelf; fwd=miss; detail=postgres");
    // A restart of Redis drops the password.
    world.redis.kill();
    world.redis.start_again().unwrap();
    served.reports_its_end("no_auth").await;
}

async fn no_scripts(world: Private) {
    let id = world.insert("lamp").await;
    let url = user(&world, &[]);
    let filling = Served::by(&world, &url, &[]).await;
    filling.read(id).await;
    assert!(world.redis_holds(id));
    filling.program.kill().await;
    acl(&world, &["-evalsha", "-eval"]);
    let served = Served::by(&world, &url, &[]).await;
    assert_eq!(served.read(id).await, "hotshelf; hit; detail=redis");
    for _ in 0..10 {
        let id = world.insert_unrelayed("lamp").await;
        assert_eq!(served.read(id).await, "hotshelf; fwd=miss; detail=postgres");
    }
    served.reports_once("no_permission").await;
    assert_eq!(served.lines(" WARN ", "evalsha"), 1, "{}", served.program.log());
    acl(&world, &["+evalsha", "+eval"]);
    served.reports_its_end("no_permission").await;
}

async fn no_mget(world: Private) {
    let url = user(&world, &["-mget"]);
    let (one, other) = tokio::join!(Served::by(&world, &url, &[]), Served::by(&world, &url, &[]));
    let ids = [world.insert("a").await, world.insert("b").await];
    for id in ids {
        one.read(id).await;
    }
    let request =
        hotshelf::proto::BatchGetProductsRequest { ids: ids.to_vec(), ..Default::default() };
    other.client.clone().batch_get_products(request).await.unwrap();
    assert_eq!(other.metric("hotshelf_reads_total{served_by=\"redis\"}").await, 2.0);
    other.reports_once("no_permission").await;
    acl(&world, &["+mget"]);
    other.reports_its_end("no_permission").await;
}

async fn listed(world: Private) {
    let (_, list) = OPERATING.split_once("needs the commands ").unwrap();
    let (list, _) = list.split_once("on keys and channels").unwrap();
    let listed = list.split('`').skip(1).step_by(2).map(|name| format!("+{}", name.to_lowercase()));
    let keys = format!("~{}:*", world.namespace);
    let channels = format!("&{}:*", world.namespace);
    let mut rules = vec!["resetkeys", &keys, "resetchannels", &channels, "-@all", "+info"];
    let listed: Vec<String> = listed.collect();
    assert!(listed.len() > 10, "{listed:?}");
    rules.extend(listed.iter().map(String::as_str));
    let url = user(&world, &rules);
    let checked = crate::doctor::doctor(&world, &["--redis-url", &url]).await;
    // A single server needs no `CLUSTER SLOTS`.
    let all = format!("all {} are allowed", listed.len() - 1);
    assert!(checked.stdout.contains(&all), "no {all}: {checked:?}");
    let hot = ["--refresh-keys", "10", "--refresh-interval", "100ms"];
    let (one, other) = tokio::join!(Served::by(&world, &url, &[]), Served::by(&world, &url, &[]));
    let warm = Program::serve(&world, &[&["--redis-url", &url][..], &hot].concat()).await;
    let id = is_used(&world, &one, &other).await;
    let rename = hotshelf::proto::UpdateProductRequest {
        product: Some(hotshelf::proto::Product {
            id,
            name: "new".to_owned(),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["name".to_owned()] }),
        expected_version: None,
    };
    one.client.clone().update_product(rename).await.unwrap();
    let read = warm.client().await.get_product(get(id)).await.unwrap();
    assert_eq!(read.into_inner().name, "new");
    tokio::time::sleep(A_WHILE).await;
    for log in [one.program.log(), other.program.log(), warm.log()] {
        assert!(!log.contains("no_permission") && !log.contains("replication id"), "{log}");
    }
}

async fn named(world: Private) {
    let _served = Served::by(&world, &world.redis.url(), &[]).await;
    let connections = |flags: &str| {
        let list = world.redis.command(&["CLIENT", "LIST"]).unwrap();
        let named = list.lines().filter(|line| line.contains(" name=hotshelf "));
        let named: Vec<String> = named.filter(|line| line.contains(flags)).map(id_of).collect();
        named
    };
    eventually("the subscription has a name", || async { !connections(" flags=P ").is_empty() })
        .await;
    eventually("the others, too", || async { connections(" flags=N ").len() > 1 }).await;
    let before = connections(" flags=N ");
    world.redis.command(&["CLIENT", "KILL", "TYPE", "normal"]).unwrap();
    eventually("new connections have a name", || async {
        let now = connections(" flags=N ");
        now.len() > 1 && !now.iter().any(|id| before.contains(id))
    })
    .await;
}

fn id_of(line: &str) -> String {
    line.split_once("id=").unwrap().1.split(' ').next().unwrap().to_owned()
}

async fn bad_database(world: Private) {
    let url = format!("redis://127.0.0.1:{}/99", world.redis.port());
    let served = Served::by(&world, &url, &[]).await;
    served.reports_once("bad_database").await;
}

async fn not_a_cluster(world: Private) {
    let url = format!("redis-cluster://127.0.0.1:{}", world.redis.port());
    let served = Served::by(&world, &url, &[]).await;
    served.reports_once("not_a_cluster").await;
    let id = world.insert_unrelayed("lamp").await;
    assert_eq!(served.read(id).await, "hotshelf; fwd=miss; detail=postgres");
}

async fn replica(world: Private) {
    let master = devstack::Redis::start(devstack::RedisOptions::default()).unwrap();
    let port = master.port().to_string();
    world.redis.command(&["REPLICAOF", "127.0.0.1", &port]).unwrap();
    eventually("it follows its master", || async {
        let info = world.redis.command(&["INFO", "replication"]).unwrap();
        info.contains("master_link_status:up")
    })
    .await;
    let url = format!("redis://127.0.0.1:{}", world.redis.port());
    let served = Served::by(&world, &url, &[]).await;
    served.reports_once("read_only_replica").await;
    let id = world.insert_unrelayed("lamp").await;
    assert_eq!(served.read(id).await, "hotshelf; fwd=miss; detail=postgres");
    assert!(!world.redis_holds(id));
    world.redis.command(&["REPLICAOF", "NO", "ONE"]).unwrap();
    served.reports_its_end("read_only_replica").await;
    let id = world.insert_unrelayed("lamp").await;
    served.read(id).await;
    assert!(world.redis_holds(id));
}

async fn cluster_node(world: PrivateCluster) {
    let url = format!("redis://127.0.0.1:{}", world.cluster.nodes()[0].port());
    let options = ["--redis-url", &url, "--refresh-keys", "0"];
    let program = Program::serve(&world, &options).await;
    let served = Served { client: program.client().await, program };
    for _ in 0..20 {
        let id = world.insert_unrelayed("lamp").await;
        assert_eq!(served.read(id).await, "hotshelf; fwd=miss; detail=postgres");
    }
    served.reports_once("is_a_cluster").await;
}
