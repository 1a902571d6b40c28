use super::*;
use clap::CommandFactory;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn serve_is_the_default_command() {
    let cli = Cli::try_parse_from(["hotshelf", "--soft-ttl", "7s"]).expect("valid");
    assert!(cli.command.is_none());
    assert_eq!(cli.serve.caching.soft_ttl, Duration::from_secs(7));
}

#[test]
fn every_option_has_a_help_text() {
    let command = Cli::command();
    for argument in command.get_arguments() {
        assert!(argument.get_help().is_some(), "{} has no help", argument.get_id());
    }
}
