//! The codes of the catalogue, and what each one means on every transport.

use std::borrow::Cow;
use std::fmt;

use http::StatusCode;

/// Why a request was refused or failed. Clients branch on this, on both transports alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request cannot be understood at all.
    MalformedRequest,
    /// A field is missing, mistyped or out of its range.
    ValidationFailed,
    /// A page token or cursor was not made here, or for another question.
    InvalidCursor,
    /// There is no valid credential.
    Unauthenticated,
    /// The credential lacks a scope.
    PermissionDenied,
    /// It does not exist, or belongs to another tenant.
    ResourceNotFound,
    /// The aggregate has another version than the caller expected.
    VersionConflict,
    /// It exists already.
    AlreadyExists,
    /// The idempotency key was used for another request.
    IdempotencyKeyReused,
    /// A rule of the domain refuses it. Each rule has a code of its own, in `UPPER_SNAKE_CASE`.
    DomainRule(Cow<'static, str>),
    /// The caller has used up its rate.
    RateLimited,
    /// The read model has not reached the wanted position in time.
    ReadModelBehind,
    /// Too much is waiting already.
    Overloaded,
    /// A server that this service needs does not answer.
    DependencyUnavailable,
    /// The service is stopping.
    ShuttingDown,
    /// The caller's deadline, or the service's own, has passed. Whether it was done is unknown.
    DeadlineExceeded,
    /// The request, or the answer to it, is larger than the limit.
    PayloadTooLarge,
    /// The request's content type or encoding is not supported.
    UnsupportedMediaType,
    /// There is no such method on this resource, or no such RPC.
    MethodNotAllowed,
    /// A fault of the service.
    Internal,
}

/// Whether, and how, a caller may send a refused request again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Sending it again would be refused again.
    No,
    /// After loading the newest state and deciding anew.
    AfterReload,
    /// With the same idempotency key.
    SameKey,
    /// Later, after the pause that the answer names.
    Later,
}

impl fmt::Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::No => "Sending the same request again gives the same answer.",
            Self::AfterReload => "Load the newest state, decide again, then send a new request.",
            Self::SameKey => "Send the same request again with the same idempotency key.",
            Self::Later => "Send the request again after the pause that the answer names.",
        })
    }
}

/// One line of the catalogue.
#[derive(Debug)]
pub struct Entry {
    /// The code as it is sent (for a domain rule, the word for all of them).
    pub name: &'static str,
    /// A short summary that is the same for every occurrence.
    pub title: &'static str,
    /// The status on gRPC.
    pub grpc: tonic::Code,
    /// The status on HTTP.
    pub http: StatusCode,
    /// Whether to send it again.
    pub retry: Retry,
    /// What it means and what to do, for people.
    pub explanation: &'static str,
}

impl Code {
    /// Every code except the domain's own, in the order of the catalogue.
    pub const ALL: [Self; 19] = [
        Self::MalformedRequest,
        Self::ValidationFailed,
        Self::InvalidCursor,
        Self::Unauthenticated,
        Self::PermissionDenied,
        Self::ResourceNotFound,
        Self::VersionConflict,
        Self::AlreadyExists,
        Self::IdempotencyKeyReused,
        Self::RateLimited,
        Self::ReadModelBehind,
        Self::Overloaded,
        Self::DependencyUnavailable,
        Self::ShuttingDown,
        Self::DeadlineExceeded,
        Self::PayloadTooLarge,
        Self::UnsupportedMediaType,
        Self::MethodNotAllowed,
        Self::Internal,
    ];

