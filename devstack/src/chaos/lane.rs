//! One direction of one connection.

use std::collections::VecDeque;
use std::future::pending;
use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::plan::{Fault, Plan, Way};
use super::tally::Tally;

const CHUNK: usize = 16 * 1024;
/// Bound on the bytes in flight per direction and connection. At the bound the proxy stops reading
/// from the sender, so that TCP holds the sender back.
const IN_FLIGHT: usize = 256 * 1024;

pub(super) struct Lane<'a> {
    way: Way,
    born: u64,
    plan: watch::Receiver<Plan>,
    tally: &'a Tally,
    in_flight: VecDeque<(Instant, Vec<u8>)>,
    in_flight_bytes: usize,
    /// Some bytes were discarded: a later one must not be delivered.
    torn: bool,
    /// The end of the sender's stream, or its error.
    ended: Option<io::Result<()>>,
}

impl<'a> Lane<'a> {
    pub(super) fn new(way: Way, plan: watch::Receiver<Plan>, tally: &'a Tally) -> Self {
        let born = plan.borrow().forgotten;
        Self {
            way,
            born,
            plan,
            tally,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            torn: false,
            ended: None,
        }
    }

    /// Forwards bytes until the sender has ended and all are delivered. On an error the caller
    /// resets the connection.
    pub(super) async fn carry(
        mut self,
        mut from: ReadHalf<'_>,
        mut to: WriteHalf<'_>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let fault = self.plan.borrow_and_update().fault_of(self.born, self.way);
            if fault == Fault::BlackHole {
                self.discard_in_flight();
            } else if self.torn {
                Tally::add(&self.tally.cut, 1);
                return Err(io::ErrorKind::ConnectionReset.into());
            } else if let Some(chunk) = self.take_due(fault) {
                to.write_all(&chunk).await?;
                Tally::add(&self.tally.lane(self.way).passed, chunk.len() as u64);
                continue;
            } else if self.in_flight.is_empty()
                && let Some(end) = self.ended.take()
            {
                end?;
                return to.shutdown().await;
            }
            self.await_change(fault, &mut from, &mut buffer).await;
        }
    }

    /// Waits for bytes, for the time to deliver some, or for a change of the plan.
    async fn await_change(&mut self, fault: Fault, from: &mut ReadHalf<'_>, buffer: &mut [u8]) {
        let due = self.in_flight.front().map(|(arrived, _)| *arrived + fault.delay());
        let deliver = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => pending().await,
            }
        };
        let has_room = self.ended.is_none() && self.in_flight_bytes < IN_FLIGHT;
        tokio::select! {
            changed = self.plan.changed() => if changed.is_err() {
                // The proxy is being dropped, and this task with it.
                pending::<()>().await;
            },
            read = from.read(buffer), if has_room => match read {
                Ok(0) => self.ended = Some(Ok(())),
                Ok(length) => self.accept(&buffer[..length]),
                Err(error) => self.ended = Some(Err(error)),
            },
            () = deliver => {}
        }
    }

    fn accept(&mut self, bytes: &[u8]) {
        if let Fault::Delay(_) = self.plan.borrow().fault_of(self.born, self.way) {
            Tally::add(&self.tally.lane(self.way).delayed, bytes.len() as u64);
        }
        self.in_flight_bytes += bytes.len();
        self.in_flight.push_back((Instant::now(), bytes.to_vec()));
    }

    fn discard_in_flight(&mut self) {
        self.torn |= !self.in_flight.is_empty();
        Tally::add(&self.tally.lane(self.way).swallowed, self.in_flight_bytes as u64);
        self.in_flight.clear();
        self.in_flight_bytes = 0;
    }

    /// The oldest bytes, if they have been in flight for the delay.
    fn take_due(&mut self, fault: Fault) -> Option<Vec<u8>> {
        let (arrived, _) = self.in_flight.front()?;
        if arrived.elapsed() < fault.delay() {
            return None;
        }
        let (_, chunk) = self.in_flight.pop_front()?;
        self.in_flight_bytes -= chunk.len();
        Some(chunk)
    }
}
