//! When and why the server closes a connection.

use std::error::Error;
use std::future::pending;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::EdgeOptions;
use super::streams::Activity;
use crate::drain::Drain;
use crate::metrics::ConnectionEnd;

/// Fraction by which the age varies in both directions, so that connections opened together are not closed together.
const JITTER: f64 = 0.1;
/// Idleness is checked this often within `max_idle`, so an idle connection may stay open a quarter longer.
const IDLE_CHECKS: u32 = 4;

/// Why the server closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Drain,
    /// The client has not sent the head of a request in time (HTTP/1.1).
    Silent,
    /// The client has not read the response to a call in time (HTTP/1.1).
    Unread,
    /// It has reached its maximum age. The client connects again, and a connection-level load balancer can move it.
    Age,
    /// It has had no calls for `max_idle`.
    Idle,
}

impl Ending {
    /// How it is counted. The drain of an instance is not counted.
    pub(super) fn counted(self) -> Option<ConnectionEnd> {
        match self {
            Self::Drain => None,
            Self::Silent => Some(ConnectionEnd::Silent),
            Self::Unread => Some(ConnectionEnd::Unread),
            Self::Age => Some(ConnectionEnd::Age),
            Self::Idle => Some(ConnectionEnd::Idle),
        }
    }
}

/// Resolves when the server has to close the connection.
pub(super) async fn ending(options: EdgeOptions, activity: &Activity, drain: &Drain) -> Ending {
    tokio::select! {
        ending = aged(options, drain) => ending,
        () = idle(activity, options.max_idle) => Ending::Idle,
    }
}

/// Resolves when the connection is too old or the drain begins.
pub(super) async fn aged(options: EdgeOptions, drain: &Drain) -> Ending {
    tokio::select! {
        () = drain.announced() => Ending::Drain,
        () = after(options.max_age.map(jittered)) => Ending::Age,
    }
}

/// Resolves when the calls still in flight on a closing connection have to be cut off. Returns how that is counted.
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

/// Whether h2 closed the connection because the peer flooded it, for example with reset requests.
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

/// Resolves when there has been no call for `max_idle`.
async fn idle(activity: &Activity, max_idle: Option<Duration>) {
    let Some(max_idle) = max_idle else { return pending().await };
    let (mut since, mut seen) = (Instant::now(), 0);
    loop {
        sleep(max_idle / IDLE_CHECKS).await;
        let accepted = activity.accepted();
        if activity.is_busy() || accepted != seen {
            (since, seen) = (Instant::now(), accepted);
        } else if since.elapsed() >= max_idle {
            return;
        }
    }
}
