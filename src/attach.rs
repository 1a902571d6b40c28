//! `hotshelf attach` and `hotshelf detach`: say what will be done to a table, ask, and do it.

use std::fmt;
use std::io::{self, BufRead, IsTerminal, Write};
use std::time::Duration;

use crate::postgres::{self, AttachOptions, Migrate, Plan, Postgres};

/// How a table is changed.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Do not ask.
    pub yes: bool,
    /// Print the SQL, and change nothing.
    pub print_sql: bool,
    /// How long to try to lock the table.
    pub wait: Duration,
}

/// What became of it. Its `Display` is a line for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done(&'static str),
    /// The SQL, which is all that standard output gets.
    Printed,
}

/// Why nothing was changed. Its `Display` is a line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    #[error("standard input is not a terminal, so the plan cannot be confirmed; give --yes")]
    CannotAsk,
    #[error("nothing was changed")]
    Declined,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(what) => f.write_str(what),
            Self::Printed => Ok(()),
        }
    }
}

/// Attaches a table.
///
/// # Errors
/// One line for the operator. Nothing was changed.
pub async fn attach(
    postgres: &Postgres,
    options: &AttachOptions,
    how: How,
) -> Result<Outcome, Error> {
    let plan = postgres.plan_attach(options).await?;
    if plan.is_empty() {
        return Ok(Outcome::Done("the table is attached already; nothing was changed"));
    }
    if !confirmed(&plan, how)? {
        return Ok(Outcome::Printed);
    }
    postgres.migrate(Migrate::Auto).await?;
    postgres.execute(&plan, how.wait).await?;
    Ok(Outcome::Done(match options.again {
        true => "attached again; running instances follow within seconds",
        false => "attached; hotshelf serve serves it",
    }))
}

/// Detaches a table, which is given by its name or by that of its catalogue.
///
/// # Errors
/// One line for the operator. Nothing was changed.
pub async fn detach(postgres: &Postgres, name: &str, how: How) -> Result<Outcome, Error> {
    let plan = postgres.plan_detach(name).await?;
    if !confirmed(&plan, how)? {
        return Ok(Outcome::Printed);
    }
    postgres.execute(&plan, how.wait).await?;
    Ok(Outcome::Done("detached"))
}

/// Prints the plan, or its SQL, and asks. False: it was only to be printed.
fn confirmed(plan: &Plan, how: How) -> Result<bool, Error> {
    // A closed standard output or error is no failure.
    if how.print_sql {
        let _ = io::stdout().write_all(plan.script().as_bytes());
        return Ok(false);
    }
    let _ = write!(io::stderr(), "{plan}");
    if how.yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() {
        return Err(Error::CannotAsk);
    }
    let _ = write!(io::stderr(), "Continue? [y/N] ");
    let mut answer = String::new();
    let _ = io::stdin().lock().read_line(&mut answer);
    match ["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
        true => Ok(true),
        false => Err(Error::Declined),
    }
}
