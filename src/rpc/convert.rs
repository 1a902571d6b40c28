//! Converts requests to domain types and refuses invalid values with INVALID_ARGUMENT, which names the field.

mod attributes;

use std::collections::HashSet;
use std::time::Duration;

use ahash::RandomState;
use tonic::Status;

use super::status::invalid;
use crate::entry::Freshness;
use crate::moment::Moment;
use crate::product::{
    Amount, Currency, Description, Name, NewPrice, NewProduct, Patch, Price, ProductId, Version,
};
use crate::proto::get_product_request::Freshness as RequestedFreshness;
use crate::proto::{CreateProductRequest, Money, Product, UpdateProductRequest};
use attributes::Named;

/// Most ids of a batch.
pub(super) const MAX_BATCH: usize = 1_000;
/// The `nanos` of one hundredth of a currency unit.
const HUNDREDTH: i32 = 10_000_000;

pub(super) fn id(field: &str, id: i64) -> Result<ProductId, Status> {
    ProductId::new(id).ok_or_else(|| invalid(field, "must be 1 or more"))
}

/// The ids of a batch in the order of the request, without duplicates.
pub(super) fn ids(ids: &[i64]) -> Result<Vec<ProductId>, Status> {
    if ids.is_empty() || ids.len() > MAX_BATCH {
        return Err(invalid(
            "ids",
            format!("must have 1 to {MAX_BATCH} elements, not {}", ids.len()),
        ));
    }
    let mut seen = HashSet::with_capacity_and_hasher(ids.len(), RandomState::new());
    let mut unique = Vec::with_capacity(ids.len());
    for (place, number) in ids.iter().enumerate() {
        // The field's name is formatted only for an error.
        let id =
            ProductId::new(*number).map_or_else(|| id(&format!("ids[{place}]"), *number), Ok)?;
        if seen.insert(id) {
            unique.push(id);
        }
    }
    Ok(unique)
}

/// Size of the largest response to a batch that the caller accepts.
pub(super) fn max_response_bytes(requested: i32) -> Result<usize, Status> {
    /// The default limit of gRPC clients.
    const DEFAULT: usize = 4 << 20;
    match usize::try_from(requested) {
        Ok(0) => Ok(DEFAULT),
        Ok(bytes) => Ok(bytes),
        Err(_) => Err(invalid("max_response_bytes", "must be 0 or more")),
    }
}

pub(super) fn freshness(requested: Option<RequestedFreshness>) -> Result<Freshness, Status> {
    match requested {
        None | Some(RequestedFreshness::Latest(false)) => Ok(Freshness::Cached),
        Some(RequestedFreshness::Latest(true)) => Ok(Freshness::KnownSince(Moment::now())),
        Some(RequestedFreshness::MaxStaleness(duration)) => known_since(duration),
        Some(RequestedFreshness::MinVersion(version)) => {
            let version = positive("min_version", version)?;
            Ok(Freshness::MinVersion { version, arrived: Moment::now() })
        }
    }
}

pub(super) fn batch_freshness(
    max_staleness: Option<prost_types::Duration>,
    latest: bool,
) -> Result<Freshness, Status> {
    match max_staleness {
        _ if latest => Ok(Freshness::KnownSince(Moment::now())),
        Some(duration) => known_since(duration),
        None => Ok(Freshness::Cached),
    }
}

fn known_since(duration: prost_types::Duration) -> Result<Freshness, Status> {
    let age = non_negative_duration("max_staleness", duration)?;
    Ok(Freshness::KnownSince(Moment::now().before(age)))
}

pub(super) fn non_negative_duration(
    field: &str,
    duration: prost_types::Duration,
) -> Result<Duration, Status> {
    Duration::try_from(duration).map_err(|_| invalid(field, "must be a duration of 0 or more"))
}

pub(super) fn expected_version(version: Option<i64>) -> Result<Option<Version>, Status> {
    version.map(|version| positive("expected_version", version)).transpose()
}

fn positive(field: &str, version: i64) -> Result<Version, Status> {
    if version < 1 {
        return Err(invalid(field, "must be 1 or more"));
    }
    Ok(Version(version))
}

pub(super) fn new_product(request: CreateProductRequest) -> Result<NewProduct, Status> {
    let product = request.product.ok_or_else(|| invalid("product", "must be given"))?;
    if product.id != 0 {
        return Err(invalid("product.id", "must not be given: the service assigns it"));
    }
    Ok(NewProduct {
        name: name(product.name)?,
        price: price(product.price)?,
        description: description(product.description)?,
        attributes: attributes::given(product.attributes)?,
    })
}

