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
/// Bytes under way per direction and connection. At the bound the sender is no longer read from, as
/// by a full network.
const UNDER_WAY: usize = 256 * 1024;

pub(super) struct Lane<'a> {
    way: Way,
    born: u64,
    plan: watch::Receiver<Plan>,
    tally: &'a Tally,
    under_way: VecDeque<(Instant, Vec<u8>)>,
    under_way_bytes: usize,
    /// Some bytes are lost for good, so that no later one may be delivered.
    torn: bool,
    /// How the sender ended, once it has.
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
            under_way: VecDeque::new(),
            under_way_bytes: 0,
            torn: false,
            ended: None,
        }
    }

    /// Carries bytes until the sender has ended and all is delivered; an error means that the
    /// connection is to be reset.
    pub(super) async fn carry(
        mut self,
        mut from: ReadHalf<'_>,
        mut to: WriteHalf<'_>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let fault = self.plan.borrow_and_update().fault_of(self.born, self.way);
            if fault == Fault::BlackHole {
                self.swallow_under_way();
            } else if self.torn {
                Tally::add(&self.tally.cut, 1);
                return Err(io::ErrorKind::ConnectionReset.into());
            } else if let Some(chunk) = self.take_due(fault) {
                to.write_all(&chunk).await?;
                Tally::add(&self.tally.lane(self.way).passed, chunk.len() as u64);
                continue;
            } else if self.under_way.is_empty()
                && let Some(end) = self.ended.take()
            {
                end?;
                return to.shutdown().await;
            }
            self.await_news(fault, &mut from, &mut buffer).await;
        }
    }

    /// Waits for bytes, for the time to deliver some, or for another plan.
    async fn await_news(&mut self, fault: Fault, from: &mut ReadHalf<'_>, buffer: &mut [u8]) {
        let due = self.under_way.front().map(|(arrived, _)| *arrived + fault.delay());
        let deliver = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => pending().await,
            }
        };
        let has_room = self.ended.is_none() && self.under_way_bytes < UNDER_WAY;
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
        self.under_way_bytes += bytes.len();
        self.under_way.push_back((Instant::now(), bytes.to_vec()));
    }

    fn swallow_under_way(&mut self) {
        self.torn |= !self.under_way.is_empty();
        Tally::add(&self.tally.lane(self.way).swallowed, self.under_way_bytes as u64);
        self.under_way.clear();
        self.under_way_bytes = 0;
    }

    /// The oldest bytes, if they have been under way for long enough.
    fn take_due(&mut self, fault: Fault) -> Option<Vec<u8>> {
        let (arrived, _) = self.under_way.front()?;
        if arrived.elapsed() < fault.delay() {
            return None;
        }
        let (_, chunk) = self.under_way.pop_front()?;
        self.under_way_bytes -= chunk.len();
        Some(chunk)
    }
}
