//! The wire contract: the `.proto` tree, the code generated from it, and the conversions from and to the domain.
//!
//! Wire types are not domain types: what arrives is converted here, by hand, and refused here when it cannot be
//! understood. The tree beside this file is the contract; `buf lint` and `buf breaking` guard it.

pub mod convert;

/// The file descriptors of every service, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/daybook.bin"));

/// What more than one service area uses.
pub mod common {
    /// Version 1.
    #[allow(missing_docs, clippy::all, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("daybook.common.v1");
    }
}

/// Event histories.
pub mod history {
    /// Version 1.
    #[allow(missing_docs, clippy::all, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("daybook.history.v1");
    }
}

/// Orders: commands and queries.
pub mod orders {
    /// Version 1.
    #[allow(missing_docs, clippy::all, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("daybook.orders.v1");
    }
}

/// The life of projections.
pub mod projections {
    /// Version 1.
    #[allow(missing_docs, clippy::all, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("daybook.projections.v1");
    }
}
