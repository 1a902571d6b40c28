//! Products in the bodies of requests.

use std::collections::BTreeMap;

use prost::Message;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tonic::Status;

use super::price;
use super::product_json::Style;
use super::types::{Types, from_value};
use crate::proto::{Money, Product};
use crate::rpc::status::{self, invalid};

/// A product in a request.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) product: Product,
    /// The fields that the JSON has, as paths of a field mask.
    pub(super) fields: Vec<String>,
    /// Whether the price is a number without a currency.
    pub(super) has_plain_price: bool,
}

/// Reads a product. In either style the price may be a plain number.
///
/// # Errors
/// INVALID_ARGUMENT.
pub(super) fn read(types: &Types, json: &[u8], style: Style) -> Result<Body, Status> {
    let malformed = |why: serde_json::Error| status::malformed(&why.to_string());
    let members: BTreeMap<String, Box<RawValue>> =
        serde_json::from_slice(json).map_err(malformed)?;
    let is_null = |name: &str| members.get(name).is_some_and(|raw| raw.get() == "null");
    // As a product without a price is read.
    let has_no_price = style == Style::Plain && is_null("price") && is_null("currency");
    let (mut object, mut fields) = (Map::new(), Vec::new());
    let (mut money, mut currency) = (None, None);
    for (name, raw) in members {
        if has_no_price && (name == "price" || name == "currency") {
            continue;
        }
        if name == "price"
            && let Some(plain) = price::plain(&raw)
        {
            money = Some(plain?);
            fields.push(name);
            continue;
        }
        if name == "currency" && style == Style::Plain {
            currency = serde_json::from_str::<Option<String>>(raw.get()).map_err(malformed)?;
            continue;
        }
        fields.extend(paths(&name, &raw));
        object.insert(name, serde_json::from_str(raw.get()).map_err(malformed)?);
    }
    let descriptor = types.message("hotshelf.v1.Product").ok_or_else(status::no_such_path)?;
    let encoded = from_value(descriptor, Value::Object(object))?;
    let product = Product::decode(&*encoded);
    let mut product = product.map_err(|why| status::malformed(&why.to_string()))?;
    let has_plain_price = money.is_some() && currency.is_none();
    match (money, currency) {
        (Some(money), Some(currency_code)) => {
            product.price = Some(Money { currency_code, ..money });
        }
        (Some(money), None) => product.price = Some(money),
        (None, Some(_)) => return Err(invalid("product.currency", "needs a price with it")),
        (None, None) => {}
    }
    Ok(Body { product, fields, has_plain_price })
}

/// The paths of a member in a field mask.
fn paths(name: &str, raw: &RawValue) -> Vec<String> {
    if name != "attributes" {
        return vec![path(name)];
    }
    let attributes: Result<BTreeMap<String, &RawValue>, _> = serde_json::from_str(raw.get());
    match attributes {
        Ok(attributes) => {
            attributes.into_keys().map(|name| format!("attributes.`{name}`")).collect()
        }
        Err(_) => vec![name.to_owned()],
    }
}

/// The path of a field: field masks in JSON are in camel case, and names of attributes stay as they are.
pub(super) fn path(name: &str) -> String {
    match name {
        "createTime" => "create_time".to_owned(),
        "updateTime" => "update_time".to_owned(),
        name => name.to_owned(),
    }
}

/// The paths of a field mask in JSON. The name of an attribute in backticks may contain commas.
pub(super) fn mask(text: &str) -> Vec<String> {
    let mut quoted = false;
    let paths = text.split(move |letter| {
        quoted ^= letter == '`';
        letter == ',' && !quoted
    });
    paths.map(str::trim).filter(|name| !name.is_empty()).map(path).collect()
}
