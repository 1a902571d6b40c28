//! What HTTP adds to the proto: headers, the codes and the form of errors, and how callers are authenticated.

use prost_reflect::MethodDescriptor;
use serde_json::{Map, Value, json};

/// What a method carries besides its messages.
#[expect(clippy::struct_excessive_bools, reason = "they are independent properties of a method")]
pub(super) struct Carries {
    is_read: bool,
    is_stream: bool,
    has_body: bool,
    creates: bool,
    min_version: bool,
    max_staleness: bool,
    expected_version: bool,
}

impl Carries {
    pub(super) fn of(method: &MethodDescriptor, verb: &str, has_body: bool) -> Self {
        let request = method.input();
        let has = |field| request.get_field_by_name(field).is_some();
        Self {
            is_read: verb == "get",
            is_stream: method.is_server_streaming(),
            has_body,
            creates: verb == "post",
            min_version: has("min_version"),
            max_staleness: has("max_staleness"),
            expected_version: has("expected_version"),
        }
    }

    /// The answer is one product.
    fn is_tagged(&self) -> bool {
        self.has_body || self.min_version
    }

    /// The names in [`parameters`].
    pub(super) fn request_headers(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        let mut add = |name, when| {
            if when {
                names.push(name)
            }
        };
        add("IfNoneMatch", self.min_version);
        add("MinVersion", self.min_version);
        add("MaxStaleness", self.max_staleness);
        add("IfMatch", self.expected_version);
        names
    }

    /// The names in [`headers`].
    pub(super) fn response_headers(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        let mut add = |name, when| {
            if when {
                names.push(name)
            }
        };
        add("ETag", self.is_tagged());
        add("Cache-Control", self.is_read || self.is_tagged());
        add("Cache-Status", self.max_staleness);
        add("Location", self.creates);
        names
    }

    /// The codes of errors, with the names in [`errors`].
    pub(super) fn errors(&self) -> Vec<(u16, &'static str)> {
        let one_product = self.min_version || self.expected_version;
        let all = [
            (304, "NotModified", self.min_version),
            (400, "BadRequest", true),
            (401, "Unauthorized", true),
            (403, "Forbidden", true),
            (404, "NotFound", one_product),
            (409, "Conflict", !self.is_read),
            (412, "PreconditionFailed", self.expected_version),
            (413, "TooLarge", self.has_body),
            (415, "UnsupportedMediaType", self.has_body),
            (429, "TooManyRequests", true),
            (500, "Internal", true),
            (503, "Unavailable", true),
            (504, "DeadlineExceeded", !self.is_stream),
        ];
        all.into_iter().filter_map(|(code, name, when)| when.then_some((code, name))).collect()
    }
}

pub(super) fn header_references(names: Vec<&str>) -> Value {
    let reference = |name: &str| json!({ "$ref": format!("#/components/headers/{name}") });
    names.into_iter().map(|name| (name.to_owned(), reference(name))).collect::<Map<_, _>>().into()
}

/// The headers of responses.
pub(super) fn headers() -> Value {
    let header = |description: &str, example: &str| {
        let schema = json!({ "type": "string" });
        json!({ "description": description, "schema": schema, "example": example })
    };
    json!({
        "ETag": header(
            "A strong entity tag of the product: its version, and what tells its representations apart.",
            "\"42-00c0ffee-j\"",
        ),
        "Cache-Control": header(
            "`private, no-cache` unless the operator allows shared caches: a cache asks before each use, and is answered with 304 \
             if nothing has changed. `no-store` for errors.",
            "private, no-cache",
        ),
        "Cache-Status": header(
            "The tier that answered (RFC 9211). Log or count it; do not branch on it.",
            "hotshelf; hit; detail=hot; ttl=12",
        ),
        "Location": header("The path of the product.", "/v1/products/4711"),
        "Retry-After": {
            "description": "The seconds after which to try again; `RetryInfo` in the details has the exact time.",
            "schema": { "type": "integer" },
            "example": 1,
        },
        "WWW-Authenticate": header("How to authenticate.", "Bearer"),
    })
}

/// The headers of requests.
pub(super) fn parameters() -> Value {
    let header = |name: &str, description: &str, example: &str| {
        let schema = json!({ "type": "string" });
        json!({ "name": name, "in": "header", "description": description, "schema": schema, "example": example })
    };
    json!({
        "IfNoneMatch": header(
            "If-None-Match",
            "Entity tags that the caller holds: if one is that of the answer, the answer is 304 without a body.",
            "\"42-00c0ffee-j\"",
        ),
        "IfMatch": header(
            "If-Match",
            "The entity tag of the product that the caller has read, or its version in quotes. If the product has another version, \
             nothing is changed and the answer is 412. `*` is any version.",
            "\"42-00c0ffee-j\"",
        ),
        "MinVersion": header(
            "Min-Version",
            "The same as the query parameter `minVersion`. Not together with `Max-Staleness`.",
            "42",
        ),
        "MaxStaleness": header(
            "Max-Staleness",
            "The same as the query parameter `maxStaleness`: a number of seconds.",
            "0.5",
        ),
    })
}

