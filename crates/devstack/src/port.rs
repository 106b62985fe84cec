//! Ports that nobody listens on.

use std::net::{Ipv4Addr, TcpListener};

use rand::Rng as _;

/// Below the range from which systems take the ports of outgoing connections (32768 on Linux). In that range a client
/// that retries the port of a stopped server can connect *to itself*, and then the server cannot come back.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// How many ports are tried; each is free with a probability near one.
const ATTEMPTS_MAX: usize = 200;

/// Whether nobody listens on this port of 127.0.0.1 at the moment.
#[must_use]
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// A port that nobody listens on at the moment; another process may take it before it is used, so callers that were
/// not told a port try again with another. `None` when the machine has none left.
#[must_use]
pub fn free() -> Option<u16> {
    let mut random = rand::rng();
    (0..ATTEMPTS_MAX)
        .map(|_| random.random_range(PORTS))
        .find(|port| is_free(*port))
}
