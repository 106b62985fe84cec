//! Consistency tokens: what a command returns and a query waits for.
//!
//! Callers treat a token as opaque. It is not signed: a forged one makes its sender wait, and nothing else.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

/// A point in a partition of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsistencyToken {
    /// The partition.
    pub partition: i32,
    /// The position that must have been applied.
    pub position: u64,
    /// The generation of the log; after a restore, older tokens point into a log that is gone.
    pub generation: Uuid,
}

const VERSION: u8 = 1;
const LENGTH: usize = 1 + 4 + 8 + 16;

impl ConsistencyToken {
    /// The token's text: base64url without padding of version, partition, position (big-endian) and generation.
    pub fn encode(&self) -> String {
        let mut bytes = [0; LENGTH];
        bytes[0] = VERSION;
        bytes[1..5].copy_from_slice(&self.partition.to_be_bytes());
        bytes[5..13].copy_from_slice(&self.position.to_be_bytes());
        bytes[13..].copy_from_slice(self.generation.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a token back; `None` for what this never wrote.
    pub fn decode(text: &str) -> Option<Self> {
        let bytes: [u8; LENGTH] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
        let (version, rest) = bytes.split_first()?;
        let (partition, rest) = rest.split_first_chunk()?;
        let (position, rest) = rest.split_first_chunk()?;
        let (generation, _) = rest.split_first_chunk()?;
        (*version == VERSION).then(|| Self {
            partition: i32::from_be_bytes(*partition),
            position: u64::from_be_bytes(*position),
            generation: Uuid::from_bytes(*generation),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_round_trip() {
        let token = ConsistencyToken {
            partition: 3,
            position: u64::MAX - 1,
            generation: Uuid::from_u128(7),
        };
        assert_eq!(ConsistencyToken::decode(&token.encode()), Some(token));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in ["", "AQ", "not base64!", &"A".repeat(39), &"A".repeat(40)] {
            assert_eq!(ConsistencyToken::decode(text), None, "{text}");
        }
    }
}