/// The responses that operations share.
pub(super) fn errors() -> Value {
    let error = |description: &str, headers: Vec<&str>| {
        let content =
            json!({ "application/json": { "schema": { "$ref": "#/components/schemas/Status" } } });
        let mut response = json!({ "description": description, "content": content });
        if !headers.is_empty() {
            response["headers"] = header_references(headers);
        }
        response
    };
    let retry = || vec!["Retry-After"];
    json!({
        "NotModified": {
            "description": "The caller holds this representation (`If-None-Match`). There is no body.",
            "headers": header_references(vec!["ETag", "Cache-Control", "Cache-Status"]),
        },
        "BadRequest": error("INVALID_ARGUMENT or FAILED_PRECONDITION: the request has to be changed.", vec![]),
        "Unauthorized": error("UNAUTHENTICATED: the token is missing, invalid or expired.", vec!["WWW-Authenticate"]),
        "Forbidden": error("PERMISSION_DENIED: the caller lacks a scope, or is a page of another origin.", vec![]),
        "NotFound": error("NOT_FOUND: there is no such product.", vec![]),
        "Conflict": error(
            "ABORTED or ALREADY_EXISTS: another change stands in the way, or `expectedVersion` is not the version.",
            retry(),
        ),
        "PreconditionFailed": error("ABORTED with the reason VERSION_MISMATCH: `If-Match` is not the version. Nothing was changed.", vec![]),
        "TooLarge": error("RESOURCE_EXHAUSTED with the reason REQUEST_TOO_LARGE.", vec![]),
        "UnsupportedMediaType": error("The body is not `application/json`, or its encoding is unknown.", vec![]),
        "TooManyRequests": error("RESOURCE_EXHAUSTED: a limit of the instance is reached.", retry()),
        "Internal": error("INTERNAL: a defect; the log of the server has the cause.", vec![]),
        "Unavailable": error("UNAVAILABLE: the database cannot be reached, or the instance is shutting down.", retry()),
        "DeadlineExceeded": error("DEADLINE_EXCEEDED: a write may have been committed.", vec![]),
    })
}

pub(super) fn security_schemes() -> Value {
    json!({
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "Where the operator demands it. Reads need the scope `products.read`, writes `products.write`.",
        },
        "clientCertificate": {
            "type": "mutualTLS",
            "description": "In place of a token, where the operator accepts certificates.",
        },
    })
}

/// `google.rpc.Status` in JSON.
pub(super) fn status() -> [(String, Value); 2] {
    let text = |description: &str| json!({ "type": "string", "description": description });
    let status = json!({
        "type": "object",
        "description": "An error. Branch on the code and the reason, not on the message.",
        "required": ["code", "message", "details"],
        "properties": {
            "code": { "type": "integer", "format": "int32", "description": "The number of the google.rpc.Code." },
            "message": text("What is wrong, for people."),
            "details": { "type": "array", "items": { "$ref": "#/components/schemas/StatusDetail" } },
        },
        "examples": [{
            "code": 5,
            "message": "product 4711 does not exist",
            "details": [{
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "PRODUCT_NOT_FOUND",
                "domain": "hotshelf",
                "metadata": {},
            }],
        }],
    });
    let detail = json!({
        "type": "object",
        "description": "google.rpc.ErrorInfo, which every error has, RetryInfo or BadRequest, as `@type` says.",
        "required": ["@type"],
        "properties": {
            "@type": { "type": "string", "examples": ["type.googleapis.com/google.rpc.ErrorInfo"] },
            "reason": text("ErrorInfo: why, stable. The description of the service lists the reasons."),
            "domain": text("ErrorInfo: always hotshelf."),
            "metadata": { "type": "object", "additionalProperties": { "type": "string" }, "description": "ErrorInfo." },
            "retryDelay": text("RetryInfo: the time after which to try again, such as 0.1s."),
            "fieldViolations": {
                "type": "array",
                "description": "BadRequest: the fields that break a rule.",
                "items": {
                    "type": "object",
                    "properties": { "field": { "type": "string" }, "description": { "type": "string" } },
                },
            },
        },
        "additionalProperties": true,
    });
    [("Status".to_owned(), status), ("StatusDetail".to_owned(), detail)]
}
