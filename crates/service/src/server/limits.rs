//! Limits on callers, as settings. The comments on the fields are their manual.

use std::time::Duration;

use clap::{Args, Command, FromArgMatches as _, value_parser};

use super::access::{PROBES_PER_CONNECTION, REFUSALS_PER_CONNECTION};
use super::budget::{ANONYMOUS_BYTES_MAX, REQUEST_BYTES};
use super::routes::PROBE_BODY_BYTES_MAX;
use crate::identity::LOOKUPS_WAITING_MAX;

/// How many bytes of one HTTP/2 connection may arrive before anybody reads them. h2 lets half as many bytes of overhead wait in
/// small frames, 256 for each, and closes the connection after that: this is enough for one in each of
/// [`Limits::connection_streams_max`] requests.
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 512 * 1_024;

/// Bytes of a connection beside its windows and heads: buffers to read and to write, tables of headers.
const CONNECTION_BUFFER_BYTES: u32 = 64 * 1_024;

/// Limits on callers.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Limits for callers")]
pub struct Limits {
    /// How many connections may be open. When there are as many, the oldest of those that have shown no valid key is closed
    /// for the next one, or, where these are few, the oldest of the tenant that has the most.
    #[arg(long, env = "DAYBOOK_CONNECTIONS_MAX", value_name = "COUNT", default_value = "1280",
          value_parser = value_parser!(u32).range(1..))]
    pub connections_max: u32,

    /// How long a request's head may take from its first byte; also the handshake of a new connection.
    #[arg(long, env = "DAYBOOK_HEADER_READ_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = time)]
    pub header_read_timeout: Duration,

    /// How long an HTTP/1 connection may be idle between requests. Longer than a load balancer's own limit (60 s is
    /// usual), so that it is never we who close a connection that the balancer is just about to use.
    #[arg(long, env = "DAYBOOK_IDLE_TIMEOUT", value_name = "TIME", default_value = "75s", value_parser = time)]
    pub idle_timeout: Duration,

    /// How long a connection may leave what we send unread: all of it, or the next 16 KiB of one answer. Then it is asked to
    /// go.
    #[arg(long, env = "DAYBOOK_WRITE_STALL_TIMEOUT", value_name = "TIME", default_value = "30s", value_parser = time)]
    pub write_stall_timeout: Duration,

    /// The size of a request's head, in bytes: request line and headers, each with 32 bytes of its own. One that is larger is
    /// `HEADERS_TOO_LARGE`, up to one and a half times this size; whoever sends more gets 431 and nothing else from the library.
    #[arg(long, env = "DAYBOOK_HEADER_BYTES_MAX", value_name = "BYTES", default_value = "16384",
          value_parser = value_parser!(u32).range(8_192..=65_536))]
    pub header_bytes_max: u32,

    /// The size of path and query string, in bytes; more is `URI_TOO_LONG`.
    #[arg(
        long,
        env = "DAYBOOK_URI_BYTES_MAX",
        value_name = "BYTES",
        default_value = "8192"
    )]
    pub uri_bytes_max: u32,

    /// The size of an HTTP request's body, in bytes, where its route has no smaller limit of its own. gRPC services have
    /// limits of their own for messages.
    #[arg(
        long,
        env = "DAYBOOK_BODY_BYTES_MAX",
        value_name = "BYTES",
        default_value = "1048576"
    )]
    pub body_bytes_max: usize,

    /// How many bytes all requests may hold until their answers are taken, those of each tenant counted up to its share; more
    /// is `OVERLOADED`. Each costs a few KiB with an empty body, so this is a limit of their number, too.
    #[arg(
        long,
        env = "DAYBOOK_BYTES_IN_FLIGHT_MAX",
        value_name = "BYTES",
        default_value = "67108864"
    )]
    pub bytes_in_flight_max: usize,

    /// How many of these bytes may be of one tenant; more is `RATE_LIMITED`. Where others hold some, a tenant that holds
    /// something itself finds room for more in half of what they leave only: for a second request, for a body that was not
    /// declared, for an answer that is not small; more is `OVERLOADED`.
    #[arg(
        long,
        env = "DAYBOOK_TENANT_BYTES_IN_FLIGHT_MAX",
        value_name = "BYTES",
        default_value = "33554432"
    )]
    pub tenant_bytes_in_flight_max: usize,

    /// How many requests one HTTP/2 connection may have open.
    #[arg(long, env = "DAYBOOK_CONNECTION_STREAMS_MAX", value_name = "COUNT", default_value = "1024",
          value_parser = value_parser!(u32).range(1..=1_024))]
    pub connection_streams_max: u32,

    /// How often an HTTP/2 connection is asked whether it is still there.
    #[arg(long, env = "DAYBOOK_KEEPALIVE_INTERVAL", value_name = "TIME", default_value = "20s", value_parser = time)]
    pub keepalive_interval: Duration,

    /// How long it may take to answer that.
    #[arg(long, env = "DAYBOOK_KEEPALIVE_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = time)]
    pub keepalive_timeout: Duration,

    /// How long a request may take until its answer begins, unless the caller's own deadline is shorter.
    #[arg(long, env = "DAYBOOK_REQUEST_TIMEOUT", value_name = "TIME", default_value = "30s", value_parser = time)]
    pub request_timeout: Duration,

    /// After which age a connection is asked to go, so that callers spread over new replicas.
    #[arg(long, env = "DAYBOOK_CONNECTION_AGE_MAX", value_name = "TIME", default_value = "30m", value_parser = time)]
    pub connection_age_max: Duration,

    /// How long requests may go on after that. Long streams resume by position.
    #[arg(long, env = "DAYBOOK_CONNECTION_AGE_GRACE", value_name = "TIME", default_value = "60s", value_parser = time)]
    pub connection_age_grace: Duration,

    /// How long open requests may go on after the stop signal and the drain delay. Two seconds later the process is gone,
    /// whatever hangs.
    #[arg(long, env = "DAYBOOK_GRACE_PERIOD", value_name = "TIME", default_value = "8s", value_parser = time)]
    pub grace_period: Duration,
}

