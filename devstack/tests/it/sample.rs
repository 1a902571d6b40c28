use devstack::sample::write_csv;

fn csv(count: u64, seed: u64) -> String {
    let mut bytes = Vec::new();
    write_csv(&mut bytes, count, seed).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// The fields of a row. The sample's fields have no line breaks.
fn fields(row: &str) -> Vec<String> {
    let (mut fields, mut quoted) = (vec![String::new()], false);
    let mut characters = row.chars().peekable();
    while let Some(character) = characters.next() {
        let field = fields.last_mut().unwrap();
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => field.extend(characters.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            other => field.push(other),
        }
    }
    assert!(!quoted, "a quote is open at the end of {row}");
    fields
}

#[test]
fn the_same_seed_gives_the_same_products() {
    assert_eq!(csv(100, 7), csv(100, 7));
    assert_ne!(csv(100, 7), csv(100, 8));
    assert!(csv(200, 7).starts_with(&csv(100, 7)), "a longer sample begins like a shorter one");
}

#[test]
fn rows_are_well_formed_and_plausible() {
    let text = csv(5_000, 1);
    let mut rows = text.lines();
    assert_eq!(rows.next(), Some("id,name,price,currency,description"));
    for (index, row) in rows.enumerate() {
        let fields = fields(row);
        let [id, name, price, currency, description] = &fields[..] else {
            panic!("not five fields: {row}")
        };
        assert_eq!(*id, (index + 1).to_string());
        assert!(!name.is_empty() && description.ends_with('.'), "{row}");
        let (whole, cents) = price.split_once('.').unwrap();
        assert_eq!(cents.len(), 2, "{row}");
        let price = whole.parse::<u32>().unwrap() * 100 + cents.parse::<u32>().unwrap();
        assert!((99..=199_999).contains(&price), "{row}");
        assert!(["USD", "EUR", "GBP"].contains(&currency.as_str()), "{row}");
    }
    assert!(text.contains("\"\""), "some fields have quotes");
    let average = text.len() / 5_000;
    assert!((250..350).contains(&average), "{average} bytes");
}
