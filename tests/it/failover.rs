//! Several hosts in DATABASE_URL: the primary among them is used, also after a failover.

use sqlx::Connection as _;

use crate::epoch;
use crate::harness::{Node, Private, Program, Suite, eventually};
use crate::statements::{read_through, rename};

pub fn register(suite: &mut Suite<'_>) {
    suite.private("failover::of_several_hosts_the_primary_is_used", primary);
    suite.private("failover::hosts_without_a_primary_are_refused_in_one_line", no_primary);
}

fn port(of: &devstack::Postgres) -> String {
    format!("127.0.0.1:{}", of.port())
}

async fn primary(world: Private) {
    let id = world.insert("first").await;
    let replica = epoch::start_replica(&world).await;
    let both = format!("{},{}", port(&replica), port(&world.postgres));
    let url = replica.url_of(&world.namespace).replace(&port(&replica), &both);
    let start = async || {
        let mut args = world.args();
        args.database.database_url = format!("{url}?target_session_attrs=read-write");
        Node::start(&args).await
    };
    let (a, b) = tokio::join!(start(), start());
    assert_eq!(a.product(id).await.name, "first");
    rename(&a, id, "second").await.unwrap();
    eventually("it is seen everywhere", async || b.product(id).await.name == "second").await;
    let mut on_replica =
        sqlx::PgConnection::connect(&replica.url_of(&world.namespace)).await.unwrap();
    let replicated = async |on_replica: &mut sqlx::PgConnection| -> bool {
        let name = "SELECT EXISTS (SELECT FROM products WHERE name = 'second')";
        sqlx::query_scalar(name).fetch_one(on_replica).await.unwrap()
    };
    while !replicated(&mut on_replica).await {
        tokio::task::yield_now().await;
    }
    epoch::stop(&world).await;
    sqlx::query("SELECT pg_promote()").execute(&mut on_replica).await.unwrap();
    for (node, name) in [(&a, "third"), (&b, "fourth")] {
        eventually("writes work again", async || rename(node, id, name).await.is_ok()).await;
        assert_eq!(read_through(node, id).await.unwrap().name, name);
    }
    eventually("writes of one are seen by the other", async || {
        a.product(id).await.name == "fourth" && b.product(id).await.name == "fourth"
    })
    .await;
    sqlx::query("UPDATE products SET name = 'by SQL'").execute(&mut on_replica).await.unwrap();
    eventually("writes by SQL are seen", async || {
        a.product(id).await.name == "by SQL" && b.product(id).await.name == "by SQL"
    })
    .await;
    // A background task has a pool of its own.
    eventually("the relay cleans the outbox", async || {
        let lag = a.metric("hotshelf_relay_lag_seconds").await;
        lag < 1.0 && b.metric("hotshelf_relay_lag_seconds").await < 1.0
    })
    .await;
}

async fn no_primary(world: Private) {
    let replica = epoch::start_replica(&world).await;
    let both = format!("{},127.0.0.1:1", port(&replica));
    let url = replica.url_of(&world.namespace).replace(&port(&replica), &both);
    let more = ["--database-url", &url, "--startup-timeout", "0s"];
    let ended = Program::finish(Program::serving(&world, &more)).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let last = ended.stderr.lines().last().unwrap_or_default();
    let known = ["is a read-only replica", "refused"];
    assert!(last.contains(&port(&replica)) && last.contains("127.0.0.1:1"), "{last}");
    assert!(known.iter().any(|why| last.contains(why)), "{last}");
}
