//! Which column is which field of a product: what the operator chose, else what an earlier attach chose, else the obvious one.

use super::table::VERSION_COLUMN;
use crate::postgres::columns::Column;
use crate::product::Currency;

/// The column that was chosen for each field. An empty name: none.
#[derive(Clone, Debug, Default)]
pub struct ColumnChoices {
    pub name: Option<String>,
    pub price: Option<String>,
    pub currency: Option<String>,
    pub description: Option<String>,
    pub create_time: Option<String>,
    pub update_time: Option<String>,
}

/// The columns that are served as attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttributeChoice {
    /// All that are not mapped otherwise.
    All,
    Some(Vec<String>),
}

impl AttributeChoice {
    /// Reads `all`, `none`, or names with commas between them.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "all" => Self::All,
            "none" => Self::Some(Vec::new()),
            names => Self::Some(names.split(',').map(|name| name.trim().to_owned()).collect()),
        }
    }
}

/// What a table is asked to be mapped to.
#[derive(Clone, Debug)]
pub(super) struct Wishes {
    pub(super) columns: ColumnChoices,
    pub(super) price_decimals: Option<u32>,
    pub(super) currency: Option<String>,
    pub(super) attributes: AttributeChoice,
}

/// A complete mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapped<'a> {
    pub(super) name: Option<&'a Column>,
    pub(super) price: Option<&'a Column>,
    pub(super) price_decimals: Option<u32>,
    pub(super) currency: Option<&'a Column>,
    /// The currency of all prices, unless there is a column.
    pub(super) fixed_currency: Option<Currency>,
    pub(super) description: Option<&'a Column>,
    pub(super) create_time: Option<&'a Column>,
    pub(super) update_time: Option<&'a Column>,
    pub(super) attributes: Vec<&'a Column>,
}

/// Names as [`plain`] makes them, the most obvious first.
const NAMES: &[&str] = &["name", "title", "productname", "producttitle", "displayname", "label"];
const PRICES: &[&str] = &[
    "price",
    "unitprice",
    "saleprice",
    "listprice",
    "pricecents",
    "priceincents",
    "centsprice",
    "unitamount",
    "priceminor",
    "pricepence",
    "amountcents",
    "amountincents",
    "amount",
    "priceamount",
];
const CURRENCIES: &[&str] = &["currency", "currencycode", "pricecurrency", "isocurrency"];
const DESCRIPTIONS: &[&str] =
    &["description", "productdescription", "longdescription", "details", "body"];
const CREATED: &[&str] = &[
    "createtime",
    "createdat",
    "created",
    "createdon",
    "insertedat",
    "datecreated",
    "creationdate",
    "creationtime",
];
const UPDATED: &[&str] = &[
    "updatetime",
    "updatedat",
    "updated",
    "updatedon",
    "modifiedat",
    "modified",
    "lastmodified",
    "lastupdated",
    "datemodified",
    "changedat",
];
const DEFAULT_CURRENCY: &str = "USD";

/// Lower case and without underscores: `created_at` and `createdAt` are the same.
fn plain(name: &str) -> String {
    name.to_lowercase().replace(['_', ' ', '-'], "")
}

fn is_text(column: &Column) -> bool {
    ["text", "character varying", "character", "bpchar"].contains(&column.kind.as_str())
        || column.kind.ends_with("citext")
}

fn is_number(column: &Column) -> bool {
    column.kind == "numeric" || column.is_integer()
}

