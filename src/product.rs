//! What a product is: ids, versions, prices, the product itself and what may be changed of it.
//! No I/O, and nothing of protobuf: requests become these types at the edge, once.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

/// Longest name, in characters: the column is `varchar(255)`.
pub const MAX_NAME_CHARS: usize = 255;
/// Longest description, in bytes: the column has a check.
pub const MAX_DESCRIPTION_BYTES: usize = 64 * 1024;
/// Largest price in hundredths: the column is `numeric(10,2)`.
pub const MAX_PRICE_HUNDREDTHS: i64 = 9_999_999_999;

/// The id of a product: 1 to 2^63-1, assigned by Postgres.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProductId(i64);

impl ProductId {
    /// `None` when `id` is not positive.
    #[must_use]
    pub fn new(id: i64) -> Option<Self> {
        (id > 0).then_some(Self(id))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for ProductId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The version of a product: taken from one sequence while the row is locked, so for each product it
/// grows in the order of commits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub i64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A state in the history of one product, and the order of "newest wins".
///
/// The absence of a product has no version of its own in Postgres; it is newer than the version that was
/// deleted, and older than whatever is inserted afterwards. So at equal versions a tombstone wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// The version of the product, or the last one known before it was gone (0: none is known).
    pub version: Version,
    /// Whether the product was gone after that version.
    pub deleted: bool,
}

impl Revision {
    /// Older than everything: nothing is known.
    pub const NONE: Self = Self { version: Version(0), deleted: false };

    /// The product exists at `version`.
    #[must_use]
    pub fn live(version: Version) -> Self {
        Self { version, deleted: false }
    }

    /// The product is gone, and was so after `version`.
    #[must_use]
    pub fn gone_after(version: Version) -> Self {
        Self { version, deleted: true }
    }
}

/// That a product changed, and to which state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The product.
    pub id: ProductId,
    /// Its new state.
    pub revision: Revision,
}

/// A currency code: three capital letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Currency([u8; 3]);

impl Currency {
    /// A code that is already stored. SQL writers may store one that ISO 4217 does not know, and such a
    /// product is still served.
    #[must_use]
    pub fn stored(code: &str) -> Option<Self> {
        let letters: [u8; 3] = code.as_bytes().try_into().ok()?;
        letters.iter().all(u8::is_ascii_uppercase).then_some(Self(letters))
    }

    /// The three letters.
    #[must_use]
    pub fn code(&self) -> &str {
        std::str::from_utf8(&self.0).expect("both constructors take only ASCII letters")
    }
}

impl FromStr for Currency {
    type Err = Invalid;

    /// Takes the codes of ISO 4217 only.
    fn from_str(code: &str) -> Result<Self, Invalid> {
        let known =
            Self::stored(code).filter(|_| iso_currency::Currency::from_code(code).is_some());
        known.ok_or_else(|| {
            Invalid::new(format!("\"{}\" is not an ISO 4217 currency code such as USD", clip(code)))
        })
    }
}

/// A price, with the precision of `google.type.Money`: units of a currency and billionths.
///
/// A price that the API writes is 0.00 to 99999999.99 and has two decimals for every currency, because the column has
/// two: the third decimal of dinars is refused. A price that SQL wrote may have more, once the type of the column was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    units: i64,
    nanos: i32,
    currency: Currency,
}

/// The nanos of a hundredth.
const HUNDREDTH: i32 = 10_000_000;
/// Digits of a stored price: all of them fit `Money`.
const STORED_DIGITS: (usize, usize) = (18, 9);

impl Price {
    /// # Errors
    /// When the amount is negative or past the column.
    pub fn new(hundredths: i64, currency: Currency) -> Result<Self, Invalid> {
        if hundredths < 0 {
            return Err(Invalid::new("must not be negative"));
        }
        if hundredths > MAX_PRICE_HUNDREDTHS {
            return Err(Invalid::new("must not be above 99999999.99"));
        }
        let nanos = i32::try_from(hundredths % 100).expect("below 100") * HUNDREDTH;
        Ok(Self { units: hundredths / 100, nanos, currency })
    }

    /// A price that is already stored, as Postgres writes it.
    ///
    /// # Errors
    /// When `Money` cannot express it: NaN, infinity, more than 9 decimals or than 18 digits before them.
    pub fn stored(amount: &str, currency: Currency) -> Result<Self, Invalid> {
        let inexpressible = || Invalid::new(format!("Money cannot express {}", clip(amount)));
        let (negative, digits) = match amount.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, amount),
        };
        let (units, decimals) = digits.split_once('.').unwrap_or((digits, ""));
        let decimals = decimals.trim_end_matches('0');
        let (most_units, most_decimals) = STORED_DIGITS;
        let plain = units.bytes().chain(decimals.bytes()).all(|byte| byte.is_ascii_digit());
        if !plain || units.is_empty() || units.len() > most_units || decimals.len() > most_decimals
        {
            return Err(inexpressible());
        }
        let units: i64 = units.parse().map_err(|_| inexpressible())?;
        let nanos: i32 = format!("{decimals:0<9}").parse().map_err(|_| inexpressible())?;
        let sign = if negative { -1 } else { 1 };
        Ok(Self { units: units * i64::from(sign), nanos: nanos * sign, currency })
    }

    /// Reads an amount written as `12`, `12.5` or `12.50`.
    ///
    /// # Errors
    /// When it is not such a number, has more than two decimals, or is past the column.
    pub fn parse(amount: &str, currency: Currency) -> Result<Self, Invalid> {
        let (units, decimals) = amount.split_once('.').unwrap_or((amount, "0"));
        let digits =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(units.strip_prefix('-').unwrap_or(units)) || !digits(decimals) {
            return Err(Invalid::new(format!("\"{}\" is not a price such as 12.50", clip(amount))));
        }
        if units.starts_with('-') {
            return Err(Invalid::new("must not be negative"));
        }
        if decimals.len() > 2 {
            return Err(Invalid::new("must not have more than two decimals"));
        }
        let too_large = |_| Invalid::new("must not be above 99999999.99");
        let hundredths: i64 = format!("{units}{decimals:0<2}").parse().map_err(too_large)?;
        Self::new(hundredths, currency)
    }

    /// The amount in hundredths of the currency's unit. Only a stored price can have more decimals, which are cut off here.
    #[must_use]
    pub fn hundredths(self) -> i64 {
        self.units * 100 + i64::from(self.nanos / HUNDREDTH)
    }

    /// The units and billionths of `Money`, of the same sign.
    #[must_use]
    pub fn money(self) -> (i64, i32) {
        (self.units, self.nanos)
    }

    /// The currency.
    #[must_use]
    pub fn currency(self) -> Currency {
        self.currency
    }
}

