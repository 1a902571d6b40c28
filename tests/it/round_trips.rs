//! The round trips to Postgres per call, measured with a delay that is much longer than everything else; and the
//! connections that are opened ahead.

use std::time::{Duration, Instant};

use devstack::Direction;
use futures_util::future::join_all;

use crate::harness::{Node, Private, Stack, StallMeter, Suite, get, too_busy};
use crate::schema::run;
use crate::statements::{new_product, read_through, rename, renamed};

/// Delay to the server and back.
const ROUND_TRIP: Duration = Duration::from_millis(200);

pub fn register(suite: &mut Suite<'_>) {
    suite.private("round_trips::a_cold_read_and_an_absent_product_cost_one", one_each);
    suite.single("connections::a_server_that_takes_no_more_is_not_down", few_connections);
    suite.private("round_trips::a_thousand_cold_readers_wait_for_one", thousand);
}

async fn far_node(world: &Private) -> Node {
    let node = Node::start(&world.args()).await;
    let half = ROUND_TRIP / 2;
    world.to_postgres.delay(Direction::Both, half);
    // Wait for statements that were in flight before.
    tokio::time::sleep(ROUND_TRIP * 3).await;
    node
}

/// At least one round trip, and less than two. A part of the difference is allowed for a busy machine.
fn assert_round_trip(what: &str, took: Duration, stalls: &StallMeter) {
    let stalled = stalls.longest();
    if took >= ROUND_TRIP * 7 / 4 && stalled > ROUND_TRIP / 4 {
        too_busy(&format!("{what}: {took:?}, and a thread that slept was {stalled:?} late"));
    }
    assert!(
        took >= ROUND_TRIP * 9 / 10 && took < ROUND_TRIP * 7 / 4,
        "{what}: {took:?}, not {ROUND_TRIP:?}"
    );
}

async fn one_each(world: Private) {
    let ids = [world.insert_unrelayed("lamp").await, world.insert_unrelayed("chair").await];
    let node = far_node(&world).await;
    let stalls = StallMeter::start();
    for round in 0..3 {
        let began = Instant::now();
        assert!(node.get(ids[0] + 1_000 + round).await.is_err());
        assert_round_trip("an absent product", began.elapsed(), &stalls);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    for id in ids {
        let began = Instant::now();
        node.get(id).await.unwrap();
        assert_round_trip("a cold read", began.elapsed(), &stalls);
    }
    for round in 0..3 {
        let began = Instant::now();
        node.client.clone().update_product(renamed(ids[0], &format!("{round}"))).await.unwrap();
        assert_round_trip("an update", began.elapsed(), &stalls);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let began = Instant::now();
    node.client.clone().create_product(new_product("new")).await.unwrap();
    assert_round_trip("a new product", began.elapsed(), &stalls);
}

/// The longest wait of a thousand concurrent readers of an uncached product.
async fn worst_wait(world: &Private, node: &Node) -> Duration {
    let id = world.insert_unrelayed("lamp").await;
    // Otherwise the relay may break the load's lease, and the load is repeated.
    world.wait_until_relayed().await;
    let loads = world.loads().await;
    let readers = (0..1_000).map(|_| {
        let mut client = node.client.clone();
        async move {
            let began = Instant::now();
            client.get_product(get(id)).await.unwrap();
            began.elapsed()
        }
    });
    let worst = join_all(readers).await.into_iter().max().unwrap();
    assert_eq!(world.loads().await - loads, 1);
    worst
}

async fn thousand(world: Private) {
    let node = Node::start(&world.args()).await;
    let mut waits = Vec::new();
    // Several tries: a busy machine needs time for a thousand calls also without a delay.
    for _ in 0..5 {
        let near = worst_wait(&world, &node).await;
        world.to_postgres.delay(Direction::Both, ROUND_TRIP / 2);
        tokio::time::sleep(ROUND_TRIP * 3).await;
        let far = worst_wait(&world, &node).await;
        world.to_postgres.heal();
        waits.push((near, far));
        if far < near + Duration::from_millis(350) && far >= ROUND_TRIP {
            return;
        }
    }
    panic!("near and far: {waits:?}");
}

async fn few_connections(stack: Stack) {
    let id = stack.insert_unrelayed("lamp").await;
    let role = format!("{}_few", stack.namespace);
    for statement in [
        format!("CREATE ROLE {role} LOGIN CONNECTION LIMIT 9"),
        format!("GRANT USAGE ON SCHEMA hotshelf TO {role}"),
        format!("GRANT ALL ON ALL TABLES IN SCHEMA public, hotshelf TO {role}"),
        format!("GRANT ALL ON ALL SEQUENCES IN SCHEMA public, hotshelf TO {role}"),
    ] {
        run(&stack.sql, &statement).await;
    }
    let mut args = stack.args();
    args.database.database_url = stack.database_url.replace("//hotshelf@", &format!("//{role}@"));
    let node = Node::start(&args).await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        rename(&node, id, "renamed").await.unwrap();
        read_through(&node, id).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