    /// The code as it is sent: `VERSION_CONFLICT`.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::DomainRule(rule) => rule,
            known => known.entry().name,
        }
    }

    /// The last part of the problem's type: `version-conflict`.
    #[must_use]
    pub fn slug(&self) -> String {
        slug(self.name())
    }

    /// The line of the catalogue for this code.
    #[must_use]
    pub fn entry(&self) -> &'static Entry {
        match self {
            Self::MalformedRequest => &MALFORMED_REQUEST,
            Self::ValidationFailed => &VALIDATION_FAILED,
            Self::InvalidCursor => &INVALID_CURSOR,
            Self::Unauthenticated => &UNAUTHENTICATED,
            Self::PermissionDenied => &PERMISSION_DENIED,
            Self::ResourceNotFound => &RESOURCE_NOT_FOUND,
            Self::VersionConflict => &VERSION_CONFLICT,
            Self::AlreadyExists => &ALREADY_EXISTS,
            Self::IdempotencyKeyReused => &IDEMPOTENCY_KEY_REUSED,
            Self::DomainRule(_) => &DOMAIN_RULE,
            Self::RateLimited => &RATE_LIMITED,
            Self::ReadModelBehind => &READ_MODEL_BEHIND,
            Self::Overloaded => &OVERLOADED,
            Self::DependencyUnavailable => &DEPENDENCY_UNAVAILABLE,
            Self::ShuttingDown => &SHUTTING_DOWN,
            Self::DeadlineExceeded => &DEADLINE_EXCEEDED,
            Self::PayloadTooLarge => &PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => &UNSUPPORTED_MEDIA_TYPE,
            Self::MethodNotAllowed => &METHOD_NOT_ALLOWED,
            Self::Internal => &INTERNAL,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `VERSION_CONFLICT` as `version-conflict`.
fn slug(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "-")
}

static MALFORMED_REQUEST: Entry = Entry {
    name: "MALFORMED_REQUEST",
    title: "The request cannot be understood",
    grpc: tonic::Code::InvalidArgument,
    http: StatusCode::BAD_REQUEST,
    retry: Retry::No,
    explanation: "The body, the path, the query string or a header is not what the contract describes: broken JSON or \
                  protobuf, a missing required header, a wrong encoding. The violations say where, when it is known.",
};

static VALIDATION_FAILED: Entry = Entry {
    name: "VALIDATION_FAILED",
    title: "A field is not valid",
    grpc: tonic::Code::InvalidArgument,
    http: StatusCode::BAD_REQUEST,
    retry: Retry::No,
    explanation: "One or more fields are missing, mistyped or out of range. Each violation names the field by a JSON \
                  pointer and has a code of its own. Nothing was recorded.",
};

static INVALID_CURSOR: Entry = Entry {
    name: "INVALID_CURSOR",
    title: "The cursor is not valid here",
    grpc: tonic::Code::InvalidArgument,
    http: StatusCode::BAD_REQUEST,
    retry: Retry::No,
    explanation: "A cursor is opaque, signed, and good only for the list, the filters and the sort order that gave it. \
                  Start again from the first page.",
};

static UNAUTHENTICATED: Entry = Entry {
    name: "UNAUTHENTICATED",
    title: "A valid credential is needed",
    grpc: tonic::Code::Unauthenticated,
    http: StatusCode::UNAUTHORIZED,
    retry: Retry::No,
    explanation: "There is no credential, or it is unknown, expired or revoked; the answer does not say which. Send \
                  `Authorization: Bearer` with an API key.",
};

static PERMISSION_DENIED: Entry = Entry {
    name: "PERMISSION_DENIED",
    title: "The credential lacks a scope",
    grpc: tonic::Code::PermissionDenied,
    http: StatusCode::FORBIDDEN,
    retry: Retry::No,
    explanation: "The credential is valid but may not do this. `missing_scope` names the scope that is needed.",
};

static RESOURCE_NOT_FOUND: Entry = Entry {
    name: "RESOURCE_NOT_FOUND",
    title: "There is no such resource",
    grpc: tonic::Code::NotFound,
    http: StatusCode::NOT_FOUND,
    retry: Retry::No,
    explanation: "It does not exist for this credential. The resource of another tenant answers in exactly this way.",
};

static VERSION_CONFLICT: Entry = Entry {
    name: "VERSION_CONFLICT",
    title: "The aggregate has another version",
    grpc: tonic::Code::Aborted,
    http: StatusCode::CONFLICT,
    retry: Retry::AfterReload,
    explanation: "Something else changed the aggregate after the caller looked. `expected_version` is what the request \
                  demanded, `actual_version` what is true.",
};

static ALREADY_EXISTS: Entry = Entry {
    name: "ALREADY_EXISTS",
    title: "The resource exists already",
    grpc: tonic::Code::AlreadyExists,
    http: StatusCode::CONFLICT,
    retry: Retry::No,
    explanation: "Something with this id was made before by another request.",
};

static IDEMPOTENCY_KEY_REUSED: Entry = Entry {
    name: "IDEMPOTENCY_KEY_REUSED",
    title: "The idempotency key belongs to another request",
    grpc: tonic::Code::InvalidArgument,
    http: StatusCode::UNPROCESSABLE_ENTITY,
    retry: Retry::No,
    explanation: "The key was used before, with other content. Use a new key for a new request, and the very same \
                  content when sending one again.",
};

