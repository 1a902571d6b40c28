//! Secrets from files: neither `ps` nor a dump of the environment shows them.

use std::fs;

use super::{Cli, Command, DatabaseArgs, RedisArgs, ServeArgs};

impl Cli {
    /// Replaces DATABASE_URL and REDIS_URL with the contents of their files, where these are given.
    ///
    /// # Errors
    /// One sentence for the operator when a file cannot be used, or both a URL and its file are given.
    pub fn read_secrets(&mut self) -> Result<(), String> {
        match &mut self.command {
            None => self.serve.read_secrets(),
            Some(Command::Serve(args)) => args.read_secrets(),
            Some(Command::Doctor(args)) => args.serve.read_secrets(),
            Some(Command::Attach(args)) => args.database.read_secrets(),
            Some(Command::Detach(args)) => args.database.read_secrets(),
            Some(Command::Migrate(args)) => args.read_secrets(),
            Some(Command::Import(args)) => args.database.read_secrets(),
            // It prints the name of the file, and refuses what `serve` would refuse.
            Some(Command::Config(args)) => args.read_secrets(),
            Some(
                Command::Health(_)
                | Command::Completions { .. }
                | Command::Openapi
                | Command::Descriptors,
            ) => Ok(()),
        }
    }
}

impl ServeArgs {
    fn read_secrets(&mut self) -> Result<(), String> {
        self.database.read_secrets()?;
        self.redis.read_secrets()
    }
}

impl DatabaseArgs {
    #[must_use]
    pub fn of(database_url: String) -> Self {
        Self { database_url, database_url_file: String::new() }
    }

    pub(super) const DEFAULT: &str = "postgres://hotshelf:hotshelf@localhost:5432/hotshelf";

    fn read_secrets(&mut self) -> Result<(), String> {
        secret("DATABASE_URL", Self::DEFAULT, &mut self.database_url, &self.database_url_file)
    }
}

impl RedisArgs {
    pub(super) const DEFAULT: &str = "redis://localhost:6379";

    fn read_secrets(&mut self) -> Result<(), String> {
        secret("REDIS_URL", Self::DEFAULT, &mut self.redis_url, &self.redis_url_file)
    }
}

fn secret(name: &str, default: &str, value: &mut String, file: &str) -> Result<(), String> {
    if file.is_empty() {
        return Ok(());
    }
    if value != default {
        return Err(format!("{name} and {name}_FILE are both given; give one of them"));
    }
    let unusable = |why: String| {
        format!("{name}_FILE {file} cannot be used: {why}; give it a file with one line, the URL")
    };
    let text = fs::read_to_string(file).map_err(|error| unusable(error.to_string()))?;
    let text = text.trim_end_matches(['\n', '\r']);
    if text.is_empty() || text.contains(['\n', '\r']) {
        return Err(unusable("it does not hold one line".to_owned()));
    }
    text.clone_into(value);
    Ok(())
}
