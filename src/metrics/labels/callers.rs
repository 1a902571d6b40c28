//! Labels of what callers are limited by, and refused for.

use super::LabelSet;

label_set! {
    /// Why a call or a connection was refused.
    Shed { "reason" } [
        /// Too many calls in flight.
        Calls = ["calls"],
        /// Too many connections.
        Connections = ["connections"],
        /// Too many streams.
        Streams = ["streams"],
        /// Too many bytes of answers that wait to be sent.
        UnsentBytes = ["unsent_bytes"],
        /// Too many bytes of requests that are not complete.
        RequestBytes = ["request_bytes"],
        /// The share of loads for the caches has too much waiting.
        Loads = ["loads"],
        /// That of `latest` reads.
        Latest = ["latest"],
        /// That of writes.
        Writes = ["writes"],
        /// That of ExplainProduct.
        Operators = ["operators"],
        /// Too many writes of one product wait.
        Product = ["product"],
    ]
}

label_set! {
    /// Why the server closed a connection.
    ConnectionEnd { "reason" } [
        /// It had lived long enough.
        Age = ["age"],
        /// It had no calls.
        Idle = ["idle"],
        /// Its peer did not begin to speak.
        Silent = ["silent"],
        /// Its peer flooded it: with requests that it took back, say.
        Flood = ["flood"],
        /// Calls were still in flight after the grace of an age or an idle connection.
        Grace = ["grace"],
    ]
}

label_set! {
    /// A share of the connections to PostgreSQL. None can take those of another.
    PostgresShare { "share" } [
        /// Reads that the caches may answer, when they cannot.
        Loads = ["loads"],
        /// Reads that no cache may answer.
        Latest = ["latest"],
        /// UpdateProduct, CreateProduct and DeleteProduct.
        Writes = ["writes"],
        /// ExplainProduct.
        Operators = ["operators"],
    ]
}

impl Shed {
    /// How many there are.
    pub(crate) const COUNT: usize = Self::ALL.len();

    /// The value of the label.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.values()[0]
    }
}