/// A name that fits the column: 1 to 255 characters, none of them NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        if text.is_empty() {
            return Err(Invalid::new("must not be empty"));
        }
        if text.chars().nth(MAX_NAME_CHARS).is_some() {
            return Err(Invalid::new(format!(
                "must not be longer than {MAX_NAME_CHARS} characters"
            )));
        }
        refuse_nul(&text)?;
        Ok(Self(text))
    }
}

/// A description that fits the column: at most 64 KiB, no NUL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description(String);

impl Description {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Description {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        if text.len() > MAX_DESCRIPTION_BYTES {
            return Err(Invalid::new(format!(
                "must not be longer than {MAX_DESCRIPTION_BYTES} bytes"
            )));
        }
        refuse_nul(&text)?;
        Ok(Self(text))
    }
}

fn refuse_nul(text: &str) -> Result<(), Invalid> {
    if text.contains('\0') {
        return Err(Invalid::new(
            "must not contain the character NUL, which Postgres cannot store",
        ));
    }
    Ok(())
}

/// The start of a caller's text, short enough for an error message.
fn clip(text: &str) -> &str {
    text.char_indices().nth(20).map_or(text, |(end, _)| &text[..end])
}

/// Why a value was refused, in words that follow the name of the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

impl Invalid {
    /// With a reason such as "must not be negative".
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// A product as Postgres holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    /// Its id.
    pub id: ProductId,
    /// Its name.
    pub name: String,
    /// Its price.
    pub price: Price,
    /// Its description.
    pub description: String,
    /// Its version.
    pub version: Version,
    /// When it was created.
    pub create_time: SystemTime,
    /// When it was last changed.
    pub update_time: SystemTime,
}

/// A product that somebody wants to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewProduct {
    /// Its name.
    pub name: Name,
    /// Its price.
    pub price: Price,
    /// Its description.
    pub description: Description,
}

/// What an update changes; `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// The new name.
    pub name: Option<Name>,
    /// The new price.
    pub price: Option<Price>,
    /// The new description.
    pub description: Option<Description>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usd() -> Currency {
        "USD".parse().expect("USD is a currency")
    }

    #[test]
    fn a_tombstone_is_newer_than_what_it_deleted_and_older_than_what_follows() {
        let (v7, v8) = (Version(7), Version(8));
        assert!(Revision::live(v7) < Revision::gone_after(v7));
        assert!(Revision::gone_after(v7) < Revision::live(v8));
        assert!(Revision::NONE < Revision::gone_after(Version(0)));
    }

    #[test]
    fn prices_are_parsed_exactly_or_refused() {
        let parse = |text| Price::parse(text, usd()).map(Price::hundredths).ok();
        assert_eq!(parse("12"), Some(1200));
        assert_eq!(parse("12.5"), Some(1250));
        assert_eq!(parse("0.05"), Some(5));
        assert_eq!(parse("99999999.99"), Some(MAX_PRICE_HUNDREDTHS));
        for bad in ["", ".", "1.", ".5", "1.234", "-1", "1e3", "NaN", "1,5", " 1", "100000000.00"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
        assert_eq!(parse("99999999999999999999999"), None);
    }

    #[test]
    fn a_stored_price_is_exact_or_refused() {
        let stored = |text| Price::stored(text, usd()).map(Price::money).ok();
        assert_eq!(stored("9.99"), Some((9, 990_000_000)));
        assert_eq!(stored("-0.5"), Some((0, -500_000_000)));
        assert_eq!(stored("12"), Some((12, 0)));
        assert_eq!(stored("0.123456789000"), Some((0, 123_456_789)));
        assert_eq!(stored("999999999999999999.99"), Some((999_999_999_999_999_999, 990_000_000)));
        for bad in
            ["NaN", "Infinity", "-Infinity", "1e20", "", "-", "0.1234567891", "1000000000000000000"]
        {
            assert_eq!(stored(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn currencies_are_those_of_iso_4217() {
        assert_eq!(usd().code(), "USD");
        for bad in ["", "usd", "ZZZ", "US", "USDX"] {
            assert!(bad.parse::<Currency>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_are_counted_in_characters_and_descriptions_in_bytes() {
        assert!(Name::try_from("é".repeat(255)).is_ok());
        assert!(Name::try_from("é".repeat(256)).is_err());
        assert!(Name::try_from("a\0b".to_owned()).is_err());
        assert!(Description::try_from("x".repeat(MAX_DESCRIPTION_BYTES)).is_ok());
        assert!(Description::try_from("é".repeat(MAX_DESCRIPTION_BYTES / 2 + 1)).is_err());
    }
}
