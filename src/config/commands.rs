//! The settings of commands that do not serve.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use encoding_rs::Encoding;

use super::limits::{DAY, MILLISECOND, MINUTE, address, duration};
use super::{DatabaseArgs, ServeArgs};
use crate::attach::How;
use crate::import::ImportOptions;
use crate::postgres::{AttachOptions, AttributeChoice, ColumnChoices};

#[derive(Args, Clone, Debug)]
pub struct HealthArgs {
    /// The admin port of the instance; the setting is the one of `serve`.
    #[arg(long, env, default_value = "127.0.0.1:9464", value_name = "ADDRESS", value_parser = address)]
    pub admin_addr: SocketAddr,
    /// Asks whether the process is alive, which it is also while it starts or drains.
    #[arg(long)]
    pub live: bool,
    /// How long to wait for an answer.
    #[arg(long, default_value = "2s", value_name = "DURATION", value_parser = duration(MILLISECOND, MINUTE))]
    pub timeout: Duration,
}

/// Which findings of `doctor` make its exit code other than 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FailOn {
    Warning,
    Error,
}

/// How `doctor` prints what it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    Table,
    Json,
}

#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// What the exit code tells: with warning it is 1 if there are errors and 2 if there are only warnings, with error 0 if there are
    /// only warnings.
    #[arg(long, value_enum, default_value = "warning", value_name = "SEVERITY")]
    pub fail_on: FailOn,
    /// How to print what was found.
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub format: ReportFormat,
    #[command(flatten)]
    pub serve: ServeArgs,
}

#[derive(Args, Clone, Debug)]
pub struct ImportArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The CSV file, also one of gzip or zstd; - reads standard input.
    pub file: PathBuf,
    /// Skips invalid rows and reports them, instead of importing nothing.
    #[arg(long)]
    pub skip_bad: bool,
    /// Imports nothing when the table already has products.
    #[arg(long)]
    pub if_empty: bool,
    /// Imports a column of the file as another field: --map Preis=price --map Farbe=color. Without a field it is left out.
    #[arg(long, value_name = "COLUMN=FIELD", value_parser = column_and_field)]
    pub map: Vec<(String, String)>,
    /// Leaves columns out that the table does not have, instead of importing nothing.
    #[arg(long)]
    pub ignore_extra: bool,
    /// What separates the fields: one character, or tab; found by the header unless given.
    #[arg(long, value_name = "CHARACTER", value_parser = delimiter)]
    pub delimiter: Option<u8>,
    /// The encoding of a file that does not say it, such as windows-1252; UTF-8 and UTF-16 are recognised.
    #[arg(long, value_name = "NAME", value_parser = encoding)]
    pub encoding: Option<&'static Encoding>,
    /// Reads numbers such as 1,99 and 1.299,00.
    #[arg(long)]
    pub decimal_comma: bool,
    /// Reads and checks everything, and says what would be written. Constraints and triggers of the table are not tried.
    #[arg(long)]
    pub dry_run: bool,
    /// Commits after each so many rows, so that an import that fails can go on with --from-line; in one transaction unless given.
    #[arg(long, value_name = "ROWS")]
    pub commit_every: Option<NonZeroU64>,
    /// Leaves out the rows before this line.
    #[arg(long, value_name = "LINE", default_value_t = 1)]
    pub from_line: u64,
    /// The catalogue to import into, where several tables of the database are attached; empty: the only one.
    #[arg(long, env, default_value = "", value_name = "NAME")]
    pub catalog: String,
}

