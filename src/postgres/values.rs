//! The values of a write: one JSON object, from which each column takes its value by its own type.

use serde_json::{Map, Value};
use sqlx::SqlStr;

use super::attempts::Kind;
use super::columns::Column;
use super::error::{Refusal, code};
use super::mapping::Mapping;
use super::statements::Statements;
use super::writes::{Statement, Write};
use super::{Error, Refused};
use crate::product::{Attributes, AttributesPatch, Invalid, NewPrice, NewProduct, Patch};

/// The columns of a constraint, or of a unique index that is no constraint.
const CONSTRAINED: &str = "SELECT a.attname::text FROM pg_attribute AS a \
    WHERE a.attrelid = to_regclass($1) AND (a.attnum = ANY( \
            SELECT unnest(conkey) FROM pg_constraint WHERE conrelid = to_regclass($1) AND conname = $2) \
        OR a.attnum = ANY(SELECT unnest(indkey::smallint[]) FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid \
            WHERE indrelid = to_regclass($1) AND relname = $2))";

pub(super) struct Values {
    pub(super) json: String,
    /// The same, by the names of the columns.
    values: Map<String, Value>,
    /// The columns among them that are attributes.
    attributes: usize,
    pub(super) update: SqlStr,
    pub(super) create: SqlStr,
}

impl Values {
    pub(super) fn of_patch(statements: &Statements, patch: &Patch) -> Result<Self, Error> {
        let mapping = &statements.mapping;
        let mut values = Map::new();
        let name = patch.name.as_ref().map(|name| name.as_str());
        put(&mut values, "name", mapping.name.as_ref(), name)?;
        if let Some(price) = patch.price {
            put_price(&mut values, mapping, price)?;
        }
        let description = patch.description.as_ref().map(|text| text.as_str());
        put(&mut values, "description", mapping.description.as_ref(), description)?;
        Self::new(statements, values, &patched(mapping, &patch.attributes))
    }

    pub(super) fn of_new(statements: &Statements, product: &NewProduct) -> Result<Self, Error> {
        let mapping = &statements.mapping;
        let mut values = Map::new();
        put(&mut values, "name", mapping.name.as_ref(), Some(product.name.as_str()))?;
        put_price(&mut values, mapping, NewPrice::Money(product.price))?;
        let description = product.description.as_str();
        let description =
            (mapping.description.is_some() || !description.is_empty()).then_some(description);
        put(&mut values, "description", mapping.description.as_ref(), description)?;
        let attributes = product.attributes.clone().unwrap_or_default();
        Self::new(statements, values, &attributes.0)
    }

    fn new(
        statements: &Statements,
        mut values: Map<String, Value>,
        attributes: &Map<String, Value>,
    ) -> Result<Self, Error> {
        let known = &statements.mapping.attributes;
        let columns = attributes.keys().map(|name| {
            let column = known.iter().find(|column| column.name == *name);
            let invalid = |why: String| Error::Invalid(format!("attributes.{name}"), why);
            match column {
                None => Err(invalid("is no attribute of the table".to_owned())),
                Some(column) if column.computed => {
                    Err(invalid("is computed by the database, and cannot be written".to_owned()))
                }
                Some(column) => Ok(column),
            }
        });
        let columns: Vec<&Column> = columns.collect::<Result<_, _>>()?;
        values.extend(attributes.iter().map(|(name, value)| (name.clone(), value.clone())));
        let (update, create) = match columns.is_empty() {
            true => (statements.update.clone(), statements.create.clone()),
            false => (statements.update_with(&columns), statements.create_with(&columns)),
        };
        let json = Value::Object(values.clone()).to_string();
        Ok(Self { json, values, attributes: columns.len(), update, create })
    }

    /// The statement stays prepared unless it is for a set of attributes, of which there are too many.
    pub(super) fn query(&self, statement: &SqlStr) -> Statement<'_> {
        sqlx::query(statement.clone()).persistent(self.attributes == 0)
    }
}

/// The attributes that a patch sets. One that is named and not given becomes NULL.
fn patched(mapping: &Mapping, patch: &AttributesPatch) -> Map<String, Value> {
    let mut values = match patch.replace_all {
        true => {
            let writable = mapping.attributes.iter().filter(|column| !column.computed);
            writable.map(|column| (column.name.clone(), Value::Null)).collect()
        }
        false => Map::new(),
    };
    let Attributes(given) = &patch.values;
    values.extend(given.iter().map(|(name, value)| (name.clone(), value.clone())));
    values
}

