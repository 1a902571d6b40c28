//! Hostile and broken clients, by the thousand, against the running program: it does not crash, does not leak, and
//! goes on serving everybody else.

mod attacks;
pub mod frames;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hotshelf::proto::BatchGetProductsRequest;
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::{HANG, Program, Stack, Suite, channel, eventually, get};
use frames::{PREFACE, Socket};

/// The same seed, the same attacks.
const SEED: u64 = 20_260_217;
/// Hostile connections and requests, at least.
const ATTEMPTS: usize = 20_000;
/// In so many rounds: what the first two leave behind is what any load leaves, what the others add is a leak.
const ROUNDS: usize = 5;
/// Attackers at once.
const AT_ONCE: usize = 24;
/// Of them, clients that never read, who stay for a whole round.
const DEAF: usize = 10;
/// What three rounds may add: 3 KiB for each attempt would be more.
const LEAK: usize = 32 << 20;
/// What the program may need at worst: a bound, not a goal.
const MOST: usize = 512 << 20;
const MAX_CONNECTIONS: usize = 200;
/// Calls at once on one connection: nearly as many as it may have.
const BURST: usize = 1_000;
/// Requests of a client that never reads.
const UNREAD: usize = 100;
/// Bytes that such clients may hold: a tenth of what they ask for.
const MOST_UNSENT: usize = 8 << 20;

pub fn register(suite: &mut Suite<'_>) {
    suite.single("hostile::20_000_hostile_clients_crash_nothing_leak_nothing_starve_nobody", siege);
    suite.single("hostile::who_says_nothing_or_half_a_word_loses_its_place", silence);
    suite.single("hostile::answers_that_nobody_reads_are_taken_back", unread_answers);
    suite.single("hostile::answers_that_nobody_reads_leave_room_for_others", greed);
    suite.single("hostile::a_burst_after_a_pause_is_served_and_no_attack", burst);
    suite.single("hostile::past_the_limit_of_connections_those_that_stand_are_served", crowd);
}

async fn siege(stack: Stack) {
    let products = many_products(&stack).await;
    let limit = MAX_CONNECTIONS.to_string();
    let options = ["--max-connections", &limit, "--keepalive-interval", "1s"];
    let program = Program::serve(&stack, &options).await;
    let bystander = Bystander::start(&program, products[0]).await;
    let (mut attempts, mut rested) = (0, Vec::new());
    for round in 0..ROUNDS {
        attempts += attack(program.port(), round, &products).await;
        let connections = async || open_connections(&program).await;
        // The bystander's own.
        eventually("every hostile connection is gone", async || connections().await == 1.0).await;
        rested.push(memory(&program, "VmRSS:"));
        assert_eq!(health(program.port()).await, ServingStatus::Serving);
    }
    assert!(attempts >= ATTEMPTS, "only {attempts}");
    assert!(bystander.stop().await > 100, "the bystander was served all the time");
    assert!(rested[ROUNDS - 1] < rested[0].max(rested[1]) + LEAK, "it leaks: {rested:?}");
    assert!(memory(&program, "VmHWM:") < MOST, "{}", memory(&program, "VmHWM:"));
    assert!(!program.log().contains("panicked"), "{}", program.log());
    program.signal(Signal::SIGTERM);
    assert_eq!(program.ended().await, Some(0), "and it drains like any other");
}

/// Many kilobytes in an answer, and few in a request: whoever sends past the server's window is thrown out.
async fn many_products(stack: &Stack) -> Vec<i64> {
    let insert = "INSERT INTO products (name, price, description)
        SELECT 'lamp', 9.99, repeat('x', 500) FROM generate_series(1, 150) RETURNING id";
    sqlx::query_scalar(insert).fetch_all(&stack.sql).await.unwrap()
}

/// One round. Returns how many connections and requests it was.
async fn attack(port: u16, round: usize, products: &[i64]) -> usize {
    let count = Arc::new(AtomicUsize::new(0));
    let (mut attackers, mut number) = (JoinSet::new(), round as u64 * 1_000_000);
    let mut deaf = Vec::new();
    for _ in 0..DEAF {
        number += 1;
        let mut random = StdRng::seed_from_u64(SEED + number);
        let Some((socket, sent)) = attacks::never_reads(port, &mut random, products).await else {
            continue;
        };
        count.fetch_add(sent, Ordering::Relaxed);
        deaf.push(socket);
    }
    while count.load(Ordering::Relaxed) < ATTEMPTS / ROUNDS {
        if attackers.len() >= AT_ONCE {
            attackers.join_next().await.unwrap().unwrap();
        }
        number += 1;
        let (mut random, count) = (StdRng::seed_from_u64(SEED + number), Arc::clone(&count));
        attackers.spawn(async move {
            count.fetch_add(one(port, &mut random).await, Ordering::Relaxed);
        });
    }
    while let Some(ended) = attackers.join_next().await {
        ended.unwrap();
    }
    count.load(Ordering::Relaxed)
}

async fn one(port: u16, random: &mut StdRng) -> usize {
    match random.random_range(0..100) {
        0..31 => attacks::no_http2(port, random).await,
        31..62 => attacks::fuzzed_frames(port, random).await,
        62..94 => attacks::abrupt_disconnect(port, random).await,
        94..95 => attacks::rapid_reset(port, random).await,
        95..97 => attacks::other_methods(port, random).await,
        97..99 => attacks::fuzzed_bodies(port, random).await,
        _ => attacks::endless_headers(port, random).await,
    }
}

