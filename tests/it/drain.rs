//! Draining: after a stop signal a process finishes accepted calls, ends streams and watches, and exits within its
//! grace period.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;
use hotshelf::proto::{Product, StreamHotKeysRequest, UpdateProductRequest};
use nix::sys::signal::Signal;
use tokio::task::JoinHandle;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::harness::{HANG, Program, Stack, Suite, channel, eventually, get};

pub fn register(suite: &mut Suite<'_>) {
    suite.both("drain::no_accepted_call_fails_when_terminated_under_load", terminated);
    suite.single("drain::no_accepted_call_fails_when_interrupted_under_load", interrupted);
    suite.single("drain::while_it_waits_for_load_balancers_it_serves_and_is_not_ready", delay);
    suite.single("drain::streams_end_with_draining_and_watches_end", streams);
    suite.single("drain::a_call_that_never_ends_does_not_hold_the_process", grace);
}

async fn terminated(stack: Stack) {
    under_load(stack, Signal::SIGTERM).await;
}

async fn interrupted(stack: Stack) {
    under_load(stack, Signal::SIGINT).await;
}

async fn all_hang(stack: &Stack, held: &[JoinHandle<Result<Product, Status>>]) {
    eventually("all of them hang", async || {
        assert!(!held.iter().any(JoinHandle::is_finished), "one of them does not hang");
        let waiting = stack.waiting_statements().await;
        assert!(waiting.len() <= held.len(), "{waiting:#?}");
        waiting.len() == held.len()
    })
    .await;
}

/// Whether the connection was closed before the call was sent, or the call's stream is above the last one of the
/// server's GOAWAY.
fn was_never_accepted(status: &Status) -> bool {
    let mut causes = std::iter::successors(status.source(), |&cause| cause.source());
    causes.any(|cause| {
        let canceled = cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled);
        let refused = cause.downcast_ref::<h2::Error>().is_some_and(|error| {
            error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
        });
        canceled || refused
    })
}

/// Reads over a connection of its own until the signal is sent. All its earlier calls were accepted: the connection
/// was open, and GOAWAY does not end streams that were opened before it.
fn caller(
    program: &Program,
    id: i64,
    signalled: &Arc<AtomicBool>,
    connected: &Arc<AtomicUsize>,
) -> JoinHandle<()> {
    let port = program.port();
    let (signalled, connected) = (Arc::clone(signalled), Arc::clone(connected));
    tokio::spawn(async move {
        let mut client = hotshelf::proto::ProductServiceClient::new(channel(port).await);
        client.get_product(get(id)).await.unwrap();
        connected.fetch_add(1, Ordering::SeqCst);
        while !signalled.load(Ordering::SeqCst) {
            match client.get_product(get(id)).await {
                Err(status) if signalled.load(Ordering::SeqCst) && was_never_accepted(&status) => {}
                read => drop(read.unwrap()),
            }
        }
    })
}

/// No held call ends by a time limit, however slow the machine is.
const UNLIMITED: [&str; 6] =
    ["--database-statement-timeout", "1h", "--max-call-time", "1h", "--drain-grace", "1h"];

async fn under_load(stack: Stack, signal: Signal) {
    const HELD: usize = 6;
    const CALLERS: usize = 20;
    let quick = stack.insert("walnut desk lamp").await;
    let program = Program::serve(&stack, &UNLIMITED).await;
    program.client().await.get_product(get(quick)).await.unwrap();
    let mut ids = Vec::new();
    for n in 0..HELD {
        ids.push(stack.insert(&format!("shelf {n}")).await);
    }
    let lock = stack.lock_products().await;
    let held: Vec<_> = ids.iter().map(|id| hold(&program, *id)).collect();
    all_hang(&stack, &held).await;
    let signalled = Arc::new(AtomicBool::new(false));
    let connected = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> =
        (0..CALLERS).map(|_| caller(&program, quick, &signalled, &connected)).collect();
    eventually("all callers are connected and read", async || {
        let (_, exposition) = program.admin("/metrics").await;
        let handled = exposition.lines().find(|line| {
            line.starts_with("grpc_server_started_total") && line.contains("\"GetProduct\"")
        });
        let count: usize = handled.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
        count > 1_000 && connected.load(Ordering::SeqCst) == CALLERS
    })
    .await;
    signalled.store(true, Ordering::SeqCst);
    program.signal(signal);
    for caller in join_all(callers).await {
        caller.expect("no call fails that was accepted");
    }
    eventually("it drains", async || program.admin("/readyz").await.0 == 503).await;
    lock.rollback().await.unwrap();
    for call in join_all(held).await {
        call.unwrap().expect("accepted before the signal, finished after it");
    }
    assert_eq!(program.ended().await, Some(0));
}

