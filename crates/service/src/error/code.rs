//! The codes of the catalogue, and what each one means on every transport.

use std::borrow::Cow;
use std::fmt;

use http::StatusCode;

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
    /// When the operation that is in the way has ended.
    WhenItEnds,
}

impl fmt::Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::No => "Sending the same request again gives the same answer.",
            Self::AfterReload => "Load the newest state, decide again, then send a new request.",
            Self::SameKey => "Send the same request again with the same idempotency key.",
            Self::Later => "Send the request again after the pause that the answer names.",
            Self::WhenItEnds => "Send the request again when the operation that is running has ended.",
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
    /// Its meaning and what to do, for people.
    pub explanation: &'static str,
}

/// Every code of the catalogue except the domain's own, listed once: the variants of [`Code`] and their entries.
macro_rules! codes {
    ($($code:ident {
        name: $name:literal, grpc: $grpc:ident, http: $http:ident, retry: $retry:ident,
        title: $title:literal,
        explanation: $explanation:literal,
    })+) => {
        /// Why a request was refused or failed. Clients branch on this, on both transports alike.
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $(#[doc = concat!($title, ".")] $code,)+
            /// A rule of the domain refuses it. Each rule has a code of its own, in `UPPER_SNAKE_CASE`.
            DomainRule(Cow<'static, str>),
        }

        impl Code {
            /// Every code except the domain's own, in the order of the catalogue.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$code),+];

            /// The line of the catalogue for this code.
            #[must_use]
            pub fn entry(&self) -> &'static Entry {
                match self {
                    $(Self::$code => &Entry {
                        name: $name,
                        title: $title,
                        grpc: tonic::Code::$grpc,
                        http: StatusCode::$http,
                        retry: Retry::$retry,
                        explanation: $explanation,
                    },)+
                    Self::DomainRule(_) => &DOMAIN_RULE,
                }
            }
        }
    };
}

