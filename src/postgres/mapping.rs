//! The mapping of an attached table: which of its columns are the fields of a product.

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{FromRow, Row as _};

use super::Error;
use super::columns::{Column, columns_of};
use super::error::read_error;
use super::quote::{ident, literal};
use crate::findings::Finding;
use crate::product::{Currency, Invalid};

/// The name of the check of the table and its mapping.
pub(super) const TABLE: &str = "table";

const CATALOGUES: &str = "SELECT c.number, c.name, c.relation::oid::bigint AS relation, n.nspname::text, r.relname::text, \
        c.price_decimals, c.currency, c.all_attributes, c.epoch::text \
    FROM hotshelf.catalogue AS c LEFT JOIN pg_class AS r ON r.oid = c.relation \
        LEFT JOIN pg_namespace AS n ON n.oid = r.relnamespace ORDER BY c.number";
const MAPPED: &str = "SELECT role, name, relation_oid::bigint AS relation_oid, attnum FROM hotshelf.mapped_column WHERE catalogue = $1";
/// The sequence of a serial or identity column, or that of the default of the column.
const SEQUENCE: &str = "SELECT coalesce(pg_get_serial_sequence($2, $3), ( \
        SELECT dependency.refobjid::regclass::text FROM pg_attrdef AS value \
        JOIN pg_depend AS dependency ON dependency.classid = 'pg_attrdef'::regclass AND dependency.objid = value.oid \
            AND dependency.refclassid = 'pg_class'::regclass \
        JOIN pg_class AS sequence ON sequence.oid = dependency.refobjid AND sequence.relkind = 'S' \
        WHERE value.adrelid = $1::bigint::oid AND value.adnum = $4 LIMIT 1))";

/// An attached table, its columns, and what else the statements depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    /// The number of the catalogue, which is in each row of the outbox.
    pub(super) number: i32,
    pub(super) catalogue: String,
    /// The schema and the name of the table.
    pub(super) table: (String, String),
    pub(super) id: Column,
    pub(super) name: Option<Column>,
    pub(super) price: Option<Column>,
    pub(super) currency: Option<Column>,
    pub(super) description: Option<Column>,
    pub(super) create_time: Option<Column>,
    pub(super) update_time: Option<Column>,
    pub(super) attributes: Vec<Column>,
    /// A price counts units of 10 to the power of minus this; `None`: it is a numeric.
    pub(super) price_decimals: Option<u32>,
    /// The currency of all prices, unless a column is mapped.
    pub(super) fixed_currency: Option<Currency>,
    /// The sequence of the ids, qualified and quoted.
    pub(super) sequence: Option<String>,
    /// Mapped columns that the table lacks: they are served as unset.
    pub(super) missing: Vec<String>,
    /// Columns of the table that are not mapped.
    pub(super) unmapped: Vec<String>,
    /// Whether a column that is added becomes an attribute when the table is attached again.
    pub(super) all_attributes: bool,
    /// Mapped columns whose type is now one that their field cannot have, as `column (type)`: they are served as unset.
    pub(super) retyped: Vec<String>,
    /// The name that the id column had when the table was attached, if it has another now.
    pub(super) id_was: Option<String>,
    /// Replaced whenever the table is attached again.
    pub(super) epoch: String,
}

struct CatalogueRow {
    number: i32,
    name: String,
    relation: i64,
    nspname: Option<String>,
    relname: Option<String>,
    price_decimals: Option<i16>,
    currency: Option<String>,
    all_attributes: bool,
    epoch: String,
}

struct MappedRow {
    role: String,
    name: String,
    relation_oid: i64,
    attnum: i16,
}

impl FromRow<'_, PgRow> for CatalogueRow {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            number: row.try_get("number")?,
            name: row.try_get("name")?,
            relation: row.try_get("relation")?,
            nspname: row.try_get("nspname")?,
            relname: row.try_get("relname")?,
            price_decimals: row.try_get("price_decimals")?,
            currency: row.try_get("currency")?,
            all_attributes: row.try_get("all_attributes")?,
            epoch: row.try_get("epoch")?,
        })
    }
}

impl FromRow<'_, PgRow> for MappedRow {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let (role, name) = (row.try_get("role")?, row.try_get("name")?);
        let (relation_oid, attnum) = (row.try_get("relation_oid")?, row.try_get("attnum")?);
        Ok(Self { role, name, relation_oid, attnum })
    }
}

impl Mapping {
    /// The qualified name of the table, quoted.
    pub(super) fn quoted_table(&self) -> String {
        format!("{}.{}", ident(&self.table.0), ident(&self.table.1))
    }

