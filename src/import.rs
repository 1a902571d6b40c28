//! `hotshelf import`: imports a CSV file into the attached table, in one transaction or in several.
//!
//! Memory is bounded whatever the number of rows: one record and one chunk of COPY are held at a time, and operations that need
//! all rows run in Postgres.

mod header;
mod input;
mod progress;
mod records;
mod rows;

use std::fmt;
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use encoding_rs::Encoding;
use indicatif::HumanCount;

use crate::postgres::{self, BadRow, DuplicateId, Import, ImportTable, Merged, Postgres};
use crate::product::Invalid;
use input::Input;
use progress::{Progress, per_second};
use rows::Rows;

#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// The file, or `-` for the standard input.
    pub file: PathBuf,
    /// Leave bad rows out and report them. Otherwise a bad row fails the import.
    pub skip_bad: bool,
    /// Leave columns out that the table does not have. Otherwise one fails the import.
    pub ignore_extra: bool,
    /// Pairs of a column of the file and the field that it is; an empty one: left out.
    pub map: Vec<(String, String)>,
    /// `None`: found by the header.
    pub delimiter: Option<u8>,
    /// Of a file without a byte order mark. `None`: UTF-8, or UTF-16 where the bytes show it.
    pub encoding: Option<&'static Encoding>,
    /// Numbers are such as `1,99` and `1.299,00`.
    pub decimal_comma: bool,
    /// Writes nothing, and reports what would be written.
    pub dry_run: bool,
    /// Rows of each transaction. `None`: one transaction.
    pub commit_every: Option<NonZeroU64>,
    /// Rows that start before this line are left out.
    pub from_line: u64,
}

/// The result of an import. Its `Display` is a line for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub dry_run: bool,
    /// Rows that were read, bad ones included.
    pub rows: u64,
    /// Bad rows that were left out.
    pub left_out: u64,
    /// What the other rows did.
    pub merged: Merged,
    pub elapsed: Duration,
}

/// Why an import failed, and what of the file was imported. Its `Display` is a line for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{why}; {imported}")]
pub struct Error {
    pub why: Why,
    pub imported: Imported,
}

#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// The file cannot be read, or a row of it cannot be imported. Contains the line, the column and the reason.
    #[error("{0}")]
    File(String),
    /// Postgres failed.
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
}

/// What a failed import has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Imported {
    Nothing,
    /// All good rows before this line.
    Before(u64),
    /// The connection broke during a commit: all good rows before this line, and perhaps those of one transaction more.
    AtLeastBefore(u64),
}

/// Imports a file. It reads the file with blocking calls between the chunks, so it must not run in a process that serves.
///
/// # Errors
/// With what was imported until then.
pub async fn run(postgres: &Postgres, options: &ImportOptions) -> Result<Summary, Error> {
    let mut progress = Progress::start();
    let mut next_line = None;
    let merged = transactions(postgres, options, &mut progress, &mut next_line).await;
    let merged = merged.map_err(|why| {
        let is_unknown = matches!(why, Why::Postgres(postgres::Error::OutcomeUnknown(_)));
        let imported = match (next_line, is_unknown) {
            (None, false) => Imported::Nothing,
            (Some(line), false) => Imported::Before(line),
            (line, true) => Imported::AtLeastBefore(line.unwrap_or(1)),
        };
        Error { why, imported }
    })?;
    Ok(Summary {
        dry_run: options.dry_run,
        rows: progress.rows(),
        left_out: progress.rows_left_out(),
        merged,
        elapsed: progress.elapsed(),
    })
}