static DOMAIN_RULE: Entry = Entry {
    name: "DOMAIN_RULE",
    title: "A rule of the domain refuses this",
    grpc: tonic::Code::FailedPrecondition,
    http: StatusCode::UNPROCESSABLE_ENTITY,
    retry: Retry::No,
    explanation: "The request is understood and the state of the aggregate does not allow it. The refusal is \
                  remembered with the idempotency key: use a new key to try again when the state has changed.",
};

static RATE_LIMITED: Entry = Entry {
    name: "RATE_LIMITED",
    title: "Too many requests",
    grpc: tonic::Code::ResourceExhausted,
    http: StatusCode::TOO_MANY_REQUESTS,
    retry: Retry::Later,
    explanation: "The tenant has used up its rate for this class of endpoint. Nothing was done.",
};

static READ_MODEL_BEHIND: Entry = Entry {
    name: "READ_MODEL_BEHIND",
    title: "The read model has not got that far",
    grpc: tonic::Code::Unavailable,
    http: StatusCode::SERVICE_UNAVAILABLE,
    retry: Retry::Later,
    explanation: "The read demanded a position (`wanted_position`) that the read model, at `position`, did not reach \
                  within the wait. It is never answered with something older.",
};

static OVERLOADED: Entry = Entry {
    name: "OVERLOADED",
    title: "Too much is waiting already",
    grpc: tonic::Code::Unavailable,
    http: StatusCode::SERVICE_UNAVAILABLE,
    retry: Retry::Later,
    explanation: "A bounded queue is full, so the request was refused at once and nothing was done.",
};

static DEPENDENCY_UNAVAILABLE: Entry = Entry {
    name: "DEPENDENCY_UNAVAILABLE",
    title: "A server that is needed does not answer",
    grpc: tonic::Code::Unavailable,
    http: StatusCode::SERVICE_UNAVAILABLE,
    retry: Retry::Later,
    explanation: "For example the database. A command that was answered so may have been recorded: send it again with \
                  the same idempotency key.",
};

static SHUTTING_DOWN: Entry = Entry {
    name: "SHUTTING_DOWN",
    title: "The service is stopping",
    grpc: tonic::Code::Unavailable,
    http: StatusCode::SERVICE_UNAVAILABLE,
    retry: Retry::Later,
    explanation: "This process takes no new work. Another one, or its successor, will.",
};

static DEADLINE_EXCEEDED: Entry = Entry {
    name: "DEADLINE_EXCEEDED",
    title: "The time is up",
    grpc: tonic::Code::DeadlineExceeded,
    http: StatusCode::GATEWAY_TIMEOUT,
    retry: Retry::SameKey,
    explanation: "The caller's deadline or the service's own limit passed first. Whether a command was recorded is \
                  unknown: send it again with the same idempotency key.",
};

static PAYLOAD_TOO_LARGE: Entry = Entry {
    name: "PAYLOAD_TOO_LARGE",
    title: "The request or its answer is too large",
    grpc: tonic::Code::ResourceExhausted,
    http: StatusCode::PAYLOAD_TOO_LARGE,
    retry: Retry::No,
    explanation: "The request, or the answer to it, is larger than the limit (`limit_bytes`, when it is known).",
};

static UNSUPPORTED_MEDIA_TYPE: Entry = Entry {
    name: "UNSUPPORTED_MEDIA_TYPE",
    title: "The content type is not supported",
    grpc: tonic::Code::Unimplemented,
    http: StatusCode::UNSUPPORTED_MEDIA_TYPE,
    retry: Retry::No,
    explanation: "Send JSON as `application/json`; over gRPC, use no compression.",
};

static METHOD_NOT_ALLOWED: Entry = Entry {
    name: "METHOD_NOT_ALLOWED",
    title: "There is no such method here",
    grpc: tonic::Code::Unimplemented,
    http: StatusCode::METHOD_NOT_ALLOWED,
    retry: Retry::No,
    explanation: "The resource does not take this HTTP method (`Allow` lists those that it takes), or the service has \
                  no such RPC.",
};

static INTERNAL: Entry = Entry {
    name: "INTERNAL",
    title: "A fault of the service",
    grpc: tonic::Code::Internal,
    http: StatusCode::INTERNAL_SERVER_ERROR,
    retry: Retry::No,
    explanation: "It is in the log under the request id that the answer carries. Give that id to the operators.",
};
