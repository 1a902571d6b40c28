//! Services and methods that can be switched off.

use clap::Args;

use super::limits::boolean;
use crate::rpc::ServedOn;

#[derive(Args, Clone, Copy, Debug)]
pub struct SwitchArgs {
    /// Refuses CreateProduct, UpdateProduct and DeleteProduct with FAILED_PRECONDITION (READ_ONLY).
    ///
    /// Reads still serve changes by SQL and by other instances, and the relay still runs. Off: every client that reaches the port
    /// can write, unless callers are authenticated.
    #[arg(long, env, default_value_t = false, num_args = 0..=1, default_missing_value = "true")]
    #[arg(value_name = "BOOL", value_parser = boolean)]
    pub read_only: bool,
    /// Where hotshelf.v1.AdminService is served: true for the gRPC port, admin-port, or false for nowhere.
    ///
    /// true: every client that reaches the gRPC port can query each tier, unless callers are authenticated. admin-port: every client
    /// that reaches the admin port can, without authentication. false: ExplainProduct is UNIMPLEMENTED.
    #[arg(long, env, default_value = "true", num_args = 0..=1, default_missing_value = "true")]
    #[arg(value_name = "WHERE", value_parser = served_on)]
    pub admin_service: ServedOn,
    /// Where gRPC server reflection is served, through which tools such as grpcurl find the methods: true for the gRPC port (and for
    /// the admin port, if AdminService is there), admin-port, or false for nowhere.
    ///
    /// true: every client that reaches the gRPC port can list the methods. false: such tools need the protos.
    #[arg(long, env, default_value = "true", num_args = 0..=1, default_missing_value = "true")]
    #[arg(value_name = "WHERE", value_parser = served_on)]
    pub reflection: ServedOn,
}

fn served_on(text: &str) -> Result<ServedOn, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "y" | "on" | "t" | "1" => Ok(ServedOn::GrpcPort),
        "admin-port" => Ok(ServedOn::AdminPort),
        "false" | "no" | "n" | "off" | "f" | "0" => Ok(ServedOn::Nowhere),
        _ => Err("must be true, admin-port or false".to_owned()),
    }
}
