//! `hotshelf config`: every setting with the value in effect and its source.

use std::ffi::OsStr;
use std::fmt::Write;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory, FromArgMatches};

use super::{Cli, ServeArgs};

/// The settings in the format of a `.env` file, the source of each behind it. Passwords are replaced by `***`.
///
/// # Errors
/// One sentence when the settings do not work together.
pub fn effective(matches: &ArgMatches) -> Result<String, String> {
    let matches = matches.subcommand_matches("config").unwrap_or(matches);
    let args = ServeArgs::from_arg_matches(matches).map_err(|error| error.to_string())?;
    args.check()?;
    let mut command = Cli::command();
    command.build();
    let serve = command.find_subcommand("serve").expect("serve is a subcommand");
    let mut text = String::new();
    for arg in serve.get_arguments().filter(|arg| arg.get_env().is_some()) {
        let Some(name) = arg.get_env().and_then(OsStr::to_str) else { continue };
        let source = match matches.value_source(arg.get_id().as_str()) {
            Some(ValueSource::CommandLine) => "command line",
            Some(ValueSource::EnvVariable) => "environment",
            _ => "default",
        };
        let value = shown(arg, matches);
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name}={value:<40} # {source}");
    }
    Ok(text)
}

fn shown(arg: &Arg, matches: &ArgMatches) -> String {
    let values = matches.get_raw(arg.get_id().as_str()).into_iter().flatten();
    let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
    let value = values.join(",");
    let value = if arg.is_hide_env_values_set() { without_secrets(&value) } else { value };
    if value.contains([' ', '#', '"']) { format!("{value:?}") } else { value }
}

/// A URL without its password, in the authority or in the query.
fn without_secrets(url: &str) -> String {
    if url.is_empty() {
        return String::new();
    }
    let Some((scheme, rest)) = url.split_once("://") else { return "***".to_owned() };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let authority = match authority.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((user, _)) => format!("{user}:***@{host}"),
            None => format!("{user}@{host}"),
        },
        None => authority.to_owned(),
    };
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let query =
        query.split('&').filter(|pair| !pair.is_empty()).map(|pair| match pair.split_once('=') {
            Some((name, _)) if name.to_lowercase().contains("pass") => format!("{name}=***"),
            _ => pair.to_owned(),
        });
    let query = query.collect::<Vec<_>>().join("&");
    let mark = if query.is_empty() { "" } else { "?" };
    format!("{scheme}://{authority}{path}{mark}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_hidden_wherever_they_are_in_a_url() {
        for (url, shown) in [
            ("redis://localhost:6379", "redis://localhost:6379"),
            ("redis://:secret@h:1/2", "redis://:***@h:1/2"),
            ("postgres://u:s3:c@ret@h/db", "postgres://u:***@h/db"),
            ("postgres://u@h/db", "postgres://u@h/db"),
            ("postgres:///db?host=/tmp&password=secret", "postgres:///db?host=/tmp&password=***"),
            ("host=h password=secret", "***"),
        ] {
            assert_eq!(without_secrets(url), shown, "{url}");
        }
    }
}
