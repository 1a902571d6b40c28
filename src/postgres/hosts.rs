//! The hosts of DATABASE_URL. Of several, connections go to the one that is the primary, so that a failover needs no proxy.

use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_ok;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection as _, Executor, Row as _, raw_sql};
use tokio::sync::watch;

use super::url::FORM;

/// How long the host that was the primary is tried alone. Too low: replicas get connections for nothing. Too high: after a failover
/// that leaves the old host without an answer, each connection takes longer.
const HEAD_START: Duration = Duration::from_millis(200);

#[derive(Clone, Debug)]
pub(super) struct Hosts {
    all: Arc<[PgConnectOptions]>,
    /// The index of the host that was the primary at the last connection.
    primary: Arc<watch::Sender<usize>>,
}

impl Hosts {
    /// # Errors
    /// One sentence for the operator.
    pub(super) fn of(url: &str) -> Result<Self, String> {
        super::url::check(url)?;
        let all = urls(url)?;
        let all = all.iter().map(|url| connect_options(url));
        Ok(Self { all: all.collect::<Result<_, _>>()?, primary: Arc::new(watch::Sender::new(0)) })
    }

    /// The options of the host that was the primary at the last connection.
    pub(super) fn primary(&self) -> &PgConnectOptions {
        &self.all[*self.primary.borrow()]
    }

    /// Changes when another host has become the primary.
    pub(super) fn watch(&self) -> watch::Receiver<usize> {
        self.primary.subscribe()
    }

    /// Connects to the primary, or to the only host, whatever it is.
    pub(super) async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        if let [only] = &self.all[..] {
            return only.connect().await;
        }
        let first = connect_to_primary(self.primary());
        if let Ok(Ok(connection)) = tokio::time::timeout(HEAD_START, first).await {
            return Ok(connection);
        }
        let attempts = self.all.iter().enumerate().map(|(index, host)| {
            Box::pin(
                async move { connect_to_primary(host).await.map(|connection| (index, connection)) },
            )
        });
        let ((index, connection), _) = select_ok(attempts).await?;
        self.primary.send_if_modified(|primary| std::mem::replace(primary, index) != index);
        Ok(connection)
    }

    /// For messages.
    pub(super) fn addresses(&self) -> String {
        self.all.iter().map(address).collect::<Vec<_>>().join(", ")
    }
}

fn address(host: &PgConnectOptions) -> String {
    match host.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", host.get_host(), host.get_port()),
    }
}

async fn connect_to_primary(host: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let mut connection = host.connect().await?;
    let row = connection.fetch_one(raw_sql("SELECT pg_is_in_recovery()")).await?;
    if !row.try_get::<bool, _>(0)? {
        return Ok(connection);
    }
    let _ = connection.close().await;
    Err(io::Error::other(format!("{} is a read-only replica", address(host))).into())
}

/// One URL for each host, without the parameter that sqlx does not know.
fn urls(url: &str) -> Result<Vec<String>, String> {
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (user, hosts) =
        authority.rsplit_once('@').map_or(("", authority), |(user, hosts)| (user, hosts));
    let at = if user.is_empty() && !authority.contains('@') { "" } else { "@" };
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let kept = query.split('&').filter(|pair| !pair.starts_with("target_session_attrs="));
    let query = kept.filter(|pair| !pair.is_empty()).collect::<Vec<_>>().join("&");
    let mark = if query.is_empty() { "" } else { "?" };
    let hosts: Vec<&str> = hosts.split(',').collect();
    if hosts.len() > 1 && hosts.iter().any(|host| host.is_empty()) {
        return Err("DATABASE_URL names several hosts, one of which is empty; use postgres://USER:PASSWORD@HOST:PORT,HOST:PORT/DATABASE".to_owned());
    }
    let one = |host: &&str| format!("{scheme}://{user}{at}{host}{path}{mark}{query}");
    Ok(hosts.iter().map(one).collect())
}

fn connect_options(url: &str) -> Result<PgConnectOptions, String> {
    let options = PgConnectOptions::from_str(url);
    let options = options.map_err(|error| {
        let why = error.to_string();
        let why = why.trim_start_matches("error with configuration: ");
        format!("DATABASE_URL cannot be read: {why}; {FORM}")
    })?;
    // sqlx would send it as a startup parameter, which pgbouncer refuses.
    Ok(options.extra_float_digits(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_has_the_rest_of_the_url() {
        let urls = |url| urls(url).unwrap();
        assert_eq!(urls("postgres://h/d"), ["postgres://h/d"]);
        assert_eq!(
            urls(
                "postgres://u:p@h1:1,[::2]:2,h3/d?sslmode=require&target_session_attrs=read-write"
            ),
            [
                "postgres://u:p@h1:1/d?sslmode=require",
                "postgres://u:p@[::2]:2/d?sslmode=require",
                "postgres://u:p@h3/d?sslmode=require"
            ]
        );
        assert_eq!(
            urls("postgres:///d?host=/run&target_session_attrs=primary"),
            ["postgres:///d?host=/run"]
        );
        let hosts = Hosts::of("postgres://u@h1:1,h2/d").unwrap();
        assert_eq!(hosts.addresses(), "h1:1, h2:5432");
        assert_eq!(hosts.primary().get_host(), "h1");
    }
}