/// Marks an update, in the extensions of its request, whose price has no currency: the product keeps its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeepCurrency;

/// The id of the product to update, and the changes: the fields in the mask, or without a mask the populated ones.
pub(super) fn patch(
    request: UpdateProductRequest,
    keep_currency: bool,
) -> Result<(ProductId, Patch), Status> {
    let product = request.product.ok_or_else(|| invalid("product", "must be given"))?;
    let id = id("product.id", product.id)?;
    let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
    let fields = match paths.is_empty() {
        true => populated(&product),
        false => masked(&paths, product.attributes.is_some())?,
    };
    let patch = Patch {
        name: fields.name.then(|| name(product.name)).transpose()?,
        price: fields.price.then(|| new_price(product.price, keep_currency)).transpose()?,
        description: fields.description.then(|| description(product.description)).transpose()?,
        attributes: attributes::patch(&fields.attributes, attributes::given(product.attributes)?),
    };
    if patch == Patch::default() {
        return Err(invalid(
            "update_mask",
            "names nothing that can be changed: name, price, description, attributes",
        ));
    }
    Ok((id, patch))
}

#[derive(Default)]
struct Fields {
    name: bool,
    price: bool,
    description: bool,
    attributes: Named,
}

/// Without a mask the populated fields are updated (AIP-134).
fn populated(product: &Product) -> Fields {
    Fields {
        name: !product.name.is_empty(),
        price: product.price.is_some(),
        description: !product.description.is_empty(),
        attributes: Named { all: false, names: attribute_names(product) },
    }
}

fn attribute_names(product: &Product) -> Vec<String> {
    let fields = product.attributes.iter().flat_map(|given| given.fields.keys());
    fields.cloned().collect()
}

fn masked(paths: &[String], has_attributes: bool) -> Result<Fields, Status> {
    let mut fields = Fields::default();
    for path in paths {
        match path.as_str() {
            "*" if paths.len() == 1 => {
                // A caller that does not know of attributes keeps them.
                let attributes = Named { all: has_attributes, ..Named::default() };
                fields = Fields { name: true, price: true, description: true, attributes };
            }
            "name" => fields.name = true,
            "price" => fields.price = true,
            "description" => fields.description = true,
            "attributes" => fields.attributes.all = true,
            // Output-only fields are ignored (AIP-203).
            "id" | "version" | "create_time" | "update_time" => {}
            "*" => return Err(invalid("update_mask", "\"*\" must stand alone")),
            other => {
                if let Some(name) = attributes::name_in(other) {
                    fields.attributes.names.push(name.to_owned());
                    continue;
                }
                let shown: String = other.chars().take(50).collect();
                return Err(invalid(
                    "update_mask",
                    format!("\"{shown}\" is not a field of a product"),
                ));
            }
        }
    }
    Ok(fields)
}

fn name(name: String) -> Result<Name, Status> {
    Name::try_from(name).map_err(|why| invalid("product.name", why.to_string()))
}

fn description(text: String) -> Result<Description, Status> {
    Description::try_from(text).map_err(|why| invalid("product.description", why.to_string()))
}

fn new_price(money: Option<Money>, keep_currency: bool) -> Result<NewPrice, Status> {
    match money {
        Some(money) if keep_currency => amount(&money).map(NewPrice::Amount),
        money => price(money).map(NewPrice::Money),
    }
}

fn price(money: Option<Money>) -> Result<Price, Status> {
    let money = money.ok_or_else(|| invalid("product.price", "must be given"))?;
    let currency: Currency =
        money.currency_code.parse().map_err(|why: crate::product::Invalid| {
            invalid("product.price.currency_code", why.to_string())
        })?;
    Ok(Price::of(amount(&money)?, currency))
}

fn amount(money: &Money) -> Result<Amount, Status> {
    if money.units < 0 || money.nanos < 0 {
        return Err(invalid("product.price", "must not be negative"));
    }
    if money.nanos > 999_999_999 {
        return Err(invalid("product.price.nanos", "must be 999999999 or less"));
    }
    if money.nanos % HUNDREDTH != 0 {
        return Err(invalid("product.price.nanos", "must not have more than two decimals"));
    }
    let hundredths = money
        .units
        .checked_mul(100)
        .and_then(|hundredths| hundredths.checked_add(i64::from(money.nanos / HUNDREDTH)))
        .unwrap_or(i64::MAX);
    Amount::new(hundredths).map_err(|why| invalid("product.price.units", why.to_string()))
}
