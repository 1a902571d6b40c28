//! Labels of the limits for callers.

use super::LabelSet;

label_set! {
    /// The limit that a call or a connection was refused for.
    Shed { "reason" } [
        /// Calls in flight.
        Calls = ["calls"],
        Connections = ["connections"],
        Streams = ["streams"],
        /// Bytes of responses that wait to be sent.
        UnsentBytes = ["unsent_bytes"],
        /// Bytes of incomplete requests.
        RequestBytes = ["request_bytes"],
        /// The queue of loads for the caches.
        Loads = ["loads"],
        /// The queue of `latest` reads.
        Latest = ["latest"],
        /// The queue of writes.
        Writes = ["writes"],
        /// The queue of ExplainProduct.
        Operators = ["operators"],
        /// The queue of writes of one product.
        Product = ["product"],
    ]
}

label_set! {
    /// A protocol beside gRPC.
    WebProtocol { "protocol" } [
        Json = ["json"],
        Connect = ["connect"],
        GrpcWeb = ["grpc_web"],
        /// No path, method or content type of any of them.
        Unknown = ["unknown"],
    ]
}

label_set! {
    /// Why the server closed a connection.
    ConnectionEnd { "reason" } [
        /// The connection reached `max_connection_age`.
        Age = ["age"],
        /// The connection had no calls for `max_connection_idle`.
        Idle = ["idle"],
        /// The peer did not send its first bytes, or the head of a request (HTTP/1.1), within `keepalive_timeout`.
        Silent = ["silent"],
        /// The peer did not read a response within twice `max_call_time` (HTTP/1.1).
        Unread = ["unread"],
        /// The peer sent more resets or other control frames than h2 tolerates (such as rapid reset, CVE-2023-44487).
        Flood = ["flood"],
        /// Calls were still in flight after `max_connection_age_grace`.
        Grace = ["grace"],
    ]
}

label_set! {
    /// A share of the connections to PostgreSQL. No share can use the connections of another.
    PostgresShare { "share" } [
        /// Loads for the caches.
        Loads = ["loads"],
        /// Reads that no cache may answer (`latest`, `min_version`, `max_staleness`).
        Latest = ["latest"],
        /// UpdateProduct, CreateProduct and DeleteProduct.
        Writes = ["writes"],
        /// ExplainProduct.
        Operators = ["operators"],
    ]
}

impl WebProtocol {
    /// The value of the label.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.values()[0]
    }
}

impl Shed {
    pub(crate) const COUNT: usize = Self::ALL.len();

    /// The value of the label.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.values()[0]
    }
}
