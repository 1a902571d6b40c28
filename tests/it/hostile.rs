//! Thousands of hostile and broken clients against the running program: it does not crash, does not leak, and keeps
//! serving other callers.

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

/// Determines the attacks.
const SEED: u64 = 20_260_217;
/// Lower bound on hostile connections and requests.
const ATTEMPTS: usize = 20_000;
/// Memory that remains after the first two rounds is that of any load; growth in the later rounds is a leak.
const ROUNDS: usize = 5;
/// Concurrent attackers.
const AT_ONCE: usize = 24;
/// Clients that never read, connected for a whole round.
const NON_READING: usize = 10;
/// Bound in bytes on the growth in three rounds: a leak of 3 KiB per attempt exceeds it.
const LEAK: usize = 32 << 20;
/// Bound in bytes on the peak resident memory.
const MOST: usize = 512 << 20;
const MAX_CONNECTIONS: usize = 200;
/// Concurrent calls on one connection, just below its limit.
const BURST: usize = 1_000;
/// Requests of a client that never reads.
const UNREAD: usize = 100;
/// Bound on unsent bytes: a tenth of what these clients request.
const MOST_UNSENT: usize = 8 << 20;

pub fn register(suite: &mut Suite<'_>) {
    suite.single("hostile::20_000_hostile_clients_cause_no_crash_no_leak_and_no_starvation", siege);
    suite.single("hostile::a_connection_without_a_whole_preface_is_closed", silence);
    suite.single("hostile::unread_responses_are_reset", unread_answers);
    suite.single("hostile::unread_responses_leave_memory_for_other_callers", unread_bounded);
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
        // One connection is the bystander's.
        eventually("every hostile connection is gone", async || connections().await == 1.0).await;
        rested.push(memory(&program, "VmRSS:"));
        assert_eq!(health(program.port()).await, ServingStatus::Serving);
    }
    assert!(attempts >= ATTEMPTS, "only {attempts}");
    assert!(bystander.stop().await > 100, "the bystander was served");
    assert!(rested[ROUNDS - 1] < rested[0].max(rested[1]) + LEAK, "it leaks: {rested:?}");
    assert!(memory(&program, "VmHWM:") < MOST, "{}", memory(&program, "VmHWM:"));
    assert!(!program.log().contains("panicked"), "{}", program.log());
    program.signal(Signal::SIGTERM);
    assert_eq!(program.ended().await, Some(0), "and it drains");
}

/// Large responses to small requests: the server closes a connection that sends beyond its window.
async fn many_products(stack: &Stack) -> Vec<i64> {
    let insert = "INSERT INTO products (name, price, description)
        SELECT 'lamp', 9.99, repeat('x', 500) FROM generate_series(1, 150) RETURNING id";
    sqlx::query_scalar(insert).fetch_all(&stack.sql).await.unwrap()
}

/// One round. Returns the number of its connections and requests.
async fn attack(port: u16, round: usize, products: &[i64]) -> usize {
    let count = Arc::new(AtomicUsize::new(0));
    let (mut attackers, mut number) = (JoinSet::new(), round as u64 * 1_000_000);
    let mut non_reading = Vec::new();
    for _ in 0..NON_READING {
        number += 1;
        let mut random = StdRng::seed_from_u64(SEED + number);
        let Some((socket, sent)) = attacks::never_reads(port, &mut random, products).await else {
            continue;
        };
        count.fetch_add(sent, Ordering::Relaxed);
        non_reading.push(socket);
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

/// A regular caller that reads one product repeatedly on a connection of its own.
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

    /// Returns the number of reads, all of which succeeded.
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

/// The value in bytes of this line of /proc/PID/status.
fn memory(program: &Program, line: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
    let found = status.lines().find_map(|found| found.strip_prefix(line)).unwrap();
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
    for length in [0, 1, PREFACE.len() / 2, PREFACE.len() - 1] {
        let mut socket = Socket::connect(program.port()).await.unwrap();
        socket.send(&PREFACE[..length]).await;
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
    let mut non_reading = attacks::unread(program.port(), &products, UNREAD).await;
    let reset = non_reading.ended(UNREAD, HANG).await.expect("each of them, in bounded time");
    // On a busy machine some calls may end at their deadline before a response.
    assert!(reset > 0);
    let mut client = program.client().await;
    assert_eq!(client.get_product(get(products[0])).await.unwrap().into_inner().id, products[0]);
}

async fn unread_bounded(stack: Stack) {
    let products = many_products(&stack).await;
    let limit = MOST_UNSENT.to_string();
    let options = ["--max-unsent-bytes", &limit, "--max-call-time", "60s"];
    let program = Program::serve(&stack, &options).await;
    let mut client = program.client().await;
    client.batch_get_products(batch(&products)).await.unwrap();
    let mut non_reading = Vec::new();
    for _ in 0..NON_READING {
        non_reading.push(attacks::unread(program.port(), &products, UNREAD).await);
    }
    let refused = "hotshelf_shed_total{reason=\"unsent_bytes\"}";
    let unsent = async || {
        let unsent = metric(&program, "hotshelf_unsent_bytes").await;
        assert!(unsent <= MOST_UNSENT as f64, "{unsent}");
        unsent
    };
    eventually("most of their calls are refused", async || {
        unsent().await > 0.0 && metric(&program, refused).await > (NON_READING * UNREAD / 2) as f64
    })
    .await;
    let held = unsent().await;
    assert!(held > MOST_UNSENT as f64 / 2.0, "the limit was not reached: {held}");
    for id in &products {
        client.get_product(get(*id)).await.unwrap();
    }
    // A batch as large as theirs.
    let answer = client.batch_get_products(batch(&products)).await.unwrap().into_inner();
    assert_eq!(answer.products.len(), products.len());
    assert!(unsent().await >= held, "their responses are still unsent");
    drop(non_reading);
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
    // The kernel buffers the calls while the program is stopped.
    let mut caller = attacks::burst(program.port(), id, BURST).await;
    program.signal(Signal::SIGCONT);
    assert_eq!(caller.ended(BURST, HANG).await, Some(0), "no call is reset");
}