/// Somebody who only wants a product, again and again, on a connection of their own.
struct Bystander {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<usize>,
}

impl Bystander {
    async fn start(program: &Program, id: i64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut client, stopped) = (program.client().await, Arc::clone(&stop));
        let task = tokio::spawn(async move {
            let mut served = 0;
            while !stopped.load(Ordering::Relaxed) {
                let read = tokio::time::timeout(HANG, client.get_product(get(id))).await;
                assert_eq!(read.expect("not starved").unwrap().into_inner().id, id);
                served += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            served
        });
        Self { stop, task }
    }

    /// How often it was served: always.
    async fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

async fn open_connections(program: &Program) -> f64 {
    metric(program, "hotshelf_connections").await
}

async fn metric(program: &Program, series: &str) -> f64 {
    let (_, text) = program.admin("/metrics").await;
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap().trim().parse().unwrap()
}

/// Bytes, of this line of /proc/PID/status.
fn memory(program: &Program, line: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
    let found = status.lines().find_map(|said| said.strip_prefix(line)).unwrap();
    found.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

async fn health(port: u16) -> ServingStatus {
    let mut client = HealthClient::new(channel(port).await);
    let request = HealthCheckRequest { service: String::new() };
    client.check(request).await.unwrap().into_inner().status()
}

async fn crowd(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let program = Program::serve(&stack, &["--max-connections", "20"]).await;
    let mut client = program.client().await;
    client.get_product(get(id)).await.unwrap();
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.extend(Socket::greeted(program.port(), &[]).await);
    }
    for socket in &mut crowd[100..] {
        assert!(socket.hung_up(HANG).await, "past the limit they are closed");
    }
    assert_eq!(client.get_product(get(id)).await.unwrap().into_inner().id, id);
    drop(crowd);
    eventually("their places are free", async || open_connections(&program).await == 1.0).await;
    let mut next = program.client().await;
    assert_eq!(next.get_product(get(id)).await.unwrap().into_inner().id, id);
}

async fn silence(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let options = ["--max-connections", "4", "--keepalive-timeout", "2s"];
    let program = Program::serve(&stack, &options).await;
    let mut silent = Vec::new();
    for said in [0, 1, PREFACE.len() / 2, PREFACE.len() - 1] {
        let mut socket = Socket::connect(program.port()).await.unwrap();
        socket.send(&PREFACE[..said]).await;
        silent.push(socket);
    }
    for socket in &mut silent {
        assert!(socket.hung_up(HANG).await);
    }
    let mut next = program.client().await;
    assert_eq!(next.get_product(get(id)).await.unwrap().into_inner().id, id);
}

async fn unread_answers(stack: Stack) {
    let products = many_products(&stack).await;
    let program = Program::serve(&stack, &["--max-call-time", "1s"]).await;
    let mut deaf = attacks::unread(program.port(), &products, UNREAD).await;
    let taken_back = deaf.ended(UNREAD, HANG).await.expect("each of them, in bounded time");
    // On a machine that is busy some may not have been answered in time, which ends them, too.
    assert!(taken_back > 0);
    let mut client = program.client().await;
    assert_eq!(client.get_product(get(products[0])).await.unwrap().into_inner().id, products[0]);
}

async fn greed(stack: Stack) {
    let products = many_products(&stack).await;
    let limit = MOST_UNSENT.to_string();
    let options = ["--max-unsent-bytes", &limit, "--max-call-time", "60s"];
    let program = Program::serve(&stack, &options).await;
    let mut client = program.client().await;
    client.batch_get_products(batch(&products)).await.unwrap();
    let mut deaf = Vec::new();
    for _ in 0..DEAF {
        deaf.push(attacks::unread(program.port(), &products, UNREAD).await);
    }
    let refused = "hotshelf_shed_total{reason=\"unsent_bytes\"}";
    let unsent = async || {
        let unsent = metric(&program, "hotshelf_unsent_bytes").await;
        assert!(unsent <= MOST_UNSENT as f64, "{unsent}");
        unsent
    };
    eventually("each is refused most of what it asks for", async || {
        unsent().await > 0.0 && metric(&program, refused).await > (DEAF * UNREAD / 2) as f64
    })
    .await;
    let held = unsent().await;
    assert!(held > MOST_UNSENT as f64 / 2.0, "or nothing was at stake: {held}");
    for id in &products {
        client.get_product(get(*id)).await.unwrap();
    }
    // As large a one as theirs.
    let answer = client.batch_get_products(batch(&products)).await.unwrap().into_inner();
    assert_eq!(answer.products.len(), products.len());
    assert!(unsent().await >= held, "they still held it all");
    drop(deaf);
    eventually("their bytes are free", async || unsent().await == 0.0).await;
}

fn batch(ids: &[i64]) -> BatchGetProductsRequest {
    BatchGetProductsRequest { ids: ids.to_vec(), ..Default::default() }
}

async fn burst(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let program = Program::serve(&stack, &[]).await;
    program.client().await.get_product(get(id)).await.unwrap();
    program.freeze().await;
    // The system takes them for it meanwhile.
    let mut caller = attacks::burst(program.port(), id, BURST).await;
    program.signal(Signal::SIGCONT);
    assert_eq!(caller.ended(BURST, HANG).await, Some(0), "each call is answered to its end");
}
