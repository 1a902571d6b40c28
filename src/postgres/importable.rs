//! The columns of an attached table that an import can write.

use std::sync::Arc;

use super::columns::Column;
use super::mapping::Mapping;
use super::statements::Statements;
use super::{Error, Postgres};
use crate::product::{Currency, Invalid, Price};

/// What a column of a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportField {
    Id,
    Name,
    Price,
    Currency,
    Description,
    /// The attribute with this index.
    Attribute(usize),
}

/// The fields of a product and how a file can name them.
const FIELDS: [(&str, ImportField); 5] = [
    ("id", ImportField::Id),
    ("name", ImportField::Name),
    ("price", ImportField::Price),
    ("currency", ImportField::Currency),
    ("description", ImportField::Description),
];

/// An attached table, as an import sees it.
#[derive(Clone, Debug)]
pub struct ImportTable(pub(super) Arc<Statements>);

impl ImportTable {
    /// # Errors
    /// [`Error::Unexpected`] when the table has no column for names or prices that can be written.
    pub fn of(postgres: &Postgres) -> Result<Self, Error> {
        let table = Self(postgres.statements()?);
        for field in [ImportField::Name, ImportField::Price] {
            if table.column(field).is_none() {
                let what = if field == ImportField::Name { "names" } else { "prices" };
                let catalogue = &table.mapping().catalogue;
                return Err(Error::Unexpected(format!(
                    "the table of the catalogue {catalogue} has no column for {what} that can be written"
                )));
            }
        }
        Ok(table)
    }

    fn mapping(&self) -> &Mapping {
        &self.0.mapping
    }

    /// The column of a field, if it can be written.
    pub(super) fn column(&self, field: ImportField) -> Option<&Column> {
        let mapping = self.mapping();
        let column = match field {
            ImportField::Id => return Some(&mapping.id),
            ImportField::Name => mapping.name.as_ref(),
            ImportField::Price => mapping.price.as_ref(),
            ImportField::Currency => mapping.currency.as_ref(),
            ImportField::Description => mapping.description.as_ref(),
            ImportField::Attribute(index) => mapping.attributes.get(index),
        };
        column.filter(|column| !column.computed)
    }

    /// The field that a file means by `name`: a field of a product, the column of one, or an attribute, in any case.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<ImportField> {
        let fields = FIELDS.map(|(name, field)| (name, field));
        let columns =
            FIELDS.into_iter().filter_map(|(_, field)| Some((self.column(field)?, field)));
        let columns: Vec<(&str, ImportField)> =
            columns.map(|(column, field)| (column.name.as_str(), field)).collect();
        let attributes: Vec<(&str, ImportField)> = self.attributes().collect();
        let same = |exactly: bool| {
            move |(known, _): &&(&str, ImportField)| match exactly {
                true => *known == name,
                false => known.to_lowercase() == name.to_lowercase(),
            }
        };
        // Two attributes may differ in case alone.
        let find = |exactly| {
            let named = fields.iter().chain(&columns).chain(&attributes);
            named.into_iter().find(same(exactly)).map(|&(_, field)| field)
        };
        find(true).or_else(|| find(false)).filter(|&field| self.can_write(field))
    }

    /// A currency is checked, not written, where one is fixed for all prices.
    fn can_write(&self, field: ImportField) -> bool {
        self.column(field).is_some() || field == ImportField::Currency && self.currency().is_some()
    }

    fn attributes(&self) -> impl Iterator<Item = (&str, ImportField)> {
        let attributes = self.mapping().attributes.iter().enumerate();
        let writable = attributes.filter(|(_, column)| !column.computed);
        writable.map(|(index, column)| (column.name.as_str(), ImportField::Attribute(index)))
    }

    /// The names of all fields, for a message.
    #[must_use]
    pub fn field_names(&self) -> String {
        let fields = FIELDS.iter().filter(|(_, field)| self.can_write(*field));
        let fields = fields.map(|(name, _)| *name);
        let attributes = self.attributes().map(|(name, _)| name);
        fields.chain(attributes).collect::<Vec<_>>().join(", ")
    }

    /// The name of a field in messages.
    #[must_use]
    pub fn name(&self, field: ImportField) -> &str {
        let named = FIELDS.iter().find(|(_, one)| *one == field).map(|(name, _)| *name);
        named.or(self.column(field).map(|column| column.name.as_str())).unwrap_or_default()
    }

    /// Whether values of the field are numbers with decimals.
    #[must_use]
    pub fn has_decimals(&self, field: ImportField) -> bool {
        let kind = self.column(field).map(|column| column.kind.as_str());
        matches!(kind, Some("numeric" | "real" | "double precision"))
    }

    /// The value that an empty field of a file stands for: NULL, or the empty text where the column refuses NULL.
    ///
    /// # Errors
    /// When the column accepts neither.
    pub fn empty(&self, field: ImportField) -> Result<Option<&'static str>, Invalid> {
        let Some(column) = self.column(field).filter(|column| column.not_null) else {
            return Ok(None);
        };
        let kind = column.kind.rsplit('.').next().unwrap_or_default();
        match matches!(kind, "text" | "character varying" | "character" | "citext") {
            true => Ok(Some("")),
            false => Err(Invalid::new("must not be empty")),
        }
    }

    /// The currency of all prices, where the table has one.
    #[must_use]
    pub fn currency(&self) -> Option<Currency> {
        let mapping = self.mapping();
        mapping.fixed_currency.filter(|_| mapping.currency.is_none())
    }

    /// Checks that the table can keep a price.
    ///
    /// # Errors
    /// The field, and why not.
    pub fn check(&self, price: Price) -> Result<(), (ImportField, Invalid)> {
        let currency = self.mapping().check_currency(price.currency());
        currency.map_err(|why| (ImportField::Currency, why))?;
        self.mapping().amount(price.hundredths()).map(drop).map_err(|why| (ImportField::Price, why))
    }
}

#[cfg(test)]
impl ImportTable {
    /// The table of the sample products with an attribute of each of these names and types.
    pub(crate) fn sample(attributes: &[(&str, &str)]) -> Self {
        let mut mapping = super::mapping::tests::mapping();
        let attributes = attributes.iter().map(|(name, of)| super::columns::column(name, of, -1));
        mapping.attributes = attributes.collect();
        Self(Arc::new(Statements::new(mapping)))
    }
}
