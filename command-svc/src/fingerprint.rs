//! The keyed hash of a command's content, to which its idempotency key is bound.
//!
//! A plain hash would be an oracle: whoever reads the table of keys could try names and addresses until one fits. The hash
//! is over the command's name and its Protocol Buffers encoding without the key, which every version of this program
//! writes alike: fields in the order of their numbers, and those at their default left out.

use daybook_service::key::SecretKey;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// Makes fingerprints. The first key makes those that are stored; the others find what was stored with them, and must be
/// kept for as long as idempotency keys are.
#[derive(Clone)]
pub(crate) struct Fingerprints(Vec<Hmac<Sha256>>);

impl std::fmt::Debug for Fingerprints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fingerprints(…)")
    }
}

impl Fingerprints {
    /// Fingerprints under these keys, the current one first.
    pub(crate) fn new(keys: &[SecretKey]) -> Self {
        let mac =
            |key: &SecretKey| Hmac::new_from_slice(key.expose()).expect("HMAC takes keys of any length");
        Self(keys.iter().map(mac).collect())
    }

    /// The fingerprints of a command, one under each key: the first 64 bits of HMAC-SHA256. They only
    /// tell the same content from other content under one key, and nobody without the hash's key can look for two that agree.
    pub(crate) fn of(&self, command: &'static str, content: &[u8]) -> Vec<i64> {
        let fingerprint = |mac: &Hmac<Sha256>| {
            let mac = mac.clone().chain_update(command).chain_update([0]);
            let bytes = mac.chain_update(content).finalize().into_bytes();
            let (first, _) = bytes.split_first_chunk().expect("it has 32 bytes");
            i64::from_be_bytes(*first)
        };
        self.0.iter().map(fingerprint).collect()
    }
}

#[cfg(test)]
mod tests {
    use daybook_proto::orders::v1::{NewOrderLine, PlaceOrderRequest};
    use prost::Message as _;

    use super::*;

    const KEY: SecretKey = SecretKey::new(*b"0123456789abcdef0123456789abcdef");

    fn order() -> PlaceOrderRequest {
        PlaceOrderRequest {
            customer_id: "ada".to_owned(),
            currency: "EUR".to_owned(),
            lines: vec![NewOrderLine {
                sku: "PEN".to_owned(),
                quantity: 2,
                unit_price_minor: 3_450,
            }],
            ..PlaceOrderRequest::default()
        }
    }

    /// Frozen: a retry that meets a newer program must still find what the older one remembered.
    #[test]
    fn a_fingerprint_is_the_same_in_every_version_of_the_program() {
        let fingerprints = Fingerprints::new(&[KEY]).of("PlaceOrder", &order().encode_to_vec());
        assert_eq!(fingerprints[0].cast_unsigned(), 0x1631_0fde_a026_4487);
    }

    #[test]
    fn other_content_another_command_and_another_key_give_other_fingerprints() {
        let of = |command, order: &PlaceOrderRequest| {
            Fingerprints::new(&[KEY]).of(command, &order.encode_to_vec())
        };
        let mut other = order();
        other.lines[0].quantity = 3;
        assert_ne!(of("PlaceOrder", &order()), of("PlaceOrder", &other));
        assert_ne!(of("PlaceOrder", &order()), of("ReplaceOrder", &order()));
        let both =
            Fingerprints::new(&[SecretKey::DEVELOPMENT, KEY]).of("PlaceOrder", &order().encode_to_vec());
        assert_eq!(both[1], of("PlaceOrder", &order())[0]);
        assert_ne!(both[0], both[1]);
    }
}
