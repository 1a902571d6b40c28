//! The faults that the proxy applies at this moment.

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
    /// Number of calls of `forget_connections`. Connections older than the last call are black holes.
    pub(super) forgotten: u64,
}

impl Plan {
    pub(super) fn healed(self) -> Self {
        Self { forgotten: self.forgotten, ..Self::default() }
    }

    /// The fault of a connection that was accepted when `forgotten` was `born`.
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