fn put(
    values: &mut Map<String, Value>,
    field: &str,
    column: Option<&Column>,
    value: Option<&str>,
) -> Result<(), Error> {
    let Some(value) = value else { return Ok(()) };
    let invalid = |why: &str| Error::Invalid(field.to_owned(), why.to_owned());
    let column = column.ok_or_else(|| invalid("has no column in the table"))?;
    if column.computed {
        return Err(invalid("is computed by the database, and cannot be written"));
    }
    values.insert(column.name.clone(), value.into());
    Ok(())
}

fn put_price(
    values: &mut Map<String, Value>,
    mapping: &Mapping,
    price: NewPrice,
) -> Result<(), Error> {
    let invalid =
        |field: &'static str| move |why: Invalid| Error::Invalid(field.to_owned(), why.to_string());
    let (hundredths, currency) = match price {
        NewPrice::Money(price) => (price.hundredths(), Some(price.currency())),
        NewPrice::Amount(amount) => (amount.hundredths(), None),
    };
    if let Some(currency) = currency {
        mapping.check_currency(currency).map_err(invalid("price.currency_code"))?;
    }
    let amount = mapping.amount(hundredths).map_err(invalid("price.nanos"))?;
    put(values, "price", mapping.price.as_ref(), Some(&amount))?;
    match (&mapping.currency, &currency) {
        (Some(column), Some(currency)) => {
            put(values, "price.currency_code", Some(column), Some(currency.code()))
        }
        _ => Ok(()),
    }
}

impl Write<'_> {
    /// Names the field that is the reason of an error, as far as it can be found. The error itself is more important than the
    /// search, so a search that fails is ignored.
    pub(super) async fn explain(&mut self, error: Error, values: &Values) -> Error {
        match error {
            Error::Refused(refused) => Error::Refused(self.with_field(refused, values).await),
            // The caller may repeat the write, with statements that are built anew.
            Error::TableChanged(why) => match self.postgres.open_catalogue().await {
                Ok(()) => Error::Unavailable(why),
                Err(error) => error,
            },
            error => error,
        }
    }

    async fn with_field(&mut self, refused: Refused, values: &Values) -> Refused {
        let mut field = match (&refused.column, &refused.constraint) {
            (Some(column), _) => field(&self.statements.mapping, column),
            (None, Some(constraint)) => self.constrained_field(constraint).await,
            (None, None) => None,
        };
        if field.is_some() {
            return Refused { field, ..refused };
        }
        // Also the constraint of a domain, which is none of the table.
        field = self.inconvertible_field(values).await;
        let what = if field.is_some() { Refusal::Value } else { refused.what };
        Refused { field, what, ..refused }
    }

    /// The field of a constraint of one column.
    async fn constrained_field(&mut self, constraint: &str) -> Option<String> {
        let table = self.statements.mapping.quoted_table();
        let attempts = self.attempts(Kind::Read);
        let connection = self.connection().await.ok()?;
        let columns = sqlx::query_scalar(CONSTRAINED).bind(table).bind(constraint);
        let outcome = attempts.in_time(columns.fetch_all(&mut **connection)).await;
        connection.record_outcome(&outcome);
        let columns: Vec<String> = outcome.ok()?;
        match &columns[..] {
            [column] => field(&self.statements.mapping, column),
            _ => None,
        }
    }

    /// The field whose value the type of its column does not accept: the message of PostgreSQL does not name the column.
    async fn inconvertible_field(&mut self, values: &Values) -> Option<String> {
        let statements = std::sync::Arc::clone(&self.statements);
        for column in statements.mapping.columns() {
            let Some(value) = values.values.get(&column.name) else { continue };
            let one = Value::Object(Map::from_iter([(column.name.clone(), value.clone())]));
            let statement = statements.convert(column);
            let attempts = self.attempts(Kind::Read);
            let connection = self.connection().await.ok()?;
            let convert = sqlx::query(statement).persistent(false).bind(one.to_string());
            let outcome = attempts.in_time(convert.execute(&mut **connection)).await;
            connection.record_outcome(&outcome);
            match outcome {
                Ok(_) => {}
                Err(error)
                    if code(&error)
                        .is_some_and(|code| code.starts_with("22") || code.starts_with("23")) =>
                {
                    return field(&self.statements.mapping, &column.name);
                }
                Err(_) => return None,
            }
        }
        None
    }
}

/// The path of a column in a product.
fn field(mapping: &Mapping, column: &str) -> Option<String> {
    let is = |mapped: &Option<Column>| mapped.as_ref().is_some_and(|mapped| mapped.name == column);
    if mapping.attributes.iter().any(|attribute| attribute.name == column) {
        return Some(format!("attributes.{column}"));
    }
    let fields = [
        (&mapping.name, "name"),
        (&mapping.price, "price"),
        (&mapping.currency, "price.currency_code"),
        (&mapping.description, "description"),
    ];
    fields.into_iter().find(|(mapped, _)| is(mapped)).map(|(_, field)| field.to_owned())
}
