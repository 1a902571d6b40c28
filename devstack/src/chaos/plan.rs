//! What the proxy is to do to connections now.

use std::time::Duration;

use super::Direction;

/// One of the two directions of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    ToServer,
    ToClient,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Fault {
    #[default]
    None,
    BlackHole,
    Delay(Duration),
}

impl Fault {
    pub(super) fn delay(self) -> Duration {
        if let Self::Delay(by) = self { by } else { Duration::ZERO }
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Plan {
    pub(super) cut: bool,
    to_server: Fault,
    to_client: Fault,
    /// How often connections were forgotten; those from before the last time are.
    pub(super) forgotten: u64,
}

impl Plan {
    pub(super) fn healed(self) -> Self {
        Self { forgotten: self.forgotten, ..Self::default() }
    }

    /// What is to be done to a connection that was made when `born` was `forgotten`.
    pub(super) fn fault_of(&self, born: u64, way: Way) -> Fault {
        if born < self.forgotten { Fault::BlackHole } else { self.fault(way) }
    }

    fn fault(&self, way: Way) -> Fault {
        match way {
            Way::ToServer => self.to_server,
            Way::ToClient => self.to_client,
        }
    }

    pub(super) fn set(&mut self, direction: Direction, fault: Fault) {
        if direction != Direction::ToClient {
            self.to_server = fault;
        }
        if direction != Direction::ToServer {
            self.to_client = fault;
        }
    }
}
