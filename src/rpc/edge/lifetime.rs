//! Why and when the server ends a connection.

use std::error::Error;
use std::future::pending;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::EdgeOptions;
use super::streams::Activity;
use crate::drain::Drain;
use crate::metrics::ConnectionEnd;

/// The age varies by so much in both directions, so that connections that were opened together do not end together.
const JITTER: f64 = 0.1;
/// How often an idle connection is looked at before it ends: it may last a quarter longer.
const LOOKS: u32 = 4;

/// Why a connection is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The instance shuts down.
    Drain,
    /// Its peer has not begun to speak HTTP/2.
    Silent,
    /// It has lived long enough: its client connects anew, and a balancer of connections decides anew.
    Age,
    /// It has had no calls.
    Idle,
}

impl Ending {
    /// What is counted.
    pub(super) fn counted(self) -> Option<ConnectionEnd> {
        match self {
            Self::Drain => None,
            Self::Silent => Some(ConnectionEnd::Silent),
            Self::Age => Some(ConnectionEnd::Age),
            Self::Idle => Some(ConnectionEnd::Idle),
        }
    }
}

/// Resolves when the server is to end a connection.
pub(super) async fn ending(
    options: EdgeOptions,
    spoke: &Notify,
    activity: &Activity,
    drain: &Drain,
) -> Ending {
    tokio::select! {
        () = drain.announced() => Ending::Drain,
        () = silent(spoke, options.keepalive_timeout) => Ending::Silent,
        () = after(options.max_age.map(jittered)) => Ending::Age,
        () = idle(activity, options.max_idle) => Ending::Idle,
    }
}

/// Resolves when what is still in flight on a connection that ends is to be cut off, with what is counted then.
pub(super) async fn cut_off(
    ending: Ending,
    grace: Duration,
    drain: &Drain,
) -> Option<ConnectionEnd> {
    let grace = (ending != Ending::Drain).then_some(grace);
    tokio::select! {
        () = drain.ended() => None,
        () = after(grace) => Some(ConnectionEnd::Grace),
    }
}

/// Whether h2 ended a connection because its peer flooded it, with requests that it took back, say.
pub(super) fn is_flood(error: &(dyn Error + 'static)) -> bool {
    let h2 = error.downcast_ref::<h2::Error>();
    let flood = h2.is_some_and(|error| {
        error.is_library() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM)
    });
    flood || error.source().is_some_and(is_flood)
}

async fn after(duration: Option<Duration>) {
    match duration {
        Some(duration) => sleep(duration).await,
        None => pending().await,
    }
}

fn jittered(age: Duration) -> Duration {
    age.mul_f64(1.0 - JITTER + 2.0 * JITTER * fastrand::f64())
}

/// Resolves when the peer has not begun to speak in time; keepalive only works from then on.
async fn silent(spoke: &Notify, limit: Duration) {
    if timeout(limit, spoke.notified()).await.is_ok() {
        pending().await
    }
}

/// Resolves when there has been no call for so long.
async fn idle(activity: &Activity, longest: Option<Duration>) {
    let Some(longest) = longest else { return pending().await };
    let (mut since, mut seen) = (Instant::now(), 0);
    loop {
        sleep(longest / LOOKS).await;
        let accepted = activity.accepted();
        if activity.is_busy() || accepted != seen {
            (since, seen) = (Instant::now(), accepted);
        } else if since.elapsed() >= longest {
            return;
        }
    }
}
