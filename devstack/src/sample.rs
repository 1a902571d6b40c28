//! Plausible products as CSV, the same ones for the same seed.

use std::io::{self, Write};

use rand::rngs::ChaCha8Rng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

mod words;

/// The table of the sample products, as SQL that does nothing where it exists.
pub const TABLE: &str = include_str!("sample/products.sql");

const HEADER: &str = "id,name,price,currency,description";
/// Each equally likely: seven of ten are dollars.
const CURRENCIES: [&str; 10] =
    ["USD", "USD", "USD", "USD", "USD", "USD", "USD", "EUR", "EUR", "GBP"];
/// Ranges of prices in cents, each equally likely: most products are cheap.
const PRICES: [(u32, u32); 4] = [(99, 999), (1_000, 4_999), (5_000, 19_999), (20_000, 199_999)];
const MOST_SENTENCES: usize = 3;

/// Writes a header and the products 1 to `count`, one row at a time: memory does not grow with
/// `count`.
pub fn write_csv(out: impl Write, count: u64, seed: u64) -> io::Result<()> {
    let mut out = io::BufWriter::new(out);
    // A named generator: `StdRng` may change with the next version of the crate.
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    writeln!(out, "{HEADER}")?;
    for id in 1..=count {
        let name = quote(&name(&mut random));
        let (price, currency) = (price(&mut random), pick(&mut random, &CURRENCIES));
        let description = quote(&description(&mut random));
        writeln!(out, "{id},{name},{price},{currency},{description}")?;
    }
    out.flush()
}

fn name(random: &mut ChaCha8Rng) -> String {
    let (material, item) = (pick(random, &words::MATERIALS), pick(random, &words::ITEMS));
    match random.random_range(0..4) {
        0 => format!("{material} {item}"),
        1 => format!("{material} {item}, {}", pick(random, &words::EDITIONS)),
        _ => format!("{material} {item}, {} cm", random.random_range(2..=48) * 5),
    }
}

fn price(random: &mut ChaCha8Rng) -> String {
    let (least, most) = pick(random, &PRICES);
    let cents = random.random_range(least..=most);
    format!("{}.{:02}", cents / 100, cents % 100)
}

fn description(random: &mut ChaCha8Rng) -> String {
    let sentences = random.random_range(1..=MOST_SENTENCES);
    let chosen: Vec<&str> = words::SENTENCES.sample(random, sentences).copied().collect();
    chosen.join(" ")
}

fn pick<T: Copy>(random: &mut ChaCha8Rng, from: &[T]) -> T {
    from[random.random_range(0..from.len())]
}

/// Quotes a field that needs it (RFC 4180).
fn quote(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}
