//! The label values of every metric: closed sets, so that no caller can add a series.

/// A closed set of label values.
pub(super) trait LabelSet: Copy + 'static {
    /// The names of the labels.
    const LABELS: &'static [&'static str];
    /// Every member, in the order of `index`.
    const ALL: &'static [Self];
    /// The index in `ALL`.
    fn index(self) -> usize;
    /// The values, in the order of `LABELS`.
    fn values(self) -> Vec<&'static str>;
}

/// Declares an enum with the label values of each member.
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

// Below the macro, because both modules use it.
mod auth;
mod callers;
mod durations;

pub use auth::AuthRefusal;
pub use callers::{ConnectionEnd, PostgresShare, Shed, WebProtocol};
pub use durations::{HeardBy, PostgresOperation, Staleness};

label_set! {
    /// The result of a lookup in a cache tier.
    Lookup { "tier", "result" } [
        HotHit = ["hot", "hit"],
        HotMiss = ["hot", "miss"],
        /// Memory holds an entry that may not be served to this read: invalidated, not trusted, expired or not fresh enough.
        HotStale = ["hot", "stale"],
        RedisHit = ["redis", "hit"],
        RedisMiss = ["redis", "miss"],
        /// Redis holds an entry that may not be served to this read.
        RedisStale = ["redis", "stale"],
        /// Redis did not respond, or its breaker is open.
        RedisError = ["redis", "error"],
    ]
}

label_set! {
    /// The tier that an answer came from, in the order in which a read asks them.
    ServedBy { "served_by" } [
        Hot = ["hot"],
        Redis = ["redis"],
        Postgres = ["postgres"],
    ]
}

label_set! {
    /// The outcome of a request for a lease, or of holding one.
    LeaseOutcome { "outcome" } [
        /// This load took the lease.
        Acquired = ["acquired"],
        /// Another load holds the lease: this one waits for its fill.
        Held = ["held"],
        /// A write broke the lease, or it expired, before the load filled.
        Lost = ["lost"],
        /// The load waited for `lease_wait` and read Postgres without the lease.
        WaitedOut = ["waited_out"],
    ]
}

label_set! {
    /// Why a tier rejected a fill.
    FillRejection { "tier", "reason" } [
        /// Redis holds a newer revision.
        RedisOlder = ["redis", "older"],
        /// The load does not hold the lease any more.
        RedisLeaseLost = ["redis", "lease_lost"],
        /// Memory holds a newer revision.
        HotOlder = ["hot", "older"],
        /// A newer revision was committed while the load ran, or may have been.
        HotBelowFloor = ["hot", "below_floor"],
        /// More new entries came at once than the eviction policy takes.
        HotCrowded = ["hot", "crowded"],
    ]
}

label_set! {
    /// The outcome of a read's request for a refresh.
    RefreshRequest { "outcome" } [
        Queued = ["queued"],
        /// The queue was full. The next read requests the refresh again.
        Dropped = ["dropped"],
    ]
}

label_set! {
    /// The result of comparing what memory answers with what Postgres holds.
    ShadowCheck { "result" } [
        /// Both are the same.
        Current = ["current"],
        /// They differed, and memory followed within the bound on staleness.
        StaleWithinBound = ["stale_within_bound"],
        /// Memory still answered with something else when the bound had passed.
        Mismatch = ["mismatch"],
        /// Not compared: in an overload, or because Postgres did not answer.
        Skipped = ["skipped"],
    ]
}

label_set! {
    /// The purpose of a command or script that is sent to Redis.
    RedisOperation { "operation" } [
        /// Reads entries.
        Get = ["get"],
        /// Takes, renews or releases a lease.
        Lease = ["lease"],
        /// Stores a loaded entry under its lease.
        Fill = ["fill"],
        /// Writes through after a commit.
        Publish = ["publish"],
        /// Publishes changes to the other instances.
        Hint = ["hint"],
        /// Finds, replaces or removes entries that are older than a change; writes the relay's mark.
        Relay = ["relay"],
        /// Enters this catalogue into the list of those that use the namespace, and reads the list.
        Probe = ["probe"],
        /// Reads or adds to the fleet's ranking of hot keys.
        Ranking = ["ranking"],
    ]
}

label_set! {
    /// Why a Redis server keeps refusing connections or commands.
    RedisRefusal { "reason" } [
        /// The server has no such user, or another password for it.
        WrongPassword = ["wrong_password"],
        /// The server requires a password, and none is configured.
        NoAuth = ["no_auth"],
        /// The user lacks a permission.
        NoPermission = ["no_permission"],
        /// The server has no database of this number.
        BadDatabase = ["bad_database"],
        /// The issuer of the server's certificate is not trusted here.
        UnknownCa = ["unknown_ca"],
        /// The server requires a client certificate.
        CertificateRequired = ["certificate_required"],
        /// The TLS handshake fails for another reason.
        Tls = ["tls"],
        /// A cluster is configured, and the server is not part of one.
        NotACluster = ["not_a_cluster"],
        /// A single server is configured, and the server is part of a cluster.
        IsACluster = ["is_a_cluster"],
        /// The server is a replica, which refuses writes.
        ReadOnlyReplica = ["read_only_replica"],
        /// The cluster reports CLUSTERDOWN.
        ClusterDown = ["cluster_down"],
        /// Some slots of the cluster have no server.
        NoSlots = ["no_slots"],
        /// The server has reached `maxclients`.
        TooManyClients = ["too_many_clients"],
        /// The server accepts connections from its own machine only.
        ProtectedMode = ["protected_mode"],
        /// The server does not respond.
        Unreachable = ["unreachable"],
    ]
}

