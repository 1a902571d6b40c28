//! Prices and their currencies.

use std::str::FromStr;

use super::{Invalid, clip};

/// Largest price in hundredths: the column is `numeric(10,2)`.
const MAX_PRICE_HUNDREDTHS: i64 = 9_999_999_999;

/// A currency code: three capital letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Currency([u8; 3]);

impl Currency {
    /// A code from the database. It need not be in ISO 4217: SQL may store any three capital letters, and such a product is
    /// still served.
    #[must_use]
    pub fn stored(code: &str) -> Option<Self> {
        let letters: [u8; 3] = code.as_bytes().try_into().ok()?;
        letters.iter().all(u8::is_ascii_uppercase).then_some(Self(letters))
    }

    #[must_use]
    pub fn code(&self) -> &str {
        std::str::from_utf8(&self.0).expect("both constructors take only ASCII letters")
    }
}

impl FromStr for Currency {
    type Err = Invalid;

    /// Accepts only the codes of ISO 4217.
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
/// A price written through the API is 0.00 to 99999999.99 and has two decimals in every currency, because the column has
/// two: the third decimal of dinars is refused. A stored price may have more decimals if an operator changed the column's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    units: i64,
    nanos: i32,
    currency: Currency,
}

/// Nanos per hundredth.
const HUNDREDTH: i32 = 10_000_000;
/// The most digits of a stored price, before and after the point. `Money` can express all of them.
const STORED_DIGITS: (usize, usize) = (18, 9);

impl Price {
    /// # Errors
    /// When the amount is negative or above the maximum of the column.
    pub fn new(hundredths: i64, currency: Currency) -> Result<Self, Invalid> {
        Ok(Self::of(Amount::new(hundredths)?, currency))
    }

    #[must_use]
    pub fn of(Amount(hundredths): Amount, currency: Currency) -> Self {
        let nanos = i32::try_from(hundredths % 100).expect("below 100") * HUNDREDTH;
        Self { units: hundredths / 100, nanos, currency }
    }

    /// A price from the database, in the text format of Postgres.
    ///
    /// # Errors
    /// When `Money` cannot express it: NaN, infinity, more than 9 decimals, or more than 18 digits before the point.
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

    /// See [`Amount::parse`].
    ///
    /// # Errors
    /// The same.
    pub fn parse(amount: &str, currency: Currency) -> Result<Self, Invalid> {
        Ok(Self::of(Amount::parse(amount)?, currency))
    }

    /// The amount in hundredths of the currency's unit. Further decimals, which only a stored price can have, are cut off.
    #[must_use]
    pub fn hundredths(self) -> i64 {
        self.units * 100 + i64::from(self.nanos / HUNDREDTH)
    }

    /// The units and nanos of `Money`, which have the same sign.
    #[must_use]
    pub fn money(self) -> (i64, i32) {
        (self.units, self.nanos)
    }

    #[must_use]
    pub fn currency(self) -> Currency {
        self.currency
    }
}

/// The amount of a price without its currency, in hundredths: 0 to [`MAX_PRICE_HUNDREDTHS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount(i64);

impl Amount {
    /// # Errors
    /// When it is negative or above the maximum of the column.
    pub fn new(hundredths: i64) -> Result<Self, Invalid> {
        if hundredths < 0 {
            return Err(Invalid::new("must not be negative"));
        }
        if hundredths > MAX_PRICE_HUNDREDTHS {
            return Err(Invalid::new("must not be above 99999999.99"));
        }
        Ok(Self(hundredths))
    }

    #[must_use]
    pub fn hundredths(self) -> i64 {
        self.0
    }

    /// Reads an amount written as `12`, `12.5` or `12.50`.
    ///
    /// # Errors
    /// When it is not such a number, has more than two decimals, or is above the maximum of the column.
    pub fn parse(amount: &str) -> Result<Self, Invalid> {
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
        Self::new(hundredths)
    }
}

/// The new price of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewPrice {
    Money(Price),
    /// The product keeps its currency.
    Amount(Amount),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usd() -> Currency {
        "USD".parse().expect("USD is a currency")
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
}