/// `next_line` becomes the line after the last row that was committed.
async fn transactions(
    postgres: &Postgres,
    options: &ImportOptions,
    progress: &mut Progress,
    next_line: &mut Option<u64>,
) -> Result<Merged, Why> {
    let refuse = |problem: Problem| Why::File(problem.in_file(&options.file));
    let table = ImportTable::of(postgres)?;
    let mut input =
        Input::open(&options.file, options.encoding).map_err(|error| refuse(error.into()))?;
    progress.size(input.size);
    let (header, mut records) = header::read(&mut input, &table, options).map_err(refuse)?;
    if !header.left_out.is_empty() {
        progress.print(&format!("columns left out: {}", header.left_out.join(", ")));
    }
    let rows = Rows::new(header, &table, options, input.converted_from.map(Encoding::name));
    let columns = rows.header.columns();
    let mut import = Import::begin(postgres, &table, &columns).await?;
    let mut merged = Merged::default();
    while let Some(record) = records.next().map_err(refuse)? {
        if record.line < options.from_line {
            continue;
        }
        let line = record.line;
        match rows.row(&record) {
            Ok(row) => import.push(line, row.id, &row.product, &row.attributes).await?,
            Err(bad) if options.skip_bad => progress.left_out(&bad.in_file(&options.file)),
            Err(bad) => return Err(refuse(bad)),
        }
        report(import.take_bad_rows(), &table, options, progress)?;
        progress.row(input.bytes_read());
        if options.commit_every.is_some_and(|every| import.rows() >= every.get()) {
            merged += commit(import, &table, options, progress).await?;
            *next_line = Some(line + 1);
            if !options.dry_run {
                progress.print(&format!("{} rows up to line {line} are imported", progress.rows()));
            }
            import = Import::begin(postgres, &table, &columns).await?;
        }
    }
    progress.merging();
    merged += commit(import, &table, options, progress).await?;
    if progress.rows() > 0 && progress.rows() == progress.rows_left_out() {
        let all = format!("{}: all {} rows are bad", options.file.display(), progress.rows());
        return Err(Why::File(all));
    }
    Ok(merged)
}

/// Ends a transaction, in a dry run without a change.
async fn commit(
    mut import: Import,
    table: &ImportTable,
    options: &ImportOptions,
    progress: &mut Progress,
) -> Result<Merged, Why> {
    let duplicate = import.duplicate_id().await?;
    report(import.take_bad_rows(), table, options, progress)?;
    if let Some(duplicate) = duplicate {
        return Err(Why::File(Problem::from(duplicate).in_file(&options.file)));
    }
    Ok(if options.dry_run { import.compare().await? } else { import.finish().await? })
}

/// Rows that PostgreSQL refused.
fn report(
    bad: Vec<BadRow>,
    table: &ImportTable,
    options: &ImportOptions,
    progress: &mut Progress,
) -> Result<(), Why> {
    for BadRow { line, field, reason } in bad {
        let column = field.map(|field| table.name(field).to_owned());
        let problem = Problem { line: Some(line), column, reason }.in_file(&options.file);
        if !options.skip_bad {
            return Err(Why::File(problem));
        }
        progress.left_out(&problem);
    }
    Ok(())
}

/// Why a file or one of its rows cannot be imported.
#[derive(Debug, PartialEq, Eq)]
struct Problem {
    line: Option<u64>,
    column: Option<String>,
    reason: String,
}

impl Problem {
    fn at(line: u64, reason: impl Into<String>) -> Self {
        Self { line: Some(line), column: None, reason: reason.into() }
    }

    fn in_column(line: u64, column: &str, reason: &Invalid) -> Self {
        Self { line: Some(line), column: Some(column.to_owned()), reason: reason.to_string() }
    }

    /// Such as "products.csv, line 17, column price: must not be negative".
    fn in_file(&self, file: &Path) -> String {
        let file = if file == Path::new("-") { Path::new("standard input") } else { file };
        let line = self.line.map(|line| format!(", line {line}")).unwrap_or_default();
        let column =
            self.column.as_ref().map(|column| format!(", column {column}")).unwrap_or_default();
        format!("{}{line}{column}: {}", file.display(), self.reason)
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self { line: None, column: None, reason: error.to_string() }
    }
}

impl From<DuplicateId> for Problem {
    fn from(duplicate: DuplicateId) -> Self {
        let DuplicateId { id, first_line, last_line } = duplicate;
        Self::at(last_line, format!("the id {id} is that of line {first_line}"))
    }
}

impl fmt::Display for Imported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => write!(f, "nothing was imported"),
            Self::Before(line) => {
                write!(f, "what is before line {line} is imported: go on with --from-line {line}")
            }
            Self::AtLeastBefore(line) => write!(
                f,
                "whether it was imported is unknown: import it again, with --from-line {line}; rows without id may be there already"
            ),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Merged { inserted, updated, unchanged } = self.merged;
        if self.dry_run {
            write!(f, "dry run, nothing was written: ")?;
        }
        write!(
            f,
            "{} rows in {:.1} s ({}/s): {} inserted, {} updated, {} unchanged",
            HumanCount(self.rows),
            self.elapsed.as_secs_f64(),
            per_second(self.rows, self.elapsed),
            HumanCount(inserted),
            HumanCount(updated),
            HumanCount(unchanged),
        )?;
        match self.left_out {
            0 => Ok(()),
            left_out => write!(f, ", {} bad ones left out", HumanCount(left_out)),
        }
    }
}
