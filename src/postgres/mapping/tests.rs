use super::*;
use crate::postgres::columns::column;
use crate::product::Price;

/// The mapping of the sample table.
pub(in crate::postgres) fn mapping() -> Mapping {
    let some = |name, declared, typmod| Some(column(name, declared, typmod));
    Mapping {
        number: 1,
        catalogue: "products".to_owned(),
        table: ("public".to_owned(), "products".to_owned()),
        id: column("id", "bigint", -1),
        name: some("name", "character varying(255)", 259),
        price: some("price", "numeric(10,2)", (10 << 16) + 2 + 4),
        currency: some("currency", "character(3)", 7),
        description: some("description", "text", -1),
        create_time: some("create_time", "timestamp with time zone", -1),
        update_time: some("update_time", "timestamp with time zone", -1),
        attributes: Vec::new(),
        price_decimals: None,
        fixed_currency: None,
        sequence: None,
        missing: Vec::new(),
        unmapped: Vec::new(),
        all_attributes: false,
        retyped: Vec::new(),
        id_was: None,
        epoch: String::new(),
    }
}

fn amount(mapping: &Mapping, hundredths: i64) -> Option<String> {
    let price = Price::new(hundredths, "USD".parse().unwrap()).unwrap();
    mapping.amount(price.hundredths()).ok()
}

#[test]
fn a_price_is_written_exactly_or_refused() {
    let mut mapping = mapping();
    assert_eq!(amount(&mapping, 1_299), Some("12.99".to_owned()));
    for (typmod, twelve_thirty, twelve_99) in [
        ((10 << 16) + 4, false, false),
        ((10 << 16) + 1 + 4, true, false),
        ((10 << 16) + 4 + 4, true, true),
    ] {
        mapping.price = Some(column("price", "numeric", typmod));
        assert_eq!(amount(&mapping, 1_230).is_some(), twelve_thirty);
        assert_eq!(amount(&mapping, 1_299).is_some(), twelve_99);
        assert_eq!(amount(&mapping, 1_200), Some("12.00".to_owned()));
    }
    mapping.price = Some(column("cents", "bigint", -1));
    for (decimals, twelve, twelve_99) in
        [(0, "12", None), (1, "120", None), (2, "1200", Some("1299")), (3, "12000", Some("12990"))]
    {
        mapping.price_decimals = Some(decimals);
        assert_eq!(amount(&mapping, 1_200).as_deref(), Some(twelve));
        assert_eq!(amount(&mapping, 1_299).as_deref(), twelve_99);
    }
}

fn row(role: &str, name: &str, attnum: i16) -> MappedRow {
    MappedRow { role: role.to_owned(), name: name.to_owned(), relation_oid: 7, attnum }
}

fn resolved(relation: i64, columns: &[(&str, i16)]) -> Result<Mapping, Error> {
    let catalogue = CatalogueRow {
        number: 1,
        name: "c".to_owned(),
        relation,
        nspname: None,
        relname: None,
        price_decimals: None,
        currency: Some("USD".to_owned()),
        all_attributes: true,
        epoch: String::new(),
    };
    let mapped = [row("id", "id", 1), row("name", "title", 2), row("attribute", "sku", 3)];
    let columns: Vec<Column> = columns
        .iter()
        .map(|(name, attnum)| {
            let mut column = column(name, "bigint", -1);
            column.attnum = *attnum;
            column
        })
        .collect();
    resolve(catalogue, ("s".to_owned(), "t".to_owned()), &mapped, &columns)
}

#[test]
fn a_renamed_column_is_found_and_a_dropped_one_is_missing() {
    let names = |mapping: &Mapping| {
        let name = mapping.name.as_ref().map(|column| column.name.clone());
        (name, mapping.missing.clone())
    };
    let same = resolved(7, &[("id", 1), ("title", 2), ("sku", 3)]).unwrap();
    assert_eq!(names(&same), (Some("title".to_owned()), vec![]));
    let renamed = resolved(7, &[("id", 1), ("label", 2), ("sku", 3)]).unwrap();
    assert_eq!(names(&renamed), (Some("label".to_owned()), vec![]));
    // Another table, such as a restored one: the numbers mean nothing.
    let restored = resolved(8, &[("id", 1), ("label", 2), ("sku", 3)]).unwrap();
    assert_eq!(names(&restored), (None, vec!["title".to_owned()]));
    // The names were exchanged: the name counts.
    let exchanged = resolved(7, &[("id", 1), ("sku", 2), ("title", 3)]).unwrap();
    assert_eq!(exchanged.name.unwrap().attnum, 3);
    let dropped = resolved(7, &[("id", 1), ("sku", 3)]).unwrap();
    assert_eq!(names(&dropped), (None, vec!["title".to_owned()]));
    assert!(resolved(7, &[("title", 2)]).is_err());
}
