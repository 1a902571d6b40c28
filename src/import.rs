//! `hotshelf import`: imports a CSV file into the attached table, in one transaction.
//!
//! Memory is bounded whatever the number of rows: one record and one chunk of COPY are held at a time, and operations that need
//! all rows run in Postgres.

mod file;
mod progress;
mod records;
mod rows;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::HumanCount;

use crate::postgres::{self, DuplicateId, Import, Merged, Postgres};
use crate::product::Invalid;
use file::CsvFile;
use progress::{Progress, per_second};

#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// The file, or `-` for the standard input.
    pub file: PathBuf,
    /// Leave bad rows out and report them. Otherwise a bad row fails the import.
    pub skip_bad: bool,
}

/// The result of an import. Its `Display` is a line for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Rows that were read, bad ones included.
    pub rows: u64,
    /// Bad rows that were left out.
    pub left_out: u64,
    /// What the other rows did.
    pub merged: Merged,
    pub elapsed: Duration,
}

/// Why an import failed. Its `Display` is a line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read, or a row of it cannot be imported. Contains the line, the column and the reason.
    #[error("{0}; nothing was imported")]
    File(String),
    /// Postgres failed.
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
}

/// Imports a file. It reads the file with blocking calls between the chunks, so it must not run in a process that serves.
///
/// # Errors
/// [`Error::File`] when nothing was imported because of the file. After [`Error::Postgres`] nothing was imported either,
/// unless the error inside is [`postgres::Error::OutcomeUnknown`].
pub async fn run(postgres: &Postgres, options: &ImportOptions) -> Result<Summary, Error> {
    let refuse = |problem: Problem| Error::File(problem.in_file(&options.file));
    let mut file = CsvFile::open(&options.file).map_err(refuse)?;
    let mut import = Import::begin(postgres).await?;
    let mut progress = Progress::start(file.size());
    while let Some(row) = file.next_row().map_err(refuse)? {
        match row {
            Ok(row) => match import.check(&row.product) {
                Ok(()) => import.push(row.line, row.id, &row.product).await?,
                Err((column, why)) => {
                    let bad = Problem::in_column(row.line, column, &why);
                    if !options.skip_bad {
                        return Err(refuse(bad));
                    }
                    progress.left_out(&bad.in_file(&options.file));
                }
            },
            Err(bad) if options.skip_bad => progress.left_out(&bad.in_file(&options.file)),
            Err(bad) => return Err(refuse(bad)),
        }
        progress.row(file.bytes_read());
    }
    progress.merging();
    if let Some(duplicate) = import.duplicate_id().await? {
        return Err(refuse(duplicate.into()));
    }
    if progress.rows() > 0 && progress.rows() == progress.rows_left_out() {
        let all = format!("{}: all {} rows are bad", options.file.display(), progress.rows());
        return Err(Error::File(all));
    }
    let merged = import.finish(file.has_descriptions()).await?;
    Ok(Summary {
        rows: progress.rows(),
        left_out: progress.rows_left_out(),
        merged,
        elapsed: progress.elapsed(),
    })
}

/// Why a file or one of its rows cannot be imported.
#[derive(Debug, PartialEq, Eq)]
struct Problem {
    line: Option<u64>,
    column: Option<&'static str>,
    reason: String,
}

impl Problem {
    fn at(line: u64, reason: impl Into<String>) -> Self {
        Self { line: Some(line), column: None, reason: reason.into() }
    }

    fn in_column(line: u64, column: &'static str, reason: &Invalid) -> Self {
        Self { line: Some(line), column: Some(column), reason: reason.to_string() }
    }

    /// Such as "products.csv, line 17, column price: must not be negative".
    fn in_file(&self, file: &Path) -> String {
        let file = if file == Path::new("-") { Path::new("standard input") } else { file };
        let line = self.line.map(|line| format!(", line {line}")).unwrap_or_default();
        let column = self.column.map(|column| format!(", column {column}")).unwrap_or_default();
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

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Merged { inserted, updated, unchanged } = self.merged;
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