codes! {
    MalformedRequest {
        name: "MALFORMED_REQUEST", grpc: InvalidArgument, http: BAD_REQUEST, retry: No,
        title: "The request cannot be understood",
        explanation: "The body, the path, the query string or a header is not what the contract describes: \
            broken JSON or protobuf, or a body that breaks off. The violation says where, when it is known. What is no \
            HTTP at all (control characters in a header, say) is not answered so: it ends the connection.",
    }
    ValidationFailed {
        name: "VALIDATION_FAILED", grpc: InvalidArgument, http: BAD_REQUEST, retry: No,
        title: "A field is not valid",
        explanation: "One or more fields, headers or parameters are missing, mistyped or out of range. Each \
            violation names the field by a JSON pointer, or the header or parameter by its name, and has a code \
            of its own. An answer lists at most 100 of them (32 over gRPC); `more_violations` counts the rest. \
            Nothing was recorded.",
    }
    InvalidCursor {
        name: "INVALID_CURSOR", grpc: InvalidArgument, http: BAD_REQUEST, retry: No,
        title: "The cursor is not valid here",
        explanation: "A cursor is sealed, and good only for the list, the filters and the sort order \
            that gave it. Start again from the first page.",
    }
    PositionUnknown {
        name: "POSITION_UNKNOWN", grpc: OutOfRange, http: BAD_REQUEST, retry: No,
        title: "The log has no such position",
        explanation: "The token or cursor is one of ours, but stands for something that the log does not have: \
            it lies beyond the newest event, or belongs to a history that is gone because the log was set back. \
            Read without it, then decide again.",
    }
    Unauthenticated {
        name: "UNAUTHENTICATED", grpc: Unauthenticated, http: UNAUTHORIZED, retry: No,
        title: "A valid credential is needed",
        explanation: "There is no credential, or it is unknown, expired or revoked; the answer does not say \
            which. Send `Authorization: Bearer` with an API key.",
    }
    PermissionDenied {
        name: "PERMISSION_DENIED", grpc: PermissionDenied, http: FORBIDDEN, retry: No,
        title: "The credential lacks a scope",
        explanation: "The credential is valid but may not do this. `missing_scope` names the scope that is \
            needed.",
    }
    ResourceNotFound {
        name: "RESOURCE_NOT_FOUND", grpc: NotFound, http: NOT_FOUND, retry: No,
        title: "There is no such resource",
        explanation: "It does not exist for this credential. The resource of another tenant answers in \
            exactly this way.",
    }
    Gone {
        name: "GONE", grpc: NotFound, http: GONE, retry: No,
        title: "It has ended",
        explanation: "It was deprecated, and the time that it had left (`sunset`) is over. `successor` and the header `Link` \
            say what takes its place.",
    }
    VersionConflict {
        name: "VERSION_CONFLICT", grpc: Aborted, http: CONFLICT, retry: AfterReload,
        title: "The aggregate has another version",
        explanation: "Something else changed the aggregate after the caller looked. `expected_version` is \
            what the request demanded, `actual_version` what is true. Where it was demanded by `If-Match`, the \
            status on HTTP is 412.",
    }
    AlreadyExists {
        name: "ALREADY_EXISTS", grpc: AlreadyExists, http: CONFLICT, retry: No,
        title: "The resource exists already",
        explanation: "Something with this id was made before by another request.",
    }
    IdempotencyKeyReused {
        name: "IDEMPOTENCY_KEY_REUSED", grpc: InvalidArgument, http: UNPROCESSABLE_ENTITY, retry: No,
        title: "The idempotency key belongs to another request",
        explanation: "The key was used before, with other content. Use a new key for a new request, and the \
            very same content when sending one again.",
    }
    OperationRunning {
        name: "OPERATION_RUNNING", grpc: FailedPrecondition, http: CONFLICT, retry: WhenItEnds,
        title: "Such an operation is running already",
        explanation: "Only one at a time makes sense of what was asked for, a rebuild of a projection, say. \
            `resource` names the one that is running.",
    }
    RateLimited {
        name: "RATE_LIMITED", grpc: ResourceExhausted, http: TOO_MANY_REQUESTS, retry: Later,
        title: "The caller has used up its share",
        explanation: "A limit is reached that is the caller's own, or its tenant has its whole share of a \
            queue; `quota` says which. Others are served. Nothing was done.",
    }
    ReadModelBehind {
        name: "READ_MODEL_BEHIND", grpc: Unavailable, http: SERVICE_UNAVAILABLE, retry: Later,
        title: "The read model has not got that far",
        explanation: "The read demanded a position (`wanted_position`) that the read model, at `position`, \
            did not reach within the wait. Both are consistency tokens. It is never answered with something older. Or the \
            history has an event (`event_type`, `schema_version`) that was recorded by a newer program than this one, \
            which cannot tell what it changed.",
    }
    Overloaded {
        name: "OVERLOADED", grpc: Unavailable, http: SERVICE_UNAVAILABLE, retry: Later,
        title: "Too much is waiting already",
        explanation: "A queue that all callers share is full, so the request was refused at once and nothing was \
            done.",
    }
    DependencyUnavailable {
        name: "DEPENDENCY_UNAVAILABLE", grpc: Unavailable, http: SERVICE_UNAVAILABLE, retry: Later,
        title: "A server that is needed does not answer",
        explanation: "For example the database. A command that was answered so may have been recorded: send \
            it again with the same idempotency key.",
    }
    ShuttingDown {
        name: "SHUTTING_DOWN", grpc: Unavailable, http: SERVICE_UNAVAILABLE, retry: Later,
        title: "The service is stopping",
        explanation: "This process ends before it could answer. Another one, or its successor, will: a command that \
            was answered so may have been recorded, so send it again with the same idempotency key.",
    }
    DeadlineExceeded {
        name: "DEADLINE_EXCEEDED", grpc: DeadlineExceeded, http: GATEWAY_TIMEOUT, retry: SameKey,
        title: "The time is up",
        explanation: "The caller's deadline or the service's own limit passed first. Whether a command was \
            recorded is unknown: send it again with the same idempotency key.",
    }
    PayloadTooLarge {
        name: "PAYLOAD_TOO_LARGE", grpc: ResourceExhausted, http: PAYLOAD_TOO_LARGE, retry: No,
        title: "The request or its answer is too large",
        explanation: "The request, or the answer to it, is larger than the limit (`limit_bytes`, when it is \
            known), or more events would have to be folded for it than `limit_events`. Ask for less, or for an earlier \
            version.",
    }
    HeadersTooLarge {
        name: "HEADERS_TOO_LARGE", grpc: ResourceExhausted, http: REQUEST_HEADER_FIELDS_TOO_LARGE, retry: No,
        title: "The headers of the request are too large",
        explanation: "Request line and headers together are larger than the limit (`limit_bytes`). Beyond one and a half times \
            of it over HTTP/1 the answer is this status without a body.",
    }
    UriTooLong {
        name: "URI_TOO_LONG", grpc: ResourceExhausted, http: URI_TOO_LONG, retry: No,
        title: "The address of the request is too long",
        explanation: "Path and query string together are longer than the limit (`limit_bytes`).",
    }
    RequestTimeout {
        name: "REQUEST_TIMEOUT", grpc: DeadlineExceeded, http: REQUEST_TIMEOUT, retry: SameKey,
        title: "The request did not arrive in time",
        explanation: "The service still waited for the rest of the body when the time was up. Send the whole \
            request again.",
    }
    UnsupportedMediaType {
        name: "UNSUPPORTED_MEDIA_TYPE", grpc: Unimplemented, http: UNSUPPORTED_MEDIA_TYPE, retry: No,
        title: "The content type is not supported",
        explanation: "Send JSON as `application/json`, and bodies and messages without compression.",
    }
    MethodNotAllowed {
        name: "METHOD_NOT_ALLOWED", grpc: Unimplemented, http: METHOD_NOT_ALLOWED, retry: No,
        title: "There is no such method here",
        explanation: "The resource does not take this HTTP method (`Allow` lists those that it takes), or \
            the service has no such RPC.",
    }
    Internal {
        name: "INTERNAL", grpc: Internal, http: INTERNAL_SERVER_ERROR, retry: No,
        title: "A fault of the service",
        explanation: "It is in the log under the request id that the answer carries. Give that id to the \
            operators.",
    }
}

static DOMAIN_RULE: Entry = Entry {
    name: "DOMAIN_RULE",
    title: "A rule of the domain refuses this",
    grpc: tonic::Code::FailedPrecondition,
    http: StatusCode::UNPROCESSABLE_ENTITY,
    retry: Retry::No,
    explanation: "The request is understood and the state of the aggregate does not allow it. The refusal is \
                  remembered with the idempotency key: use a new key to try again when the state has changed.",
};

impl Code {
    /// The code as it is sent: `VERSION_CONFLICT`.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::DomainRule(rule) => rule,
            known => known.entry().name,
        }
    }

    /// The code of this name. A name that is not the catalogue's own is a rule's.
    #[must_use]
    pub fn by_name(name: &str) -> Self {
        let mut known = Self::ALL.into_iter();
        known
            .find(|code| code.name() == name)
            .unwrap_or_else(|| Self::DomainRule(name.to_owned().into()))
    }

    /// The last part of the problem's type: `version-conflict`.
    #[must_use]
    pub fn slug(&self) -> String {
        self.name().to_ascii_lowercase().replace('_', "-")
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