/// The settings where nothing is set.
impl Default for Limits {
    fn default() -> Self {
        let command = Self::augment_args(Command::new("limits"));
        let command = command.mut_args(|argument| argument.env(None::<&str>));
        let given = command.get_matches_from(["limits"]);
        Self::from_arg_matches(&given).expect("every limit has a default")
    }
}

impl Limits {
    /// The most that callers can make the process hold by what they send, in bytes, whoever they are:
    ///
    /// - each connection what may arrive before anybody reads it, a head that is on its way, and its buffers;
    /// - the heads of requests that wait for their key to be looked up, in two queues and under way from each (their bodies
    ///   are in the windows above);
    /// - the budget of callers who are known, the two of callers who are not, and that of refusals;
    /// - a few probes of each connection, and a few refusals.
    ///
    /// Compressed requests are not taken, so nothing grows after it has arrived. Answers count in the same budgets from the
    /// moment when they are made. One that is complete is refused where there is no room for it; a small one, and a part of a
    /// stream, goes out all the same, and keeps later requests of its tenant out.
    #[must_use]
    pub fn caller_bytes_max(&self) -> u64 {
        let connection = CONNECTION_WINDOW_BYTES + self.read_bytes_max() + CONNECTION_BUFFER_BYTES;
        let connections = u64::from(self.connections_max) * u64::from(connection);
        let lookups = 4 * LOOKUPS_WAITING_MAX as u64 * u64::from(self.header_bytes_max);
        let budgets = self.bytes_in_flight_max + 3 * ANONYMOUS_BYTES_MAX;
        let probe = REQUEST_BYTES + PROBE_BODY_BYTES_MAX + self.header_bytes_max as usize;
        let of_each = PROBES_PER_CONNECTION * probe + REFUSALS_PER_CONNECTION * REQUEST_BYTES;
        connections + lookups + budgets as u64 + u64::from(self.connections_max) * of_each as u64
    }

    /// How much of a head is read, in bytes: more than is allowed, so that we say ourselves that it is too much.
    pub(super) fn read_bytes_max(&self) -> u32 {
        self.header_bytes_max / 2 * 3
    }
}

/// Reads a time that has to pass, like `30s` or `1m 30s`.
fn time(text: &str) -> Result<Duration, String> {
    match crate::config::delay(text)? {
        Duration::ZERO => Err("must be longer than nothing".to_owned()),
        time => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_callers_can_make_the_process_hold_fits_into_a_gibibyte() {
        let bytes_max = Limits::default().caller_bytes_max();
        assert!(bytes_max <= 1 << 30, "{bytes_max}");
    }
}
