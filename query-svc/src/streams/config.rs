//! Settings of streams.

use std::time::Duration;

use clap::Args;

/// Settings of the streams that callers may keep open.
#[derive(Args, Clone, Debug)]
pub struct StreamsConfig {
    /// How many streams may be open, of all tenants together; one more is OVERLOADED. Each holds a few KiB, and what it has not
    /// been read of, up to the size of its buffer.
    #[arg(long, env = "DAYBOOK_STREAMS_MAX", value_name = "COUNT", default_value_t = 3_000,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub streams_max: u32,

    /// How many of them may be of one tenant; one more is RATE_LIMITED.
    #[arg(long, env = "DAYBOOK_TENANT_STREAMS_MAX", value_name = "COUNT", default_value_t = 500,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub tenant_streams_max: u32,

    /// How many bytes may wait for the reader of one stream. Who is slower than that gets what waits, is told so, and resumes
    /// from there.
    #[arg(long, env = "DAYBOOK_STREAM_BUFFER_BYTES", value_name = "BYTES", default_value_t = 256 * 1_024,
          value_parser = clap::value_parser!(u32).range(1_024..=16_777_216))]
    pub stream_buffer_bytes: u32,

    /// How many bytes of events and rows streams may hold that their readers have not taken, of all tenants together: what waits
    /// for slow ones, and what they are to catch up with. Beyond that slow ones are cut off, and others wait.
    #[arg(long, env = "DAYBOOK_STREAMS_BYTES_MAX", value_name = "BYTES", default_value_t = 128 * 1_024 * 1_024,
          value_parser = clap::value_parser!(u32).range(1_048_576..))]
    pub streams_bytes_max: u32,

    /// How many of them may be of one tenant; it never has more than half of what the others leave.
    #[arg(long, env = "DAYBOOK_TENANT_STREAMS_BYTES_MAX", value_name = "BYTES", default_value_t = 32 * 1_024 * 1_024,
          value_parser = clap::value_parser!(u32).range(1_048_576..))]
    pub tenant_streams_bytes_max: u32,

    /// How often the credential of an open stream is looked at again, in seconds. One that was revoked ends its streams after
    /// half as long again at the latest.
    #[arg(long, env = "DAYBOOK_STREAM_RECHECK_SECONDS", value_name = "SECONDS", default_value_t = 15,
          value_parser = clap::value_parser!(u64).range(1..=20))]
    pub stream_recheck_seconds: u64,
}

impl StreamsConfig {
    pub(super) fn recheck_interval(&self) -> Duration {
        Duration::from_secs(self.stream_recheck_seconds)
    }
}
