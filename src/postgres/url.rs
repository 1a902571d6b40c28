//! Refuses a DATABASE_URL of which a part would be ignored or fail later.

use std::net::IpAddr;

use crate::urls::Parts;

pub(super) const FORM: &str = "use postgres://USER:PASSWORD@HOST:PORT/DATABASE";
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
const FILES: [&str; 7] =
    ["sslrootcert", "ssl-root-cert", "ssl-ca", "sslcert", "ssl-cert", "sslkey", "ssl-key"];
/// What else is read; sqlx ignores others.
const OTHERS: [&str; 12] = [
    "sslmode",
    "ssl-mode",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
    "target_session_attrs",
];

/// # Errors
/// One sentence for the operator.
pub(super) fn check(url: &str) -> Result<(), String> {
    let parts = Parts::of("DATABASE_URL", url, FORM)?;
    if !["postgres", "postgresql"].contains(&parts.scheme) {
        return Err(format!("DATABASE_URL has the scheme \"{}\"; {FORM}", parts.scheme));
    }
    if parts.parameters.iter().any(|(name, value)| *name == "host" && value.contains(',')) {
        return Err("DATABASE_URL names several hosts in host=; use postgres://USER:PASSWORD@HOST:PORT,HOST:PORT/DATABASE".to_owned());
    }
    let known = [&FILES[..], &OTHERS].concat();
    if let Some(name) = parts.unknown(&known) {
        let names: Vec<&str> = known.iter().filter(|name| !name.contains('-')).copied().collect();
        return Err(format!(
            "DATABASE_URL has the parameter {name}, which has no effect here; remove it, or use one of {}",
            names.join(", ")
        ));
    }
    for (name, value) in &parts.parameters {
        let wanted = check_parameter(name, value);
        wanted.map_err(|wanted| format!("DATABASE_URL has {name}={value}; {wanted}"))?;
    }
    let has = |names: [&str; 2]| parts.parameters.iter().any(|(name, _)| names.contains(name));
    if has(["sslcert", "ssl-cert"]) != has(["sslkey", "ssl-key"]) {
        return Err(
            "sslcert and sslkey in DATABASE_URL belong together; give both, or neither".to_owned()
        );
    }
    Ok(())
}

/// What is wanted instead of a value that cannot be used.
fn check_parameter(name: &str, value: &str) -> Result<(), String> {
    let (is_usable, wanted) = match name {
        "sslmode" | "ssl-mode" => (SSL_MODES.contains(&value), SSL_MODES.join(", ")),
        "port" => (value.parse::<u16>().is_ok(), "a port, such as 5432".to_owned()),
        // Connections go to the primary in any case.
        "target_session_attrs" => (
            ["read-write", "primary"].contains(&value),
            "read-write, which is the primary".to_owned(),
        ),
        "hostaddr" => (value.parse::<IpAddr>().is_ok(), "an IP address".to_owned()),
        "statement-cache-capacity" => (value.parse::<usize>().is_ok(), "a number".to_owned()),
        // A path that is percent-encoded is left to sqlx, and so is a certificate itself.
        file if FILES.contains(&file) && !value.contains(['%', ' ', '+']) => {
            return match std::fs::read(value) {
                Err(error) => Err(format!("the file cannot be read ({error}): give a PEM file")),
                Ok(bytes) if !bytes.windows(10).any(|part| part == b"-----BEGIN") => {
                    Err("the file is no PEM file: give one".to_owned())
                }
                Ok(_) => Ok(()),
            };
        }
        _ => return Ok(()),
    };
    if is_usable { Ok(()) } else { Err(format!("use {wanted}")) }
}
