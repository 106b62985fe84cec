//! The wire contract: the `.proto` tree, the code generated from it, and the conversions from and to the domain.
//!
//! Wire types are not domain types: what arrives is converted here, by hand, and refused here when it cannot be
//! understood. The tree beside this file is the contract; `buf lint` and `buf breaking` guard it.

pub mod convert;

/// The file descriptors of every service, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/daybook.bin"));

/// The JSON Schema of the payload of every event type and version that was ever written, each with its name:
/// `order.placed.v2`.
pub const EVENT_SCHEMAS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/event_schemas.rs"));

/// One module for each package `daybook.<area>.v1` of the tree: what is generated from it.
macro_rules! packages {
    ($($(#[$meta:meta])* $area:ident;)*) => {$(
        $(#[$meta])*
        pub mod $area {
            /// Version 1.
            #[allow(
                missing_docs,
                clippy::all,
                clippy::allow_attributes,
                clippy::too_many_lines,
                reason = "generated"
            )]
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/daybook.", stringify!($area), ".v1.rs"));
            }
        }
    )*};
}

packages! {
    /// What more than one service area uses.
    common;
    /// Event histories.
    history;
    /// Orders: commands and queries.
    orders;
    /// The life of projections.
    projections;
    /// Stock items: commands and queries.
    stock;
}
