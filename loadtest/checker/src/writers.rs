//! Writes, by the API and by plain SQL. Confirmations are recorded here. Whether a write that failed was committed all the
//! same, the record in Postgres shows.

use std::sync::Arc;
use std::time::Duration;

use hotshelf::proto::{Money, Product, UpdateProductRequest};
use prost_types::FieldMask;
use rand::RngExt;
use rand::rngs::ChaCha8Rng;
use tonic::Code;

use crate::history::{Ack, Kind, Micros, Request, State, content};
use crate::load::{Load, Mix, Run};
use crate::plan::Keys;
use crate::readers::{failure, probe_after_write};

/// Products of a bulk write.
const BULK: u32 = 5;
/// How long a transaction may stay open after its first statement, in ms.
const OPEN: std::ops::Range<u64> = 0..30;
/// How long a deleted product may stay away, in ms.
const AWAY: std::ops::Range<u64> = 10..500;

const UPDATE: &str = "UPDATE products SET name = $1, price = $2::numeric / 100 WHERE id = $3
    RETURNING id, hotshelf_version";
/// Locks the rows in order, so that two bulk updates cannot deadlock.
const BULK_UPDATE: &str = "WITH locked AS (
        SELECT id FROM products WHERE id = ANY($3) ORDER BY id FOR UPDATE)
    UPDATE products SET name = $1, price = $2::numeric / 100
    FROM locked WHERE products.id = locked.id RETURNING products.id, hotshelf_version";
const DELETE: &str = "DELETE FROM products WHERE id = $1 RETURNING id, hotshelf_version";
const INSERT: &str = "INSERT INTO products (id, name, price) VALUES ($3, $1, $2::numeric / 100)
    RETURNING id, hotshelf_version";

enum Write {
    Api { instance: usize },
    Update,
    Bulk { more: Vec<i64>, open: Option<Duration> },
    Replace { away: Duration },
}

/// Changes of a write, on average.
pub(crate) fn changes(mix: &Mix) -> f64 {
    let Mix { api, update, bulk, replace } = *mix;
    let changed = api + update + bulk * BULK + replace * 2;
    f64::from(changed) / f64::from((api + update + bulk + replace).max(1))
}

/// Writes until the load is stopped.
pub(crate) async fn drive(run: &Arc<Run>, load: &Load) {
    let (mut keys, mut pace) = (Keys::new(load, 2), run.pace(load.write_rate));
    while let Some(due) = pace.next(keys.random()).await {
        let product = run.products[keys.next()];
        let write = plan(run, &load.mix, &mut keys);
        let task_run = Arc::clone(run);
        run.send(run.writers.track_future(async move {
            let due = task_run.clock.at(due);
            if let Err(error) = execute(&task_run, product, write).await {
                task_run.record_failure(format!("SQL: {error}"), Request::Sql, due);
            }
        }));
    }
}

fn plan(run: &Run, mix: &Mix, keys: &mut Keys) -> Write {
    let Mix { api, update, bulk, replace } = *mix;
    let point = keys.random().random_range(0..(api + update + bulk + replace).max(1));
    if point < api {
        return Write::Api { instance: keys.random().random_range(0..run.clients.len()) };
    }
    if point < api + update {
        return Write::Update;
    }
    if point < api + update + bulk {
        let more = (1..BULK).map(|_| run.products[keys.next()]).collect();
        let open = keys.random().random_bool(0.5).then(|| pause(keys.random(), OPEN));
        return Write::Bulk { more, open };
    }
    Write::Replace { away: pause(keys.random(), AWAY) }
}

fn pause(random: &mut ChaCha8Rng, millis: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(random.random_range(millis))
}

async fn execute(run: &Arc<Run>, product: i64, write: Write) -> Result<(), sqlx::Error> {
    let (name, price) = content(run.next_write());
    let sent = run.clock.now();
    match write {
        Write::Api { instance } => by_api(run, instance, product, name, price).await,
        Write::Update => {
            let update = sqlx::query_as(UPDATE).bind(name).bind(price).bind(product);
            confirm(run, sent, &update.fetch_all(&run.sql).await?, false);
        }
        Write::Bulk { mut more, open } => {
            more.push(product);
            let mut transaction = run.sql.begin().await?;
            let update = sqlx::query_as(BULK_UPDATE).bind(name).bind(price).bind(more);
            let written: Vec<(i64, i64)> = update.fetch_all(&mut *transaction).await?;
            if let Some(open) = open {
                tokio::time::sleep(open).await;
            }
            transaction.commit().await?;
            confirm(run, sent, &written, false);
        }
        Write::Replace { away } => {
            let gone = sqlx::query_as(DELETE).bind(product).fetch_all(&run.sql).await?;
            confirm(run, sent, &gone, true);
            if !gone.is_empty() && !stopped_within(run, away).await {
                let (name, price) = content(run.next_write());
                let sent = run.clock.now();
                let insert = sqlx::query_as(INSERT).bind(name).bind(price).bind(product);
                confirm(run, sent, &insert.fetch_all(&run.sql).await?, false);
            }
        }
    }
    Ok(())
}

/// Returns whether the run ended within this time. Then a deleted product stays deleted.
async fn stopped_within(run: &Run, away: Duration) -> bool {
    let mut stopped = run.stopped.clone();
    tokio::time::timeout(away, stopped.wait_for(|stopped| *stopped)).await.is_ok()
}

async fn by_api(run: &Arc<Run>, instance: usize, product: i64, name: String, price: i64) {
    let price = Money {
        currency_code: "USD".to_owned(),
        units: price / 100,
        nanos: i32::try_from(price % 100).unwrap_or_default() * 10_000_000,
    };
    let request = UpdateProductRequest {
        product: Some(Product { id: product, name, price: Some(price), ..Product::default() }),
        update_mask: Some(FieldMask { paths: vec!["name".to_owned(), "price".to_owned()] }),
        expected_version: None,
    };
    let sent = run.clock.now();
    match run.clients[instance].clone().update_product(request).await {
        Ok(response) => {
            let state = State { version: response.into_inner().version, deleted: false };
            acknowledge(run, product, state, Kind::Api, sent);
            probe_after_write(run, product);
        }
        // The product is deleted at this moment.
        Err(status) if status.code() == Code::NotFound => {}
        Err(status) => {
            let request = Request::Update(u8::try_from(instance).unwrap_or(u8::MAX));
            run.record_failure(failure("UpdateProduct", &status), request, sent);
        }
    }
}

fn confirm(run: &Arc<Run>, sent: Micros, written: &[(i64, i64)], deleted: bool) {
    for (product, version) in written {
        let state = State { version: *version, deleted };
        acknowledge(run, *product, state, Kind::Sql, sent);
        probe_after_write(run, *product);
    }
}

fn acknowledge(run: &Run, product: i64, state: State, kind: Kind, sent: Micros) {
    run.record_ack(Ack { product, state, kind, sent, acked: run.clock.now() });
}