    /// What has become of the table since it was attached.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let (schema, table) = &self.table;
        let remedy = format!("run hotshelf attach --again {schema}.{table}");
        let mut found = Vec::new();
        let mut changed = |what: String, cost: &str| {
            let what = format!("the table {schema}.{table} {what}");
            found.push(Finding::warning(TABLE, &what, cost, &remedy));
        };
        if !self.missing.is_empty() {
            let columns = self.missing.join(", ");
            changed(format!("lacks mapped columns ({columns})"), "they are served as unset");
        }
        if !self.retyped.is_empty() {
            let columns = self.retyped.join(", ");
            let what = format!("has columns of types that their fields cannot have: {columns}");
            changed(what, "they are served as unset");
        }
        if self.all_attributes && !self.unmapped.is_empty() {
            let columns = self.unmapped.join(", ");
            let what = format!("has columns that were added since it was attached ({columns})");
            changed(what, "they are not served");
        }
        if let Some(was) = &self.id_was {
            let id = &self.id.name;
            let what = format!("the id column {was} of {schema}.{table} was renamed to {id}");
            let cost = "every write to the table fails, also by SQL";
            found.push(Finding::error(TABLE, &what, cost, &remedy));
        }
        if found.is_empty() {
            let columns = self.columns().count() + 1 - self.attributes.len();
            let (catalogue, attributes) = (&self.catalogue, self.attributes.len());
            found.push(Finding::fine(
                TABLE,
                format!("{schema}.{table} as the catalogue {catalogue}: {columns} columns, {attributes} attributes"),
            ));
        }
        found
    }

    /// The text of a price for its column.
    ///
    /// # Errors
    /// When the column would round it.
    pub(super) fn amount(&self, hundredths: i64) -> Result<String, Invalid> {
        let column = self.price.as_ref();
        let kept = self.price_decimals.map(u32::cast_signed).or(column.and_then(Column::decimals));
        let kept = kept.unwrap_or(2).clamp(-9, 9);
        let unit = 10_i64.pow(u32::try_from(2 - kept).unwrap_or(0));
        if hundredths % unit != 0 {
            let decimals = kept.max(0);
            return Err(Invalid::new(format!(
                "must not have more than {decimals} decimals, which is what the table keeps"
            )));
        }
        Ok(match self.price_decimals {
            None => format!("{}.{:02}", hundredths / 100, hundredths % 100),
            Some(0..=2) => (hundredths / unit).to_string(),
            Some(more) => (hundredths * 10_i64.pow(more.min(9) - 2)).to_string(),
        })
    }

    /// Whether the table can keep prices in this currency.
    ///
    /// # Errors
    /// When all of its prices are in another one.
    pub(super) fn check_currency(&self, currency: Currency) -> Result<(), Invalid> {
        match self.fixed_currency.filter(|_| self.currency.is_none()) {
            Some(fixed) if fixed != currency => Err(Invalid::new(format!(
                "must be {}, the currency of all prices of the table",
                fixed.code()
            ))),
            _ => Ok(()),
        }
    }

    /// All mapped columns but the id.
    pub(super) fn columns(&self) -> impl Iterator<Item = &Column> {
        let fields = [&self.name, &self.price, &self.currency, &self.description];
        let times = [&self.create_time, &self.update_time];
        fields.into_iter().chain(times).flatten().chain(&self.attributes)
    }

    /// The sequence of the ids as an expression.
    pub(super) fn sequence(&self) -> String {
        match &self.sequence {
            Some(sequence) => format!("{}::regclass", literal(sequence)),
            None => "NULL::regclass".to_owned(),
        }
    }

    /// Reads the mapping of a catalogue: of the one with this name, or of the only one when the name is empty.
    pub(super) async fn read(
        connection: &mut PgConnection,
        catalogue: &str,
    ) -> Result<Self, Error> {
        let catalogues = sqlx::query_as(CATALOGUES).fetch_all(&mut *connection).await;
        let catalogues: Vec<CatalogueRow> = catalogues.map_err(|error| read_error(&error))?;
        let row = choose(catalogues, catalogue)?;
        let (Some(schema), Some(table)) = (row.nspname.clone(), row.relname.clone()) else {
            return Err(Error::Unexpected(format!(
                "the table of the catalogue {} was dropped; run hotshelf detach --catalog {} and attach another",
                row.name, row.name
            )));
        };
        let columns = columns_of(connection, row.relation).await;
        let columns = columns.map_err(|error| read_error(&error))?;
        let mapped = sqlx::query_as(MAPPED).bind(row.number).fetch_all(&mut *connection).await;
        let mapped: Vec<MappedRow> = mapped.map_err(|error| read_error(&error))?;
        let relation = row.relation;
        let mut mapping = resolve(row, (schema, table), &mapped, &columns)?;
        let sequence = sqlx::query_scalar(SEQUENCE).bind(relation).bind(mapping.quoted_table());
        let sequence = sequence.bind(&mapping.id.name).bind(mapping.id.attnum);
        let sequence = sequence.fetch_one(connection).await;
        mapping.sequence = sequence.map_err(|error| read_error(&error))?;
        Ok(mapping)
    }
}