/// A call that waits for the lock: a read for even ids, a write for odd ones.
fn hold(program: &Program, id: i64) -> JoinHandle<Result<Product, Status>> {
    let port = program.port();
    tokio::spawn(async move {
        let mut client = hotshelf::proto::ProductServiceClient::new(channel(port).await);
        if id % 2 == 0 {
            return Ok(client.get_product(get(id)).await?.into_inner());
        }
        let product = Product { id, name: "renamed".to_owned(), ..Product::default() };
        let request = UpdateProductRequest { product: Some(product), ..Default::default() };
        let updated = client.update_product(request).await?.into_inner();
        assert_eq!(updated.name, "renamed");
        Ok(updated)
    })
}

async fn health(port: u16) -> ServingStatus {
    let mut client = HealthClient::new(channel(port).await);
    client.check(HealthCheckRequest::default()).await.unwrap().into_inner().status()
}

async fn delay(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let program = Program::serve(&stack, &["--drain-delay", "1h"]).await;
    let mut before = program.client().await;
    before.get_product(get(id)).await.unwrap();
    assert_eq!(health(program.port()).await, ServingStatus::Serving);
    assert_eq!(program.admin("/readyz").await, (200, "ready\n".to_owned()));
    program.signal(Signal::SIGTERM);
    eventually("it is not ready", async || {
        health(program.port()).await == ServingStatus::NotServing
    })
    .await;
    assert_eq!(program.admin("/readyz").await, (503, "draining\n".to_owned()));
    assert_eq!(program.admin("/livez").await.0, 200, "it is alive");
    before.get_product(get(id)).await.expect("served over a connection from before");
    program.client().await.get_product(get(id)).await.expect("and over a new one");
    program.signal(Signal::SIGTERM);
    assert_eq!(program.ended().await, Some(0), "a second signal ends it at once");
}

async fn streams(stack: Stack) {
    let program = Program::serve(&stack, &[]).await;
    let request = StreamHotKeysRequest {
        interval: Some(prost_types::Duration { seconds: 3_600, nanos: 0 }),
        ..Default::default()
    };
    let mut hot_keys = program.client().await.stream_hot_keys(request).await.unwrap().into_inner();
    hot_keys.message().await.unwrap().expect("a snapshot at once");
    let mut watcher = HealthClient::new(channel(program.port()).await);
    let request = HealthCheckRequest { service: "hotshelf.v1.ProductService".to_owned() };
    let mut health = watcher.watch(request).await.unwrap().into_inner();
    assert_eq!(health.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    program.signal(Signal::SIGTERM);

    let error = tokio::time::timeout(HANG, hot_keys.message()).await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    let details = error.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!((&*info.reason, &*info.domain), ("DRAINING", "hotshelf"));
    assert!(details.retry_info().unwrap().retry_delay.is_some());
    let watched = async {
        let mut last = ServingStatus::Serving;
        while let Ok(Some(change)) = health.message().await {
            last = change.status();
        }
        last
    };
    let last = tokio::time::timeout(HANG, watched).await.expect("the watch ends");
    assert_ne!(last, ServingStatus::Serving);
    assert_eq!(program.ended().await, Some(0));
}

async fn grace(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let arguments =
        ["--drain-grace", "300ms", "--database-statement-timeout", "1h", "--max-call-time", "1h"];
    let program = Program::serve(&stack, &arguments).await;
    let lock = stack.lock_products().await;
    let held = [hold(&program, id)];
    all_hang(&stack, &held).await;
    program.signal(Signal::SIGTERM);
    let [held] = held;
    // The lock is held until the end, so only the grace period can end the process.
    let ended = tokio::time::timeout(HANG, program.ended()).await;
    assert_eq!(ended.expect("within its grace"), Some(0));
    assert!(held.await.unwrap().is_err());
    lock.rollback().await.unwrap();
}