label_set! {
    /// An optional capability that a Redis server lacks.
    RedisCapability { "capability" } [
        /// A replication id or run id, which changes at a restart or failover.
        ReplicationId = ["replication_id"],
    ]
}

label_set! {
    /// What a circuit breaker of Redis guards.
    RedisDependency { "dependency" } [
        /// All commands to one server but those of the ranking; one breaker for each server.
        Commands = ["commands"],
        /// The fleet's ranking of hot keys.
        Ranking = ["ranking"],
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Commands pass.
    Closed,
    /// Commands fail at once.
    Open,
    /// One probe passes; commands fail at once.
    HalfOpen,
}

label_set! {
    /// A change of a circuit breaker's state: each [`RedisDependency`] with each [`BreakerState`], in that order.
    BreakerMove { "dependency", "to" } [
        CommandsClosed = ["commands", "closed"],
        CommandsOpen = ["commands", "open"],
        CommandsHalfOpen = ["commands", "half_open"],
        RankingClosed = ["ranking", "closed"],
        RankingOpen = ["ranking", "open"],
        RankingHalfOpen = ["ranking", "half_open"],
    ]
}

impl BreakerMove {
    #[must_use]
    pub fn of(dependency: RedisDependency, to: BreakerState) -> Self {
        Self::ALL[dependency as usize * 3 + to as usize]
    }
}

label_set! {
    /// A loop or thread that runs for as long as the instance does, and is restarted when it ends.
    #[cfg_attr(feature = "test-hooks", derive(clap::ValueEnum, Hash))]
    BackgroundTask { "task" } [
        /// Accepts connections at the gRPC port.
        GrpcPort = ["grpc_port"],
        /// Reads certificates and keys again when their files change.
        IdentityFiles = ["identity_files"],
        /// Serves the admin port.
        AdminPort = ["admin_port"],
        /// Keeps connections to PostgreSQL open, and probes PostgreSQL while it is down.
        PostgresConnections = ["postgres_connections"],
        /// Polls the outbox and applies its changes to memory.
        ChangeFeed = ["change_feed"],
        /// Receives the changes that other instances publish.
        ChangeHints = ["change_hints"],
        /// Applies the changes of the outbox to Redis, in the one instance that holds the relay's lease.
        Relay = ["relay"],
        /// Probes the Redis servers, and reads their replication ids.
        RedisProbe = ["redis_probe"],
        /// Loads the products that reads found past their soft TTL.
        RefreshOnRequest = ["refresh_on_request"],
        /// Loads the fleet's hottest products ahead of their soft TTL.
        RefreshAhead = ["refresh_ahead"],
        /// Compares what memory answers with Postgres.
        ShadowReads = ["shadow_reads"],
        /// The thread of the eviction policy.
        EvictionPolicy = ["eviction_policy"],
    ]
}

impl PostgresShare {
    pub(crate) fn all() -> &'static [Self] {
        Self::ALL
    }
}

impl BackgroundTask {
    pub(crate) const COUNT: usize = Self::ALL.len();

    /// The name in metrics, in the log and on `/readyz`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.values()[0]
    }
}

label_set! {
    /// The methods that are served. Every other path counts as `Other`, so that clients cannot add series.
    Method { "grpc_type", "grpc_service", "grpc_method" } [
        GetProduct = ["unary", "hotshelf.v1.ProductService", "GetProduct"],
        BatchGetProducts = ["unary", "hotshelf.v1.ProductService", "BatchGetProducts"],
        UpdateProduct = ["unary", "hotshelf.v1.ProductService", "UpdateProduct"],
        CreateProduct = ["unary", "hotshelf.v1.ProductService", "CreateProduct"],
        DeleteProduct = ["unary", "hotshelf.v1.ProductService", "DeleteProduct"],
        StreamHotKeys = ["server_stream", "hotshelf.v1.ProductService", "StreamHotKeys"],
        ExplainProduct = ["unary", "hotshelf.v1.AdminService", "ExplainProduct"],
        HealthCheck = ["unary", "grpc.health.v1.Health", "Check"],
        HealthWatch = ["server_stream", "grpc.health.v1.Health", "Watch"],
        /// Server reflection, v1 and v1alpha.
        Reflection = ["bidi_stream", "grpc.reflection", "ServerReflectionInfo"],
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
    /// Whether a call is a stream, which ends when its caller ends it.
    #[must_use]
    pub fn is_lasting(self) -> bool {
        matches!(self, Self::StreamHotKeys | Self::HealthWatch | Self::Reflection)
    }

    /// The name of the service and that of the method.
    #[must_use]
    pub fn service_and_name(self) -> (&'static str, &'static str) {
        let values = self.values();
        (values[1], values[2])
    }

    /// Whether a call changes nothing (`idempotency_level` in the proto).
    #[must_use]
    pub fn has_no_side_effects(self) -> bool {
        !matches!(
            self,
            Self::UpdateProduct | Self::CreateProduct | Self::DeleteProduct | Self::Other
        )
    }

    /// The method of a request's path.
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

/// The index of UNKNOWN in [`CODES`].
pub(super) const UNKNOWN_CODE: usize = 2;

/// The names of the gRPC status codes, by number, as Go's library and so most dashboards write them.
pub(super) const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
