//! Consistency tokens: what a command returns and a query waits for.
//!
//! A token is sealed and bound to its tenant. Nobody else can use it, and nobody reads a position out of it: positions count
//! what all tenants write.

use uuid::Uuid;

use crate::sealing::{KeyRing, Purpose};

/// A point in a partition of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsistencyToken {
    /// The partition.
    pub partition: i32,
    /// The position that must have been applied.
    pub position: u64,
    /// The number of the epoch of the log that the position was seen in: one above all that a reader knows is newer.
    pub epoch: i32,
    /// The generation of that epoch; after a restore, older tokens may point into a log that is gone.
    pub generation: Uuid,
}

const LENGTH: usize = 4 + 8 + 4 + 16;

impl ConsistencyToken {
    /// The token for a tenant, always the same under one key: for positions of the tenant's own, which it may recognise.
    #[must_use]
    pub fn seal(&self, ring: &KeyRing, tenant_id: Uuid) -> String {
        ring.seal(Purpose::ConsistencyToken, tenant_id.as_bytes(), &self.encode())
    }

    /// The token for a tenant, another text each time: for positions that other tenants move, too.
    #[must_use]
    pub fn seal_afresh(&self, ring: &KeyRing, tenant_id: Uuid) -> String {
        ring.seal_afresh(Purpose::ConsistencyToken, tenant_id.as_bytes(), &self.encode())
    }

    /// Opens a tenant's token; `None` for what is none.
    #[must_use]
    pub fn open(ring: &KeyRing, tenant_id: Uuid, text: &str) -> Option<Self> {
        Self::decode(&ring.open(Purpose::ConsistencyToken, tenant_id.as_bytes(), text)?)
    }

    fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..4].copy_from_slice(&self.partition.to_be_bytes());
        bytes[4..12].copy_from_slice(&self.position.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.epoch.to_be_bytes());
        bytes[16..].copy_from_slice(self.generation.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (partition, rest) = bytes.split_first_chunk()?;
        let (position, rest) = rest.split_first_chunk()?;
        let (epoch, generation) = rest.split_first_chunk()?;
        Some(Self {
            partition: i32::from_be_bytes(*partition),
            position: u64::from_be_bytes(*position),
            epoch: i32::from_be_bytes(*epoch),
            generation: Uuid::from_slice(generation).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::SecretKey;

    const ANNE: Uuid = Uuid::from_u128(1);
    const BERT: Uuid = Uuid::from_u128(2);

    #[test]
    fn a_token_opens_for_its_tenant_and_for_no_other() {
        let ring = KeyRing::new(&[SecretKey::DEVELOPMENT]);
        let token = ConsistencyToken {
            partition: 3,
            position: u64::MAX - 1,
            epoch: 5,
            generation: Uuid::from_u128(7),
        };
        for text in [token.seal(&ring, ANNE), token.seal_afresh(&ring, ANNE)] {
            assert_eq!(ConsistencyToken::open(&ring, ANNE, &text), Some(token));
            assert_eq!(ConsistencyToken::open(&ring, BERT, &text), None);
        }
    }
}