/// An empty name of a column: the field is not mapped.
#[derive(Args, Clone, Debug)]
pub struct AttachArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The table, as TABLE (of the schema public) or SCHEMA.TABLE.
    pub table: String,
    /// The name of the catalogue, which CATALOG of serve names; the name of the table unless given.
    #[arg(long, value_name = "NAME")]
    pub catalog: Option<String>,
    /// The column of names; here and below: guessed unless given, and '' for none.
    #[arg(long, value_name = "COLUMN")]
    pub name_column: Option<String>,
    /// The column of prices: numeric, or an integer.
    #[arg(long, value_name = "COLUMN")]
    pub price_column: Option<String>,
    /// What an integer price counts: 2 for hundredths such as cents, 0 for whole units.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=9))]
    pub price_decimals: Option<u32>,
    /// The column of currency codes.
    #[arg(long, value_name = "COLUMN")]
    pub currency_column: Option<String>,
    /// The currency of all prices, where no column has it; USD unless given.
    #[arg(long, value_name = "CODE")]
    pub currency: Option<String>,
    /// The column of descriptions.
    #[arg(long, value_name = "COLUMN")]
    pub description_column: Option<String>,
    /// The column of the times of creation.
    #[arg(long, value_name = "COLUMN")]
    pub created_column: Option<String>,
    /// The column of the times of the last change, which writes through the API set.
    #[arg(long, value_name = "COLUMN")]
    pub updated_column: Option<String>,
    /// The other columns to serve as attributes: all, none, or a list such as sku,stock.
    #[arg(long, value_name = "COLUMNS")]
    pub attributes: Option<String>,
    /// Takes in changes of an attached table, and changes its mapping; running instances follow.
    #[arg(long)]
    pub again: bool,
    /// Does nothing when the table is attached already.
    #[arg(long, conflicts_with = "again")]
    pub if_needed: bool,
    #[command(flatten)]
    pub how: ChangeArgs,
}

#[derive(Args, Clone, Debug)]
pub struct DetachArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The table, or the name of its catalogue.
    pub table: String,
    #[command(flatten)]
    pub how: ChangeArgs,
}

/// How a table is changed.
#[derive(Args, Clone, Debug)]
pub struct ChangeArgs {
    /// Does not ask.
    #[arg(long)]
    pub yes: bool,
    /// Prints the SQL, and changes nothing.
    #[arg(long)]
    pub print_sql: bool,
    /// How long to try to lock the table, which other transactions may use; each try is short, so that nothing waits behind it.
    #[arg(long, default_value = "1m", value_name = "DURATION", value_parser = duration(MILLISECOND, DAY))]
    pub wait: Duration,
}

fn column_and_field(text: &str) -> Result<(String, String), String> {
    let (column, field) = text.rsplit_once('=').ok_or("it is such as Preis=price")?;
    Ok((column.trim().to_owned(), field.trim().to_owned()))
}

fn delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        b"tab" | b"\\t" => Ok(b'\t'),
        [one] if one.is_ascii() && !one.is_ascii_alphanumeric() && !b"\"\r\n".contains(one) => {
            Ok(*one)
        }
        _ => Err("it is one character of ASCII such as ';', or tab".to_owned()),
    }
}

fn encoding(name: &str) -> Result<&'static Encoding, String> {
    let encoding = Encoding::for_label(name.as_bytes());
    encoding.ok_or_else(|| "it is a name such as windows-1252 or shift_jis".to_owned())
}

impl ImportArgs {
    #[must_use]
    pub fn options(&self) -> ImportOptions {
        ImportOptions {
            file: self.file.clone(),
            skip_bad: self.skip_bad,
            ignore_extra: self.ignore_extra,
            map: self.map.clone(),
            delimiter: self.delimiter,
            encoding: self.encoding,
            decimal_comma: self.decimal_comma,
            dry_run: self.dry_run,
            commit_every: self.commit_every,
            from_line: self.from_line,
        }
    }
}

impl ChangeArgs {
    #[must_use]
    pub fn how(&self) -> How {
        How { yes: self.yes, print_sql: self.print_sql, wait: self.wait }
    }
}

impl AttachArgs {
    #[must_use]
    pub fn options(&self) -> AttachOptions {
        AttachOptions {
            table: self.table.clone(),
            catalogue: self.catalog.clone(),
            columns: ColumnChoices {
                name: self.name_column.clone(),
                price: self.price_column.clone(),
                currency: self.currency_column.clone(),
                description: self.description_column.clone(),
                create_time: self.created_column.clone(),
                update_time: self.updated_column.clone(),
            },
            price_decimals: self.price_decimals,
            currency: self.currency.clone(),
            attributes: self.attributes.as_deref().map(AttributeChoice::parse),
            again: self.again,
            if_needed: self.if_needed,
        }
    }
}
