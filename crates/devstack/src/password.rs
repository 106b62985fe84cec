//! Passwords: random ones, and those that follow from a secret that is kept anyway.

use sha2::{Digest as _, Sha256};

/// 128 random bits, in hex: needs no escaping in an address.
pub(crate) fn random() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// The password of whoever has this name, so that nobody has to keep it or hand it on.
pub(crate) fn derived(secret: &str, name: &str) -> String {
    let digest = Sha256::digest(format!("{secret}:{name}"));
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
