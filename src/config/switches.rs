//! Services and methods that can be switched off.

use clap::Args;
use clap::builder::BoolishValueParser;

#[derive(Args, Clone, Copy, Debug)]
pub struct SwitchArgs {
    /// Refuses CreateProduct, UpdateProduct and DeleteProduct with FAILED_PRECONDITION (READ_ONLY).
    ///
    /// Reads still serve changes by SQL and by other instances, and the relay still runs. Off: every client that reaches the port
    /// can write, unless callers are authenticated.
    #[arg(long, env, default_value_t = false, num_args = 0..=1, default_missing_value = "true")]
    #[arg(value_name = "BOOL", value_parser = BoolishValueParser::new())]
    pub read_only: bool,
    /// Whether hotshelf.v1.AdminService is served on the gRPC port.
    ///
    /// On: every client that reaches the port can query each tier, unless callers are authenticated. Off: ExplainProduct is
    /// UNIMPLEMENTED.
    #[arg(long, env, default_value_t = true, num_args = 0..=1, default_missing_value = "true")]
    #[arg(action = clap::ArgAction::Set, value_name = "BOOL", value_parser = BoolishValueParser::new())]
    pub admin_service: bool,
    /// Whether gRPC server reflection is served, through which tools such as grpcurl find the methods.
    ///
    /// On: every client that reaches the port can list the methods. Off: such tools need the protos.
    #[arg(long, env, default_value_t = true, num_args = 0..=1, default_missing_value = "true")]
    #[arg(action = clap::ArgAction::Set, value_name = "BOOL", value_parser = BoolishValueParser::new())]
    pub reflection: bool,
}
