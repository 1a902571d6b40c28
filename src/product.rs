//! The domain types: ids, versions, prices, products and patches.
//! No I/O and no protobuf: the edge converts requests into these types once.

mod attributes;
mod price;

use std::fmt;
use std::time::SystemTime;

pub use attributes::Attributes;
pub use price::{Amount, Currency, NewPrice, Price};

/// Longest name, in characters: the column is `varchar(255)`.
pub const MAX_NAME_CHARS: usize = 255;
/// Longest description, in bytes: the column has a check.
pub const MAX_DESCRIPTION_BYTES: usize = 64 * 1024;

/// The id of a product: 1 to 2^63-1, assigned by Postgres.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProductId(i64);

impl ProductId {
    /// `None` unless `id` is positive.
    #[must_use]
    pub fn new(id: i64) -> Option<Self> {
        (id > 0).then_some(Self(id))
    }

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

/// The version of a product. It comes from one sequence and is taken while the row is locked, so for each product versions grow
/// in the order of commits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub i64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A state of one product. The order of revisions is that of "newest wins".
///
/// A deletion has no version of its own in Postgres. It is newer than the deleted version and older than the version of a later
/// insert, so at equal versions the tombstone is newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// The version of the product, or the last one known before its deletion (0: none is known).
    pub version: Version,
    /// Whether the product was deleted after that version.
    pub deleted: bool,
}

impl Revision {
    /// Older than every other revision.
    pub const NONE: Self = Self { version: Version(0), deleted: false };

    #[must_use]
    pub fn live(version: Version) -> Self {
        Self { version, deleted: false }
    }

    #[must_use]
    pub fn gone_after(version: Version) -> Self {
        Self { version, deleted: true }
    }
}

/// A committed change of a product, and the state it led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub id: ProductId,
    pub revision: Revision,
}

/// A name that fits the column: 1 to 255 characters, none of them NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

impl Name {
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

/// The first 20 characters of a caller's text, for an error message.
fn clip(text: &str) -> &str {
    text.char_indices().nth(20).map_or(text, |(end, _)| &text[..end])
}

/// Why a value was refused. The text continues a sentence that begins with the name of the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

impl Invalid {
    /// With a reason such as "must not be negative".
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// A row of the attached table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    pub id: ProductId,
    /// Empty when it is NULL in the table.
    pub name: String,
    /// `None`, here and below: it is NULL, or the table has no such column.
    pub price: Option<Price>,
    /// Empty when it is NULL in the table.
    pub description: String,
    pub version: Version,
    pub create_time: Option<SystemTime>,
    pub update_time: Option<SystemTime>,
    pub attributes: Option<Attributes>,
}

/// A product to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewProduct {
    pub name: Name,
    pub price: Price,
    pub description: Description,
    pub attributes: Option<Attributes>,
}

/// An update. A field that is `None` keeps its value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    pub name: Option<Name>,
    pub price: Option<NewPrice>,
    pub description: Option<Description>,
    pub attributes: AttributesPatch,
}

/// An update of attributes. Those that it does not name keep their values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttributesPatch {
    /// Whether attributes without a value in `values` become NULL.
    pub replace_all: bool,
    pub values: Attributes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tombstone_is_newer_than_what_it_deleted_and_older_than_what_follows() {
        let (v7, v8) = (Version(7), Version(8));
        assert!(Revision::live(v7) < Revision::gone_after(v7));
        assert!(Revision::gone_after(v7) < Revision::live(v8));
        assert!(Revision::NONE < Revision::gone_after(Version(0)));
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
