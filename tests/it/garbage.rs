//! Bytes in Redis that are no valid entry: no error for the caller, counted, and replaced.

use hotshelf::pause::Point;
use hotshelf::proto::{BatchGetProductsRequest, Product};

use crate::harness::{HANG, Node, Stack, Suite, get};
use crate::newest_wins::rename;

pub fn register(suite: &mut Suite<'_>) {
    suite.both("garbage::a_read_is_served_counts_it_and_replaces_it", reads);
    suite.both("garbage::a_batch_is_served_counts_it_and_replaces_it", batches);
    suite.both("garbage::an_update_over_it_goes_through", updates);
    suite.both("garbage::a_fill_over_it_goes_through", fills);
}

/// Invalid values of an entry's key.
#[derive(Clone, Copy, Debug)]
enum Garbage {
    Random,
    Empty,
    Truncated,
    OnlyAHead,
    FlippedByte,
    UnknownFormat,
    /// A valid header with a version that no write reaches.
    NewestOfAll,
    List,
    /// A valid entry of another product.
    AnotherProduct,
}

impl Garbage {
    const ALL: [Self; 9] = [
        Self::Random,
        Self::Empty,
        Self::Truncated,
        Self::OnlyAHead,
        Self::FlippedByte,
        Self::UnknownFormat,
        Self::NewestOfAll,
        Self::List,
        Self::AnotherProduct,
    ];

    /// Replaces the entry of `id`, which must exist.
    async fn put(self, stack: &Stack, id: i64) {
        let mut bytes = stack.redis_value(id).await.expect("an entry to replace");
        match self {
            Self::Random => bytes.iter_mut().for_each(|byte| *byte = rand::random()),
            Self::Empty => bytes.clear(),
            Self::Truncated => bytes.truncate(bytes.len() - 7),
            Self::OnlyAHead => bytes.truncate(30),
            Self::FlippedByte => *bytes.last_mut().unwrap() ^= 0x20,
            Self::UnknownFormat => bytes[0] = 2,
            Self::NewestOfAll => bytes[2..10].copy_from_slice(&i64::MAX.to_be_bytes()),
            Self::List => return stack.redis_put_list(id).await,
            Self::AnotherProduct => {
                // The id, after the header, the prefix and the field's tag.
                bytes[36] ^= 1;
                let mut checksum = crc32fast::Hasher::new();
                checksum.update(&bytes[..26]);
                checksum.update(&bytes[30..]);
                bytes[26..30].copy_from_slice(&checksum.finalize().to_be_bytes());
            }
        }
        stack.redis_put(id, &bytes).await;
    }
}

/// An instance that reads Redis for each call, and only for calls.
async fn node(stack: &Stack) -> Node {
    stack
        .node_with(|args| {
            args.caching.max_staleness = std::time::Duration::ZERO;
            args.caching.hot_lease = std::time::Duration::ZERO;
            args.caching.refresh_keys = 0;
        })
        .await
}

async fn corrupt(node: &Node) -> f64 {
    node.metric("hotshelf_redis_corrupt_total").await
}

async fn assert_redis_holds(stack: &Stack, product: &Product, after: Garbage) {
    let held = stack.redis_revision(product.id).await;
    assert_eq!(held, Some((product.version, false)), "Redis after {after:?}");
}

async fn reads(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let node = node(&stack).await;
    let product = node.product(id).await;
    for (garbage, count) in Garbage::ALL.into_iter().zip(1_u8..) {
        garbage.put(&stack, id).await;
        assert_eq!(node.product(id).await, product, "{garbage:?}");
        assert_eq!(corrupt(&node).await, f64::from(count), "{garbage:?} is counted once");
        assert_redis_holds(&stack, &product, garbage).await;
    }
}

async fn batches(stack: Stack) {
    let node = node(&stack).await;
    let mut products = Vec::new();
    for garbage in Garbage::ALL {
        let id = stack.insert(&format!("{garbage:?}")).await;
        products.push(node.product(id).await);
        garbage.put(&stack, id).await;
    }
    let sound = stack.insert("walnut desk lamp").await;
    products.push(node.product(sound).await);
    let ids = products.iter().map(|product| product.id).collect();
    let request = BatchGetProductsRequest { ids, ..Default::default() };
    let batch = node.client.clone().batch_get_products(request).await.unwrap().into_inner();
    assert_eq!(batch.products, products);
    assert_eq!(corrupt(&node).await, f64::from(u8::try_from(Garbage::ALL.len()).unwrap()));
    for (product, garbage) in products.iter().zip(Garbage::ALL) {
        assert_redis_holds(&stack, product, garbage).await;
    }
}

async fn updates(stack: Stack) {
    let id = stack.insert("walnut desk lamp").await;
    let (a, b) = tokio::join!(node(&stack), node(&stack));
    a.product(id).await;
    for garbage in Garbage::ALL {
        garbage.put(&stack, id).await;
        let renamed = rename(&a, id, &format!("{garbage:?}")).await;
        assert_eq!(b.product(id).await, renamed, "through another instance");
        assert_redis_holds(&stack, &renamed, garbage).await;
        let again = rename(&b, id, "again").await;
        assert_redis_holds(&stack, &again, garbage).await;
        assert_eq!(a.product(id).await, again);
    }
}

/// The garbage is stored between the load's read of Redis and its fill.
async fn fills(stack: Stack) {
    let node = node(&stack).await;
    for garbage in Garbage::ALL {
        let id = stack.insert(&format!("{garbage:?}")).await;
        node.product(id).await;
        let entry = stack.redis_value(id).await.unwrap();
        stack.redis_evict(id).await;
        let mut held = node.pauses.arm(Point::LoadedFromPostgres);
        let mut client = node.client.clone();
        let read = tokio::spawn(async move { client.get_product(get(id)).await });
        let paused = tokio::time::timeout(HANG, held.recv()).await.unwrap().unwrap();
        node.pauses.release(Point::LoadedFromPostgres);
        stack.redis_put(id, &entry).await;
        garbage.put(&stack, id).await;
        drop(paused);
        let read = tokio::time::timeout(HANG, read).await.unwrap().unwrap();
        let product = read.unwrap().into_inner();
        assert_eq!(product.name, format!("{garbage:?}"));
        assert_redis_holds(&stack, &product, garbage).await;
    }
}
