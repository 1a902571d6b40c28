//! Converts records to products by the columns of the header.

use std::borrow::Cow;

use super::header::{Header, with_decimal_point};
use super::records::Record;
use super::{ImportOptions, Problem};
use crate::postgres::{ImportField, ImportTable};
use crate::product::{Currency, Invalid, NewProduct, Price, ProductId};

/// How the fields of a file are read.
pub(super) struct Rows<'a> {
    pub(super) header: Header,
    table: &'a ImportTable,
    decimal_comma: bool,
    default_currency: Result<Currency, Invalid>,
    /// The name of the encoding that the text was converted from.
    converted_from: Option<&'static str>,
}

/// A row that can be imported.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ImportRow<'a> {
    pub(super) id: Option<ProductId>,
    pub(super) product: NewProduct,
    pub(super) attributes: Vec<Option<Cow<'a, str>>>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(
        header: Header,
        table: &'a ImportTable,
        options: &ImportOptions,
        converted_from: Option<&'static str>,
    ) -> Self {
        let default_currency = table.currency().map_or_else(|| "USD".parse(), Ok);
        let decimal_comma = options.decimal_comma;
        Self { header, table, decimal_comma, default_currency, converted_from }
    }

    pub(super) fn row<'r>(&self, record: &Record<'r>) -> Result<ImportRow<'r>, Problem> {
        let header = &self.header;
        if record.fields != header.fields {
            let reason = format!("has {} fields instead of {}", record.fields, header.fields);
            return Err(Problem::at(record.line, reason));
        }
        let currency =
            self.field(record, ImportField::Currency, header.currency, |code| {
                match code.trim_ascii() {
                    "" => self.default_currency.clone(),
                    code => code.parse(),
                }
            })?;
        let name = self.field(record, ImportField::Name, Some(header.name), |text| {
            text.to_owned().try_into()
        })?;
        let price = self.field(record, ImportField::Price, Some(header.price), |amount| {
            self.price(amount.trim_ascii(), currency)
        })?;
        let description =
            self.field(record, ImportField::Description, header.description, |text| {
                text.to_owned().try_into()
            })?;
        let id = self.field(record, ImportField::Id, header.id, |id| parse_id(id.trim_ascii()))?;
        let in_column = |(field, why): (ImportField, Invalid)| {
            Problem::in_column(record.line, self.table.name(field), &why)
        };
        self.table.check(price).map_err(in_column)?;
        let attributes = header.attributes.iter().map(|&(attribute, index)| {
            let field = ImportField::Attribute(attribute);
            let parse = |text: &'r str| self.attribute(field, text);
            self.field(record, field, Some(index), parse)
        });
        let attributes = attributes.collect::<Result<_, _>>()?;
        let product = NewProduct { name, price, description, attributes: None };
        Ok(ImportRow { id, product, attributes })
    }

    fn price(&self, amount: &str, currency: Currency) -> Result<Price, Invalid> {
        if self.decimal_comma {
            return Price::parse(&with_decimal_point(amount)?, currency);
        }
        Price::parse(amount, currency).map_err(|why| match with_decimal_point(amount) {
            Ok(_) if amount.contains(',') => {
                Invalid::new(format!("{why}; --decimal-comma reads amounts such as 1,99"))
            }
            _ => why,
        })
    }

    /// The text of an attribute, which PostgreSQL converts to the type of its column.
    fn attribute<'r>(
        &self,
        field: ImportField,
        text: &'r str,
    ) -> Result<Option<Cow<'r, str>>, Invalid> {
        if text.is_empty() {
            return Ok(self.table.empty(field)?.map(Cow::Borrowed));
        }
        if text.contains('\0') {
            return Err(Invalid::new("must not contain the NUL character"));
        }
        if self.decimal_comma && self.table.has_decimals(field) {
            return Ok(Some(with_decimal_point(text.trim_ascii())?.into()));
        }
        Ok(Some(text.into()))
    }

    /// Parses a field. In a file without the column every field of it is empty.
    fn field<'r, T>(
        &self,
        record: &Record<'r>,
        field: ImportField,
        index: Option<usize>,
        parse: impl FnOnce(&'r str) -> Result<T, Invalid>,
    ) -> Result<T, Problem> {
        let bytes = index.and_then(|index| record.field(index)).unwrap_or_default();
        let text = str::from_utf8(bytes).map_err(|_| {
            Invalid::new("is not UTF-8; --encoding names another one, such as windows-1252")
        });
        // Each byte that the encoding does not have became this character.
        let text = text.and_then(|text| match self.converted_from {
            Some(encoding) if text.contains('\u{fffd}') => {
                Err(Invalid::new(format!("is not {encoding}")))
            }
            _ => Ok(text),
        });
        let parsed = text.and_then(parse);
        parsed.map_err(|why| Problem::in_column(record.line, self.table.name(field), &why))
    }
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
    use crate::import::header;
    use crate::import::input::Input;

    type Row = (Option<ProductId>, NewProduct, Vec<Option<String>>);

    fn parse_with(csv: impl AsRef<[u8]>, options: &ImportOptions) -> Result<Row, String> {
        let attributes = [("weight", "numeric"), ("Stock", "integer"), ("sku", "text")];
        let table = ImportTable::sample(&attributes);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, csv).unwrap();
        let mut input = Input::open(file.path(), options.encoding).unwrap();
        let refused = |problem: Problem| problem.in_file("f".as_ref());
        let (header, mut records) = header::read(&mut input, &table, options).map_err(refused)?;
        let rows = Rows::new(header, &table, options, input.converted_from.map(|it| it.name()));
        let record = records.next().unwrap().expect("there is a second record");
        let row = rows.row(&record).map_err(refused)?;
        let attributes = row.attributes.into_iter().map(|value| value.map(Cow::into_owned));
        Ok((row.id, row.product, attributes.collect()))
    }

    /// The second record of `csv`, read by the columns of the first.
    fn parse(csv: impl AsRef<[u8]>) -> Result<Row, String> {
        parse_with(csv, &ImportOptions::default())
    }

    #[test]
    fn columns_come_in_any_order_and_case() {
        let csv = "DESCRIPTION,price,sku, Id ,currency,Name,stock\nRound,12.5,a1,7,EUR,Lamp,\n";
        let (id, product, attributes) = parse(csv).unwrap();
        assert_eq!(id, ProductId::new(7));
        assert_eq!(product.name.as_str(), "Lamp");
        assert_eq!(product.price.hundredths(), 1250);
        assert_eq!(product.price.currency().code(), "EUR");
        assert_eq!(product.description.as_str(), "Round");
        assert_eq!(attributes, [Some("a1".to_owned()), None]);
    }

    #[test]
    fn optional_columns_may_be_absent_or_empty() {
        let absent = parse("name,price\nLamp,1\n").unwrap();
        let empty = parse("id,name,price,currency,description\n,Lamp,1,,\n").unwrap();
        assert_eq!(absent, empty);
        assert_eq!(absent.0, None);
        assert_eq!(absent.1.price.currency().code(), "USD");
    }

    #[test]
    fn the_delimiter_is_the_one_that_makes_columns_known() {
        for csv in [
            "name;price;id\nLamp;1;7\n",
            "name\tprice\tid\nLamp\t1\t7\n",
            "name|price|id\nLamp|1|7\n",
            "\"name\";\"price\";\"id\"\r\n\"Lamp\";1;7\r\n",
            "sep=;\r\nname;price;id\r\nLamp;1;7",
            "\u{feff}sep=,\nname,price,id\nLamp,1,7",
            "\n\nname;price;id\nLamp;1;7",
        ] {
            let (id, product, _) = parse(csv).unwrap_or_else(|why| panic!("{csv:?}: {why}"));
            assert_eq!((id, product.name.as_str()), (ProductId::new(7), "Lamp"), "{csv:?}");
        }
        let options = ImportOptions { delimiter: Some(b'#'), ..ImportOptions::default() };
        assert!(parse_with("name#price\nLamp#1\n", &options).is_ok());
        let ignore_extra = true;
        let options = ImportOptions { ignore_extra, ..ImportOptions::default() };
        let more_commas = "name;price;a,b,c,d,e\nLamp;1;x\n";
        assert_eq!(parse_with(more_commas, &options).unwrap().1.name.as_str(), "Lamp");
    }

    #[test]
    fn a_line_number_counts_every_line_of_the_file() {
        let bad = parse("sep=;\nname;price\n\n;1\n").unwrap_err();
        assert_eq!(bad, "f, line 4, column name: must not be empty");
    }

    #[test]
    fn a_column_can_be_mapped_or_left_out() {
        let map = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|&(column, field)| (column.into(), field.into()));
            ImportOptions { map: pairs.collect(), ..ImportOptions::default() }
        };
        let csv = "Titel;Preis;Artikel;Farbe\nLamp;1;a1;red\n";
        let all =
            [("titel", "name"), ("Preis", "Price"), ("Artikel", "attributes.sku"), ("Farbe", "")];
        let (_, product, attributes) = parse_with(csv, &map(&all)).unwrap();
        assert_eq!(product.name.as_str(), "Lamp");
        assert_eq!(attributes, [Some("a1".to_owned())]);
        let error = |pairs| parse_with(csv, &map(pairs)).unwrap_err();
        let absent = error(&[("Title", "name")]);
        let expected =
            "f, line 1: --map Title=name: there is no column Title; the file has Titel, Preis";
        assert!(absent.starts_with(expected), "{absent}");
        let twice = error(&[("Titel", "name"), ("Preis", "price"), ("Farbe", "name")]);
        assert_eq!(twice, "f, line 1: both Titel and Farbe are name");
        let unknown = error(&[("Titel", "name"), ("Preis", "price"), ("Farbe", "color")]);
        assert!(
            unknown.starts_with("f, line 1: unknown columns: \"Artikel\", \"Farbe\"; "),
            "{unknown}"
        );
    }

    #[test]
    fn the_error_of_a_wrong_header_names_the_columns_and_the_known_ones() {
        let error = |header: &str| parse(format!("{header}\nx\n")).unwrap_err();
        assert_eq!(
            error("name,price,colour,size"),
            "f, line 1: unknown columns: \"colour\", \"size\"; known are id, name, price, currency, \
             description, weight, Stock, sku; --ignore-extra leaves the others out, --map COLUMN=FIELD imports one"
        );
        assert_eq!(
            error("id,name"),
            "f, line 1: no column is the price; the file has id, name; --map COLUMN=price names it"
        );
        assert!(error("price").starts_with("f, line 1: no column is the name;"));
        assert_eq!(error("name,price,name"), "f, line 1: there are two columns name");
        assert_eq!(error("name,price,NAME"), "f, line 1: both name and NAME are name");
    }

    #[test]
    fn the_error_of_a_bad_row_has_its_line_column_and_reason() {
        let error = |row: &str| parse(format!("id,name,price,currency\n{row}\n")).unwrap_err();
        let price = "f, line 2, column price: must not have more than two decimals";
        assert_eq!(error("1,Lamp,1.005,USD"), price);
        assert_eq!(error("1,,1,USD"), "f, line 2, column name: must not be empty");
        assert!(error("1,Lamp,1,XXZ").starts_with("f, line 2, column currency: \"XXZ\" is not"));
        for id in ["0", "-1", "1.0", "x", "1 2", "9223372036854775808"] {
            let message = error(&format!("{id},Lamp,1,USD"));
            assert!(
                message.starts_with("f, line 2, column id: must be a whole number"),
                "{message}"
            );
        }
        assert_eq!(error("1,Lamp,1"), "f, line 2: has 3 fields instead of 4");
        assert_eq!(error("1,Lamp,1,USD,"), "f, line 2: has 5 fields instead of 4");
        let comma = error("1,Lamp,\"1,99\",USD");
        assert!(comma.ends_with("--decimal-comma reads amounts such as 1,99"), "{comma}");
    }

    #[test]
    fn a_decimal_comma_is_read_in_prices_and_numbers() {
        let options = ImportOptions { decimal_comma: true, ..ImportOptions::default() };
        let parse = |price: &str| {
            let csv = format!("name;price;weight;stock;sku\nLamp;{price};-1.000,5;12;1,5\n");
            parse_with(csv, &options)
        };
        for (text, hundredths) in [
            ("1,99", 199),
            ("1.299,00", 129_900),
            ("12.345.678,9", 1_234_567_890),
            ("1 299,00", 129_900),
            ("1\u{202f}299,00", 129_900),
            ("1'299,00", 129_900),
            ("1.299", 129_900),
            ("1299", 129_900),
            (" 7,5 ", 750),
        ] {
            let (_, product, attributes) = parse(text).unwrap();
            assert_eq!(product.price.hundredths(), hundredths, "{text}");
            let expected = ["-1000.5", "12", "1,5"].map(|text| Some(text.to_owned()));
            assert_eq!(attributes, expected);
        }
        for text in ["1.99", "1.2.3", "1,2,3", ",5", "1234.567,00", "1..000", "x", "", "1,299.00"] {
            assert!(parse(text).unwrap_err().starts_with("f, line 2, column price: "), "{text}");
        }
        assert_eq!(parse("-1").unwrap_err(), "f, line 2, column price: must not be negative");
    }

    #[test]
    fn text_that_is_not_in_its_encoding_is_refused() {
        let latin_1 = b"name,price\nCaf\xe9,1\n";
        let refused = parse(latin_1).unwrap_err();
        assert!(
            refused.starts_with("f, line 2, column name: is not UTF-8; --encoding"),
            "{refused}"
        );
        let encoding = encoding_rs::Encoding::for_label(b"windows-1252");
        let options = ImportOptions { encoding, ..ImportOptions::default() };
        assert_eq!(parse_with(latin_1, &options).unwrap().1.name.as_str(), "Café");
        let mut utf_16: Vec<u8> =
            "\u{feff}name,price\nX,1\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let half_a_pair = utf_16.len() - 7;
        utf_16[half_a_pair] = 0xd8;
        assert_eq!(parse(utf_16).unwrap_err(), "f, line 2, column name: is not UTF-16LE");
    }
}