/// Maps the columns of a table other than `id`.
///
/// # Errors
/// One sentence that names the flag which helps.
pub(super) fn map<'a>(
    columns: &'a [Column],
    id: &Column,
    wishes: &Wishes,
) -> Result<Mapped<'a>, String> {
    let columns: Vec<&Column> = columns
        .iter()
        .filter(|column| column.name != id.name && column.name != VERSION_COLUMN)
        .collect();
    let chosen = &wishes.columns;
    let find = |chosen: &Option<String>, names: &[&str], fits: fn(&Column) -> bool| {
        find(&columns, chosen.as_deref(), names, fits)
    };
    let name = find(&chosen.name, NAMES, is_text)?;
    if name.is_none() && chosen.name.is_none() {
        return Err(
            "no column looks like a name; give --name-column, or --name-column '' for none"
                .to_owned(),
        );
    }
    // Also an inexact price, so that it is refused with the reason.
    let price = find(&chosen.price, PRICES, |_| true)?;
    if price.is_none() && chosen.price.is_none() {
        return Err(
            "no column looks like a price; give --price-column, or --price-column '' for none"
                .to_owned(),
        );
    }
    let price_decimals = price.map(|price| decimals(price, wishes)).transpose()?.flatten();
    let currency = match (&chosen.currency, &wishes.currency) {
        (None, Some(_)) => None,
        (chosen, _) => find(chosen, CURRENCIES, is_text)?,
    };
    let code = wishes.currency.as_deref().unwrap_or(DEFAULT_CURRENCY);
    let code: Currency = code.parse().map_err(|why| format!("--currency: {why}"))?;
    let description = find(&chosen.description, DESCRIPTIONS, is_text)?;
    let create_time = find(&chosen.create_time, CREATED, Column::is_time)?;
    let update_time = find(&chosen.update_time, UPDATED, Column::is_time)?;
    for (time, flag) in [(create_time, "--created-column"), (update_time, "--updated-column")] {
        if let Some(time) = time.filter(|time| !time.is_time()) {
            return Err(format!(
                "{} is of the type {}, which is no time; give another {flag}, or '' for none",
                time.name, time.declared
            ));
        }
    }
    let mapped = [name, price, currency, description, create_time, update_time];
    let mapped: Vec<&Column> = mapped.into_iter().flatten().collect();
    if let Some(twice) = twice(&mapped) {
        return Err(format!("the column {twice} is mapped to two fields"));
    }
    let others = columns.iter().copied();
    let others = others.filter(|column| !mapped.iter().any(|one| one.name == column.name));
    let attributes = attributes(others.collect(), &wishes.attributes)?;
    let fixed_currency = (currency.is_none() && price.is_some()).then_some(code);
    Ok(Mapped {
        name,
        price,
        price_decimals,
        currency,
        fixed_currency,
        description,
        create_time,
        update_time,
        attributes,
    })
}

fn find<'a>(
    columns: &[&'a Column],
    chosen: Option<&str>,
    names: &[&str],
    fits: fn(&Column) -> bool,
) -> Result<Option<&'a Column>, String> {
    match chosen {
        Some("") => Ok(None),
        Some(chosen) => {
            let found = columns.iter().find(|column| column.name == chosen).copied();
            found.map(Some).ok_or_else(|| format!("there is no column {chosen} that can be mapped"))
        }
        None => Ok(names.iter().find_map(|name| {
            let mut columns = columns.iter().copied();
            columns.find(|column| plain(&column.name) == *name && fits(column))
        })),
    }
}

/// What an integer price counts; `None` for a numeric one.
fn decimals(price: &Column, wishes: &Wishes) -> Result<Option<u32>, String> {
    let Column { name, declared, .. } = price;
    if !is_number(price) {
        return Err(format!(
            "{name} is of the type {declared}, which cannot hold prices exactly or without a locale; convert it to numeric, give another --price-column, or '' for none"
        ));
    }
    if !price.is_integer() {
        return match wishes.price_decimals {
            None => Ok(None),
            Some(_) => Err(format!("--price-decimals is for integers, and {name} is {declared}")),
        };
    }
    let name_says = ["cent", "minor", "pence"].iter().any(|word| plain(name).contains(word));
    match wishes.price_decimals {
        Some(decimals) => Ok(Some(decimals)),
        None if name_says => Ok(Some(2)),
        None => Err(format!(
            "{name} is an integer, and its name does not say what it counts; give --price-decimals 2 for hundredths such as cents, 0 for whole units"
        )),
    }
}

fn twice(mapped: &[&Column]) -> Option<String> {
    let is_again = |place: usize| mapped[..place].iter().any(|one| one.name == mapped[place].name);
    (0..mapped.len()).find(|place| is_again(*place)).map(|place| mapped[place].name.clone())
}

