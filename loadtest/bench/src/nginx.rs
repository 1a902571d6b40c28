//! nginx with a constant reply over h2c, if it is installed.

use std::fs;
use std::net::TcpListener;

use anyhow::Result;

use crate::backends::{Backends, path};
use crate::cores::Cores;
use crate::server::Server;

/// Where distributions install it.
const PROGRAMS: [&str; 4] =
    ["/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/local/bin/nginx", "/opt/homebrew/bin/nginx"];

/// Starts nginx on a free port and in a new directory. `None` if it is not installed.
pub(crate) async fn start(
    backends: &Backends,
    reply: usize,
    cores: &Cores,
) -> Result<Option<Server>> {
    let Some(program) = PROGRAMS.iter().map(std::path::Path::new).find(|program| program.exists())
    else {
        return Ok(None);
    };
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let dir = backends.dir()?;
    let config = dir.join("nginx.conf");
    fs::write(&config, configuration(path(&dir)?, port, reply))?;
    let arguments = ["-p", path(&dir)?, "-e", "error.log", "-c", path(&config)?];
    Server::start_on(port, program, &arguments, cores).await.map(Some)
}

/// One process, so that killing it leaves no worker behind.
fn configuration(dir: &str, port: u16, reply: usize) -> String {
    let body = "x".repeat(reply);
    format!(
        "daemon off;
master_process off;
pid {dir}/nginx.pid;
error_log {dir}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    default_type application/grpc;
    keepalive_requests 1000000000;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    server {{
        listen 127.0.0.1:{port} http2;
        http2_max_concurrent_streams 1024;
        location / {{ return 200 \"{body}\"; }}
    }}
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reply_has_the_length_of_the_others() {
        let text = configuration("/d", 4711, 305);
        assert!(text.contains(&format!("return 200 \"{}\";", "x".repeat(305))));
        assert!(text.contains("listen 127.0.0.1:4711 http2;"));
    }
}
