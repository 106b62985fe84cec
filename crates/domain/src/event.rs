//! How events are written and read: the JSON payload of each type, its schema version, and the way from old
//! versions to the current one.
//!
//! A payload is owned by its schema version. What was written once is never rewritten; it is *upcast* when it
//! is read, one version at a time, by the aggregate's single `upcast` function. Current payloads do not take
//! that detour.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// An event of an aggregate, as it is stored and read. Declared with `events!`.
pub trait Event: Sized {
    /// Every event type with its current schema version.
    const SCHEMAS: &'static [(&'static str, u32)];

    /// The dotted, past-tense name under which the event is stored ("order.placed").
    fn event_type(&self) -> &'static str;

    /// The version of the payload that [`Event::encode`] writes.
    fn schema_version(&self) -> u32;

    /// The payload as JSON, without a tag: type and version are stored beside it.
    fn encode(&self) -> String;

    /// Reads a stored event of any version ever written.
    ///
    /// # Errors
    /// When this program does not know the type or the version, or the payload is not what they say.
    fn decode(event_type: &str, schema_version: u32, payload: &str) -> Result<Self, DecodeError>;
}

/// Why a stored event could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The aggregate has no event of this type.
    #[error("unknown event type {event_type:?}")]
    UnknownType {
        /// The type as stored.
        event_type: String,
    },
    /// The type is known, this version of it is not: it was written by a newer program, or never existed.
    #[error("unknown schema version {schema_version} of {event_type}; the current one is {current}")]
    UnknownVersion {
        /// The type as stored.
        event_type: &'static str,
        /// The version as stored.
        schema_version: u32,
        /// The newest version that this program knows.
        current: u32,
    },
    /// The payload is not what its version says.
    #[error("malformed payload of {event_type} version {schema_version}")]
    Malformed {
        /// The type as stored.
        event_type: &'static str,
        /// The version as stored.
        schema_version: u32,
        /// The member that does not fit, and where it is.
        #[source]
        source: serde_json::Error,
    },
}

/// Turns a payload of version `from` into one of version `from + 1`; `None` when there is no such step.
///
/// A step moves what it knows and leaves the judgement of the rest to the decoding that follows the last
/// step.
pub(crate) type Upcast =
    fn(event_type: &str, from: u32, payload: Map<String, Value>) -> Option<Map<String, Value>>;

/// The current schema of one event type.
pub(crate) struct Schema {
    pub(crate) event_type: &'static str,
    pub(crate) current: u32,
    pub(crate) upcast: Upcast,
}

impl Schema {
    /// Reads a payload of the given version, at full speed when it is the current one.
    pub(crate) fn decode<P: DeserializeOwned>(&self, version: u32, payload: &str) -> Result<P, DecodeError> {
        if version == self.current {
            return serde_json::from_str(payload).map_err(|source| self.malformed(version, source));
        }
        self.decode_old(version, payload)
    }

    #[cold]
    fn decode_old<P: DeserializeOwned>(&self, version: u32, payload: &str) -> Result<P, DecodeError> {
        if version > self.current {
            return Err(self.unknown(version));
        }
        let mut old: Map<String, Value> =
            serde_json::from_str(payload).map_err(|source| self.malformed(version, source))?;
        for from in version..self.current {
            old = (self.upcast)(self.event_type, from, old).ok_or_else(|| self.unknown(version))?;
        }
        serde_json::from_value(Value::Object(old)).map_err(|source| self.malformed(version, source))
    }

    fn unknown(&self, schema_version: u32) -> DecodeError {
        DecodeError::UnknownVersion {
            event_type: self.event_type,
            schema_version,
            current: self.current,
        }
    }

    fn malformed(&self, schema_version: u32, source: serde_json::Error) -> DecodeError {
        DecodeError::Malformed {
            event_type: self.event_type,
            schema_version,
            source,
        }
    }
}

/// Writes a payload.
pub(crate) fn encode(payload: &impl serde::Serialize) -> String {
    serde_json::to_string(payload).expect("payloads have string keys only and are written to memory")
}

/// Declares an aggregate's `Event`: each payload struct with its type name and current schema version.
macro_rules! events {
    (
        $(#[$meta:meta])*
        pub enum Event upcast by $upcast:ident {
            $( $(#[$variant_meta:meta])* $name:ident = $event_type:literal, $version:literal; )+
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Event {
            $( $(#[$variant_meta])* $name($name), )+
        }

        $(
            impl From<$name> for Event {
                fn from(payload: $name) -> Self {
                    Self::$name(payload)
                }
            }
        )+

        impl $crate::event::Event for Event {
            const SCHEMAS: &'static [(&'static str, u32)] = &[$( ($event_type, $version), )+];

            fn event_type(&self) -> &'static str {
                match self {
                    $( Self::$name(_) => $event_type, )+
                }
            }

            fn schema_version(&self) -> u32 {
                match self {
                    $( Self::$name(_) => $version, )+
                }
            }

            fn encode(&self) -> String {
                match self {
                    $( Self::$name(payload) => $crate::event::encode(payload), )+
                }
            }

            fn decode(
                event_type: &str,
                schema_version: u32,
                payload: &str,
            ) -> Result<Self, $crate::event::DecodeError> {
                match event_type {
                    $(
                        $event_type => $crate::event::Schema {
                            event_type: $event_type,
                            current: $version,
                            upcast: $upcast,
                        }
                        .decode(schema_version, payload)
                        .map(Self::$name),
                    )+
                    unknown => Err($crate::event::DecodeError::UnknownType {
                        event_type: unknown.to_owned(),
                    }),
                }
            }
        }
    };
}