fn attributes<'a>(
    others: Vec<&'a Column>,
    choice: &AttributeChoice,
) -> Result<Vec<&'a Column>, String> {
    let AttributeChoice::Some(names) = choice else { return Ok(others) };
    let find = |name: &String| {
        let found = others.iter().find(|column| column.name == *name).copied();
        found.ok_or_else(|| {
            format!("--attributes: there is no column {name} that is not mapped already")
        })
    };
    names.iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::columns::column;

    fn wishes() -> Wishes {
        let columns = ColumnChoices::default();
        Wishes { columns, price_decimals: None, currency: None, attributes: AttributeChoice::All }
    }

    fn table(columns: &[(&str, &str)]) -> Vec<Column> {
        columns.iter().map(|(name, declared)| column(name, declared, -1)).collect()
    }

    fn shown(columns: &[(&str, &str)], wishes: &Wishes) -> Result<String, String> {
        let columns = table(columns);
        let mapped = map(&columns, &column("id", "integer", -1), wishes)?;
        let name = |column: Option<&Column>| column.map_or("-", |column| &column.name).to_owned();
        let attributes: Vec<&str> = mapped.attributes.iter().map(|column| &*column.name).collect();
        Ok(format!(
            "{} {} {:?} {} {} {} {} {} [{}]",
            name(mapped.name),
            name(mapped.price),
            mapped.price_decimals,
            name(mapped.currency),
            mapped.fixed_currency.map_or("-".to_owned(), |currency| currency.code().to_owned()),
            name(mapped.description),
            name(mapped.create_time),
            name(mapped.update_time),
            attributes.join(" ")
        ))
    }

    #[test]
    fn the_obvious_is_guessed() {
        let sample = [
            ("id", "integer"),
            ("name", "character varying(255)"),
            ("price", "numeric(10,2)"),
            ("description", "text"),
        ];
        assert_eq!(shown(&sample, &wishes()).unwrap(), "name price None - USD description - - []");
        let other = [
            ("id", "integer"),
            ("createdAt", "timestamp without time zone"),
            ("updated", "integer"),
            ("title", "text"),
            ("price_cents", "integer"),
            ("currency_code", "character(3)"),
            ("sku", "text"),
        ];
        assert_eq!(
            shown(&other, &wishes()).unwrap(),
            "title price_cents Some(2) currency_code - - createdAt - [updated sku]"
        );
    }

    #[test]
    fn what_is_not_obvious_is_refused_with_the_flag_that_helps() {
        let refused = |columns: &[(&str, &str)], wishes: &Wishes, word: &str| {
            let refused = shown(columns, wishes).unwrap_err();
            assert!(refused.contains(word), "{refused}");
        };
        refused(&[("price", "numeric")], &wishes(), "--name-column");
        refused(&[("name", "text")], &wishes(), "--price-column");
        refused(&[("name", "text"), ("price", "integer")], &wishes(), "--price-decimals");
        refused(&[("name", "text"), ("price", "double precision")], &wishes(), "double precision");
        refused(&[("name", "text"), ("price", "money")], &wishes(), "money");
        let good = [("name", "text"), ("price", "numeric"), ("at", "bigint")];
        let wrong = |change: fn(&mut Wishes)| {
            let mut wishes = wishes();
            change(&mut wishes);
            wishes
        };
        refused(&good, &wrong(|wishes| wishes.currency = Some("usd".into())), "--currency");
        refused(&good, &wrong(|wishes| wishes.price_decimals = Some(2)), "--price-decimals");
        refused(&good, &wrong(|wishes| wishes.columns.name = Some("x".into())), "column x");
        refused(&good, &wrong(|wishes| wishes.columns.name = Some("price".into())), "two fields");
        refused(&good, &wrong(|wishes| wishes.columns.create_time = Some("at".into())), "bigint");
        let attributes =
            |wishes: &mut Wishes| wishes.attributes = AttributeChoice::parse("at,nope");
        refused(&good, &wrong(attributes), "--attributes");
    }

    #[test]
    fn what_was_chosen_wins() {
        let columns = [
            ("name", "text"),
            ("label", "text"),
            ("price", "integer"),
            ("currency", "text"),
            ("sku", "text"),
        ];
        let mut wishes = wishes();
        wishes.columns.name = Some("label".to_owned());
        (wishes.price_decimals, wishes.currency) = (Some(0), Some("JPY".to_owned()));
        wishes.attributes = AttributeChoice::parse("sku");
        assert_eq!(shown(&columns, &wishes).unwrap(), "label price Some(0) - JPY - - - [sku]");
        wishes.attributes = AttributeChoice::parse("none");
        wishes.columns.price = Some(String::new());
        assert_eq!(shown(&columns, &wishes).unwrap(), "label - None - - - - - []");
    }
}
