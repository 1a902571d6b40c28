//! Converts records to products by the columns of the header.

use super::Problem;
use super::records::Record;
use crate::product::{Invalid, NewProduct, Price, ProductId};

const COLUMNS: [&str; 5] = ["id", "name", "price", "currency", "description"];
const COLUMNS_HELP: &str =
    "the columns are name and price, and optionally id, currency and description";
const DEFAULT_CURRENCY: &str = "USD";

/// The index of each column.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Columns {
    count: usize,
    id: Option<usize>,
    name: usize,
    price: usize,
    currency: Option<usize>,
    description: Option<usize>,
}

/// A row that can be imported.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ImportRow {
    pub(super) line: u64,
    pub(super) id: Option<ProductId>,
    pub(super) product: NewProduct,
}

impl Columns {
    pub(super) fn find(header: &Record<'_>) -> Result<Self, Problem> {
        let names: Vec<_> = header.iter().map(String::from_utf8_lossy).collect();
        let wrong = |reason: String| Problem::at(header.line, reason);
        for (index, name) in names.iter().enumerate() {
            if !COLUMNS.contains(&name.as_ref()) {
                let name: String = name.chars().take(40).collect();
                return Err(wrong(format!("unknown column {name:?}; {COLUMNS_HELP}")));
            }
            if names[..index].contains(name) {
                return Err(wrong(format!("there are two columns {name}")));
            }
        }
        let find = |column: &str| names.iter().position(|name| name == column);
        let require = |column| {
            find(column).ok_or_else(|| wrong(format!("no column {column}; {COLUMNS_HELP}")))
        };
        Ok(Self {
            count: header.fields,
            id: find("id"),
            name: require("name")?,
            price: require("price")?,
            currency: find("currency"),
            description: find("description"),
        })
    }

    pub(super) fn has_descriptions(&self) -> bool {
        self.description.is_some()
    }

    pub(super) fn row(&self, record: &Record<'_>) -> Result<ImportRow, Problem> {
        if record.fields != self.count {
            let reason = format!("has {} fields instead of {}", record.fields, self.count);
            return Err(Problem::at(record.line, reason));
        }
        let currency = field(record, "currency", self.currency, |code| {
            if code.is_empty() { DEFAULT_CURRENCY.parse() } else { code.parse() }
        })?;
        let name = field(record, "name", Some(self.name), |text| text.to_owned().try_into())?;
        let price =
            field(record, "price", Some(self.price), |amount| Price::parse(amount, currency))?;
        let description =
            field(record, "description", self.description, |text| text.to_owned().try_into())?;
        Ok(ImportRow {
            line: record.line,
            id: field(record, "id", self.id, parse_id)?,
            product: NewProduct { name, price, description, attributes: None },
        })
    }
}

/// Parses a field. In a file without the column every field of it is empty.
fn field<T>(
    record: &Record<'_>,
    column: &'static str,
    index: Option<usize>,
    parse: impl FnOnce(&str) -> Result<T, Invalid>,
) -> Result<T, Problem> {
    let bytes = index.and_then(|index| record.field(index)).unwrap_or_default();
    let text = str::from_utf8(bytes).map_err(|_| Invalid::new("is not UTF-8"));
    text.and_then(parse).map_err(|invalid| Problem::in_column(record.line, column, &invalid))
}

/// An empty id is `None`: Postgres assigns one.
fn parse_id(text: &str) -> Result<Option<ProductId>, Invalid> {
    if text.is_empty() {
        return Ok(None);
    }
    let id = text.parse().ok().and_then(ProductId::new);
    let invalid = || Invalid::new(format!("must be a whole number from 1 to {}", i64::MAX));
    id.map(Some).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::records::Records;

    /// The second record of `csv`, read by the columns of the first.
    fn parse(csv: impl AsRef<[u8]>) -> Result<ImportRow, String> {
        let mut records = Records::new(csv.as_ref());
        let header = records.next().unwrap().unwrap();
        let columns = Columns::find(&header).map_err(|problem| problem.in_file("f".as_ref()))?;
        let record = records.next().unwrap().unwrap();
        columns.row(&record).map_err(|problem| problem.in_file("f".as_ref()))
    }

    #[test]
    fn columns_come_in_any_order() {
        let row = parse("description,price,id,currency,name\nRound,12.5,7,EUR,Lamp\n").unwrap();
        assert_eq!(row.id, ProductId::new(7));
        assert_eq!(row.product.name.as_str(), "Lamp");
        assert_eq!(row.product.price.hundredths(), 1250);
        assert_eq!(row.product.price.currency().code(), "EUR");
        assert_eq!(row.product.description.as_str(), "Round");
    }

    #[test]
    fn optional_columns_may_be_absent_or_empty() {
        let absent = parse("name,price\nLamp,1\n").unwrap();
        let empty = parse("id,name,price,currency,description\n,Lamp,1,,\n").unwrap();
        assert_eq!(absent, empty);
        assert_eq!(absent.id, None);
        assert_eq!(absent.product.price.currency().code(), "USD");
    }

    #[test]
    fn the_error_of_a_wrong_header_names_the_column_and_the_known_ones() {
        let error = |header: &str| parse(format!("{header}\nx\n")).unwrap_err();
        let unknown = error("name,price,colour");
        assert!(
            unknown.starts_with(
                "f, line 1: unknown column \"colour\"; the columns are name and price,"
            )
        );
        assert!(
            error("id,name")
                .starts_with("f, line 1: no column price; the columns are name and price,")
        );
        assert!(error("price").starts_with("f, line 1: no column name;"));
        assert_eq!(error("name,price,name"), "f, line 1: there are two columns name");
        assert!(error("Name;Price").starts_with("f, line 1: unknown column \"Name;Price\";"));
    }

    #[test]
    fn the_error_of_a_bad_row_has_its_line_column_and_reason() {
        let error = |row: &str| parse(format!("id,name,price,currency\n{row}\n")).unwrap_err();
        let price = "f, line 2, column price: must not have more than two decimals";
        assert_eq!(error("1,Lamp,1.005,USD"), price);
        assert_eq!(error("1,,1,USD"), "f, line 2, column name: must not be empty");
        assert!(error("1,Lamp,1,XXZ").starts_with("f, line 2, column currency: \"XXZ\" is not"));
        for id in ["0", "-1", "1.0", "x", " 1", "9223372036854775808"] {
            let message = error(&format!("{id},Lamp,1,USD"));
            assert!(
                message.starts_with("f, line 2, column id: must be a whole number"),
                "{message}"
            );
        }
        assert_eq!(error("1,Lamp,1"), "f, line 2: has 3 fields instead of 4");
        assert_eq!(error("1,Lamp,1,USD,"), "f, line 2: has 5 fields instead of 4");
    }

    #[test]
    fn text_that_is_not_utf_8_is_refused() {
        let latin_1 = b"name,price\nCaf\xe9,1\n";
        assert_eq!(parse(latin_1).unwrap_err(), "f, line 2, column name: is not UTF-8");
    }
}