pub(super) fn not_attached() -> Error {
    let why = "no table is attached to this database; run hotshelf attach TABLE";
    Error::NotAttached(why.to_owned())
}

fn choose(catalogues: Vec<CatalogueRow>, wanted: &str) -> Result<CatalogueRow, Error> {
    let names: Vec<String> = catalogues.iter().map(|row| row.name.clone()).collect();
    let names = names.join(", ");
    let several = catalogues.len() > 1;
    let found =
        catalogues.into_iter().find(|row| wanted.is_empty() && !several || row.name == wanted);
    found.ok_or_else(|| match (names.is_empty(), wanted.is_empty()) {
        (true, _) => not_attached(),
        (false, true) => Error::NotAttached(format!(
            "several tables are attached; choose one of their catalogues with CATALOG: {names}"
        )),
        (false, false) => Error::NotAttached(format!(
            "there is no catalogue {wanted}; CATALOG can be {names}; or run hotshelf attach TABLE"
        )),
    })
}

/// Finds the mapped columns by name. A column that was renamed since is found by its number, unless the table is another one.
fn resolve(
    row: CatalogueRow,
    table: (String, String),
    mapped: &[MappedRow],
    columns: &[Column],
) -> Result<Mapping, Error> {
    let mut missing = Vec::new();
    let mut find = |entry: &MappedRow| {
        let by_name = columns.iter().find(|column| column.name == entry.name);
        let renamed = || {
            let same_table = entry.relation_oid == row.relation;
            let is_free = |name: &str| !mapped.iter().any(|other| other.name == name);
            let mut columns = columns.iter();
            columns.find(|one| same_table && one.attnum == entry.attnum && is_free(&one.name))
        };
        let found = by_name.or_else(renamed).cloned();
        if found.is_none() {
            missing.push(entry.name.clone());
        }
        found
    };
    let mut role = |role: &str| mapped.iter().find(|one| one.role == role).and_then(&mut find);
    let (id, name, price) = (role("id"), role("name"), role("price"));
    let (currency, description) = (role("currency"), role("description"));
    let (create_time, update_time) = (role("create_time"), role("update_time"));
    let id_was = mapped.iter().find(|one| one.role == "id").map(|one| one.name.clone());
    let attributes = mapped.iter().filter(|one| one.role == "attribute").filter_map(&mut find);
    let mut attributes: Vec<Column> = attributes.collect();
    attributes.sort_by_key(|column| column.attnum);
    let fields = [&id, &name, &price, &currency, &description, &create_time, &update_time];
    let mapped: Vec<&Column> = fields.into_iter().flatten().chain(&attributes).collect();
    let others = columns.iter().map(|column| column.name.clone());
    let others = others.filter(|name| *name != "hotshelf_version");
    let unmapped = others.filter(|name| !mapped.iter().any(|one| one.name == *name)).collect();
    // A price column of another type than numeric or integer is not served: it could be rounded.
    let fits_price = |price: &Column| price.kind == "numeric" || price.is_integer();
    let misfits = [
        price.as_ref().filter(|price| !fits_price(price)),
        create_time.as_ref().filter(|time| !time.is_time()),
        update_time.as_ref().filter(|time| !time.is_time()),
    ];
    let misfits = misfits.into_iter().flatten();
    let retyped = misfits.map(|column| format!("{} ({})", column.name, column.declared)).collect();
    let Some(id) = id else {
        return Err(Error::Unexpected(format!(
            "the id column of {}.{} was dropped or replaced; run hotshelf attach --again",
            table.0, table.1
        )));
    };
    Ok(Mapping {
        number: row.number,
        catalogue: row.name,
        table,
        id_was: id_was.filter(|was| *was != id.name),
        id,
        name,
        price: price.filter(fits_price),
        currency,
        description,
        create_time: create_time.filter(Column::is_time),
        update_time: update_time.filter(Column::is_time),
        attributes,
        price_decimals: row.price_decimals.and_then(|decimals| u32::try_from(decimals).ok()),
        fixed_currency: row.currency.as_deref().and_then(Currency::stored),
        sequence: None,
        missing,
        unmapped,
        all_attributes: row.all_attributes,
        retyped,
        epoch: row.epoch,
    })
}

#[cfg(test)]
pub(super) mod tests;
