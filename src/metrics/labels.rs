//! The label values of every metric: closed sets, so that nobody can make one up from outside.

/// A closed set of label values.
pub(super) trait LabelSet: Copy + 'static {
    /// The names of the labels.
    const LABELS: &'static [&'static str];
    /// Every member, in the order of `index`.
    const ALL: &'static [Self];
    /// The place in `ALL`.
    fn index(self) -> usize;
    /// The values, in the order of `LABELS`.
    fn values(self) -> Vec<&'static str>;
}

/// Declares an enum whose members carry label values.
macro_rules! label_set {
    ($(#[$doc:meta])* $name:ident { $($label:literal),* } [$($(#[$member_doc:meta])* $member:ident = [$($value:literal),*],)+]) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$member_doc])* $member,)+ }

        impl LabelSet for $name {
            const LABELS: &'static [&'static str] = &[$($label),*];
            const ALL: &'static [Self] = &[$(Self::$member),+];

            fn index(self) -> usize {
                self as usize
            }

            fn values(self) -> Vec<&'static str> {
                match self { $(Self::$member => vec![$($value),*],)+ }
            }
        }
    };
}

// After the macro, which it uses.
mod auth;
mod callers;

pub use auth::AuthRefusal;
pub use callers::{ConnectionEnd, PostgresShare, Shed};

label_set! {
    /// What asking a cache tier came to.
    Lookup { "tier", "result" } [
        /// Memory served it.
        HotHit = ["hot", "hit"],
        /// Memory did not hold it.
        HotMiss = ["hot", "miss"],
        /// Memory held it, but not fresh enough for this read.
        HotStale = ["hot", "stale"],
        /// Redis served it.
        RedisHit = ["redis", "hit"],
        /// Redis did not hold it.
        RedisMiss = ["redis", "miss"],
        /// Redis held it, but not fresh enough for this read.
        RedisStale = ["redis", "stale"],
        /// Redis did not answer.
        RedisError = ["redis", "error"],
    ]
}

label_set! {
    /// Where a read's answer came from.
    ServedBy { "served_by" } [
        /// This process' memory.
        Hot = ["hot"],
        /// Redis.
        Redis = ["redis"],
        /// Postgres.
        Postgres = ["postgres"],
    ]
}

label_set! {
    /// What became of asking for a lease, or of holding one.
    LeaseOutcome { "outcome" } [
        /// It was taken, and the load is ours.
        Acquired = ["acquired"],
        /// Another instance holds it: we wait for its fill.
        Held = ["held"],
        /// It was broken or had expired when the load came to fill.
        Lost = ["lost"],
        /// Its holder took longer than we wait: read without it.
        WaitedOut = ["waited_out"],
    ]
}

label_set! {
    /// Why a fill was not kept.
    FillRejection { "tier", "reason" } [
        /// Redis held something newer.
        RedisOlder = ["redis", "older"],
        /// The lease was not ours any more.
        RedisLeaseLost = ["redis", "lease_lost"],
        /// Memory held something newer.
        HotOlder = ["hot", "older"],
        /// Something newer was committed while the load ran.
        HotBelowFloor = ["hot", "below_floor"],
        /// More came at once than could be considered for memory.
        HotCrowded = ["hot", "crowded"],
    ]
}

label_set! {
    /// What became of a refresh that a read asked for.
    RefreshRequest { "outcome" } [
        /// It waits for the refresher.
        Queued = ["queued"],
        /// The queue was full; the next read asks again.
        Dropped = ["dropped"],
    ]
}

label_set! {
    /// A command or script that Redis was sent.
    RedisOperation { "operation" } [
        /// Reading entries.
        Get = ["get"],
        /// Taking leases.
        Lease = ["lease"],
        /// Filling under a lease.
        Fill = ["fill"],
        /// Writing through after a commit.
        Publish = ["publish"],
        /// Telling other instances of changes.
        Hint = ["hint"],
        /// What the relay replaces and removes.
        Relay = ["relay"],
        /// Looking for other catalogues.
        Probe = ["probe"],
        /// The fleet's ranking of hot keys.
        Ranking = ["ranking"],
    ]
}

label_set! {
    /// Why a Redis server refuses what it is asked for, again and again.
    RedisRefusal { "reason" } [
        /// It knows no such user with this password.
        WrongPassword = ["wrong_password"],
        /// It wants a password, and none is configured.
        NoAuth = ["no_auth"],
        /// The user lacks a permission.
        NoPermission = ["no_permission"],
        /// It has no database of this number.
        BadDatabase = ["bad_database"],
        /// Its certificate was issued by an authority that is not trusted here.
        UnknownCa = ["unknown_ca"],
        /// It wants a client certificate.
        CertificateRequired = ["certificate_required"],
        /// The TLS handshake fails for another reason.
        Tls = ["tls"],
        /// A cluster is configured, and it is not part of one.
        NotACluster = ["not_a_cluster"],
        /// A single server is configured, and it is part of a cluster.
        IsACluster = ["is_a_cluster"],
        /// It takes no writes, because it is a replica.
        ReadOnlyReplica = ["read_only_replica"],
        /// The cluster says that it is down.
        ClusterDown = ["cluster_down"],
        /// Some slots of the cluster have no server.
        NoSlots = ["no_slots"],
        /// It has as many clients as it may have.
        TooManyClients = ["too_many_clients"],
        /// It takes connections from its own machine only.
        ProtectedMode = ["protected_mode"],
        /// It does not answer.
        Unreachable = ["unreachable"],
    ]
}

label_set! {
    /// What a Redis server does not offer, and hotshelf does without.
    RedisCapability { "capability" } [
        /// A replication id or run id, which tells a restart or failover.
        ReplicationId = ["replication_id"],
    ]
}

