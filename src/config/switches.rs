//! What an instance offers at all.

use clap::Args;
use clap::builder::BoolishValueParser;

/// What an instance offers at all.
#[derive(Args, Clone, Copy, Debug)]
pub struct SwitchArgs {
    /// Refuses CreateProduct, UpdateProduct and DeleteProduct with FAILED_PRECONDITION (READ_ONLY).
    ///
    /// Changes by SQL and by other instances are served as ever, and the relay goes on. Off: every client that reaches the port
    /// can write.
    #[arg(long, env, default_value_t = false, num_args = 0..=1, default_missing_value = "true")]
    #[arg(value_name = "BOOL", value_parser = BoolishValueParser::new())]
    pub read_only: bool,
    /// Whether hotshelf.v1.AdminService is served on the gRPC port.
    ///
    /// On: every client that reaches the port can have each tier asked. Off: ExplainProduct is UNIMPLEMENTED.
    #[arg(long, env, default_value_t = true, num_args = 0..=1, default_missing_value = "true")]
    #[arg(action = clap::ArgAction::Set, value_name = "BOOL", value_parser = BoolishValueParser::new())]
    pub admin_service: bool,
    /// Whether gRPC server reflection is served, by which grpcurl and the like learn the methods.
    ///
    /// On: every client that reaches the port can list them. Off: such tools need the protos.
    #[arg(long, env, default_value_t = true, num_args = 0..=1, default_missing_value = "true")]
    #[arg(action = clap::ArgAction::Set, value_name = "BOOL", value_parser = BoolishValueParser::new())]
    pub reflection: bool,
}
