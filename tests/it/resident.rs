//! The resident memory of the program in a long run of loads, evictions and replacements.

use std::time::{Duration, Instant};

use hotshelf::proto::{
    BatchGetProductsRequest, Product, ProductServiceClient, UpdateProductRequest,
};
use rand::RngExt;
use tonic::transport::Channel;

use crate::harness::{Program, Stack, Suite, get};

/// Ten times the hot capacity.
const PRODUCTS: i64 = 40_000;
const HOT_CAPACITY: &str = "4000";
const CALLERS: usize = 16;
const WARM_UP: Duration = Duration::from_secs(60);
const MEASURED: Duration = Duration::from_secs(180);
/// Allocators keep some freed memory; a leak of 100 bytes per call would be ten times this.
const SLACK_KIB: u64 = 32 * 1024;

pub fn register(suite: &mut Suite<'_>) {
    if cfg!(target_os = "linux") {
        suite.long_single("resident::soak_memory_does_not_grow_over_a_long_run", soak);
    }
}

async fn soak(stack: Stack) {
    // Products of 300 bytes to 16 KiB.
    let insert = "INSERT INTO products (name, price, description) \
         SELECT 'lamp', 9.99, repeat('x', (250 + n * 7919 % 16000)::integer) FROM generate_series(1, $1) n";
    sqlx::query(insert).bind(PRODUCTS).execute(&stack.sql).await.unwrap();
    let program = Program::serve(&stack, &["--hot-capacity", HOT_CAPACITY]).await;
    let (client, until) = (program.client().await, Instant::now() + WARM_UP + MEASURED);
    let callers: Vec<_> = (0..CALLERS).map(|_| tokio::spawn(call(client.clone(), until))).collect();
    tokio::time::sleep(WARM_UP).await;
    let warm = resident_kib(&program);
    let mut largest = warm;
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_secs(15)).await;
        largest = largest.max(resident_kib(&program));
    }
    let mut calls = 0;
    for caller in callers {
        calls += caller.await.unwrap();
    }
    let end = resident_kib(&program);
    println!("{calls} calls: {warm} KiB resident when warm, {end} at the end, {largest} at most");
    assert!(largest <= warm + warm / 5 + SLACK_KIB, "it grows");
}

/// Reads all products uniformly, so that nearly every read evicts; updates some, so that sizes change. Returns the
/// number of calls.
async fn call(mut client: ProductServiceClient<Channel>, until: Instant) -> u64 {
    let mut calls = 0;
    while Instant::now() < until {
        let id = rand::rng().random_range(1..=PRODUCTS);
        let kind = rand::rng().random_range(0..100);
        match kind {
            0..10 => {
                let ids = (0..20).map(|n| (id + n * 997) % PRODUCTS + 1).collect();
                let request = BatchGetProductsRequest { ids, ..Default::default() };
                client.batch_get_products(request).await.unwrap();
            }
            10..12 => {
                let length = rand::rng().random_range(0..16_000);
                let description = "y".repeat(length);
                let product = Product { id, description, ..Default::default() };
                let paths = vec!["description".to_owned()];
                let update_mask = Some(prost_types::FieldMask { paths });
                let request = UpdateProductRequest {
                    product: Some(product),
                    update_mask,
                    expected_version: None,
                };
                client.update_product(request).await.unwrap();
            }
            _ => drop(client.get_product(get(id)).await.unwrap()),
        }
        calls += 1;
    }
    calls
}

fn resident_kib(program: &Program) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