label_set! {
    /// What of Redis has a circuit breaker of its own.
    RedisDependency { "dependency" } [
        /// Commands to a server.
        Commands = ["commands"],
        /// The fleet's ranking of hot keys.
        Ranking = ["ranking"],
    ]
}

/// What a circuit breaker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// It lets everybody ask.
    Closed,
    /// Nobody asks.
    Open,
    /// A probe asks, and nobody else.
    HalfOpen,
}

label_set! {
    /// A circuit breaker changed its state.
    BreakerMove { "dependency", "to" } [
        /// See [`RedisDependency`] and [`BreakerState`].
        CommandsClosed = ["commands", "closed"],
        /// As above.
        CommandsOpen = ["commands", "open"],
        /// As above.
        CommandsHalfOpen = ["commands", "half_open"],
        /// As above.
        RankingClosed = ["ranking", "closed"],
        /// As above.
        RankingOpen = ["ranking", "open"],
        /// As above.
        RankingHalfOpen = ["ranking", "half_open"],
    ]
}

impl BreakerMove {
    /// Of this dependency, to this state.
    #[must_use]
    pub fn of(dependency: RedisDependency, to: BreakerState) -> Self {
        // In the order of both.
        Self::ALL[dependency as usize * 3 + to as usize]
    }
}

label_set! {
    /// A loop or thread that runs for as long as the instance does, and is restarted when it ends.
    #[cfg_attr(feature = "test-hooks", derive(clap::ValueEnum, Hash))]
    BackgroundTask { "task" } [
        /// Accepts connections of the gRPC port.
        GrpcPort = ["grpc_port"],
        /// Reads certificates and keys again when their files change.
        IdentityFiles = ["identity_files"],
        /// Serves the admin port.
        AdminPort = ["admin_port"],
        /// Keeps connections to PostgreSQL open, and probes it while it is down.
        PostgresConnections = ["postgres_connections"],
        /// Reads the changes that this and other instances and SQL have made.
        ChangeFeed = ["change_feed"],
        /// Takes in what other instances publish.
        ChangeHints = ["change_hints"],
        /// Applies changes to Redis.
        Relay = ["relay"],
        /// Probes Redis servers, and reads their replication ids.
        RedisProbe = ["redis_probe"],
        /// Loads again what reads found past its soft TTL.
        RefreshOnRequest = ["refresh_on_request"],
        /// Loads hot products again ahead of their soft TTL.
        RefreshAhead = ["refresh_ahead"],
        /// The thread of the eviction policy.
        EvictionPolicy = ["eviction_policy"],
    ]
}

impl PostgresShare {
    /// Every share.
    pub(crate) fn all() -> &'static [Self] {
        Self::ALL
    }
}

impl BackgroundTask {
    /// How many there are.
    pub(crate) const COUNT: usize = Self::ALL.len();

    /// Its name in metrics, in the log and on `/readyz`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.values()[0]
    }
}

label_set! {
    /// The methods that are served. What is called by another name counts as `Other`.
    Method { "grpc_type", "grpc_service", "grpc_method" } [
        /// GetProduct
        GetProduct = ["unary", "hotshelf.v1.ProductService", "GetProduct"],
        /// BatchGetProducts
        BatchGetProducts = ["unary", "hotshelf.v1.ProductService", "BatchGetProducts"],
        /// UpdateProduct
        UpdateProduct = ["unary", "hotshelf.v1.ProductService", "UpdateProduct"],
        /// CreateProduct
        CreateProduct = ["unary", "hotshelf.v1.ProductService", "CreateProduct"],
        /// DeleteProduct
        DeleteProduct = ["unary", "hotshelf.v1.ProductService", "DeleteProduct"],
        /// StreamHotKeys
        StreamHotKeys = ["server_stream", "hotshelf.v1.ProductService", "StreamHotKeys"],
        /// ExplainProduct
        ExplainProduct = ["unary", "hotshelf.v1.AdminService", "ExplainProduct"],
        /// Health.Check
        HealthCheck = ["unary", "grpc.health.v1.Health", "Check"],
        /// Health.Watch
        HealthWatch = ["server_stream", "grpc.health.v1.Health", "Watch"],
        /// Reflection, either version.
        Reflection = ["bidi_stream", "grpc.reflection", "ServerReflectionInfo"],
        /// Anything else.
        Other = ["unknown", "unknown", "unknown"],
    ]
}

impl RedisRefusal {
    /// The value of the label.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.values()[0]
    }
}

impl Method {
    /// Whether a call lives until its caller has enough of it.
    #[must_use]
    pub fn is_lasting(self) -> bool {
        matches!(self, Self::StreamHotKeys | Self::HealthWatch | Self::Reflection)
    }

    /// The method that a request's path names.
    #[must_use]
    pub fn of_path(path: &str) -> Self {
        match path {
            "/hotshelf.v1.ProductService/GetProduct" => Self::GetProduct,
            "/hotshelf.v1.ProductService/BatchGetProducts" => Self::BatchGetProducts,
            "/hotshelf.v1.ProductService/UpdateProduct" => Self::UpdateProduct,
            "/hotshelf.v1.ProductService/CreateProduct" => Self::CreateProduct,
            "/hotshelf.v1.ProductService/DeleteProduct" => Self::DeleteProduct,
            "/hotshelf.v1.ProductService/StreamHotKeys" => Self::StreamHotKeys,
            "/hotshelf.v1.AdminService/ExplainProduct" => Self::ExplainProduct,
            "/grpc.health.v1.Health/Check" => Self::HealthCheck,
            "/grpc.health.v1.Health/Watch" => Self::HealthWatch,
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
            | "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo" => Self::Reflection,
            _ => Self::Other,
        }
    }
}

/// The names of the gRPC status codes, by number.
pub(super) const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
