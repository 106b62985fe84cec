//! Settings of the command service.

use std::str::FromStr;

use clap::Parser;
use daybook_event_bus::Deployment;
use daybook_service::config::{CommonConfig, Secret};
use daybook_service::key::SecretKey;
use daybook_service::sealing::{KeyRing, SealingConfig};
use http::Uri;
use http::uri::Scheme;

/// Takes commands over gRPC and HTTP, appends what they lead to, and publishes it.
#[derive(Parser, Clone, Debug)]
#[command(version)]
pub struct Config {
    /// Settings that every service has.
    #[command(flatten)]
    pub common: CommonConfig,

    /// The prefix of this deployment's streams and subjects, so that several can share one NATS account: a lower-case
    /// letter and up to 31 more letters and digits. All services of a deployment need the same.
    #[arg(long, env = "DAYBOOK_DEPLOYMENT", value_name = "NAME", default_value_t)]
    pub deployment: Deployment,

    /// The same database with the role of the publishing task, which sees the events of every tenant and answers no
    /// caller.
    #[arg(
        long,
        env = "DAYBOOK_PUBLISHER_DATABASE_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    pub publisher_database_url: Secret,

    /// How many copies JetStream keeps of the log's streams: 1 on a single server, 3 on a cluster.
    #[arg(
        long,
        env = "DAYBOOK_STREAM_REPLICAS",
        value_name = "NUMBER",
        default_value_t = 1
    )]
    pub stream_replicas: usize,

    /// How many events each JetStream stream holds, the newest; all of them when not given. Older ones are read from the log.
    #[arg(long, env = "DAYBOOK_STREAM_EVENTS_MAX", value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub stream_events_max: Option<u64>,

    /// How many connections to the database load aggregates. There are a few more: one for each partition that is appended
    /// to, which nothing else waits for, two that look keys up, two that read receipts, and two that publish.
    #[arg(
        long,
        env = "DAYBOOK_DATABASE_CONNECTIONS",
        value_name = "NUMBER",
        default_value_t = 8
    )]
    pub database_connections: u32,

    /// About how much memory the states of aggregates may take that are kept for the next command, in MiB, for each kind of
    /// aggregate. What is not kept is loaded from the log again.
    #[arg(
        long,
        env = "DAYBOOK_STATE_CACHE_MIB",
        value_name = "MIB",
        default_value_t = 128
    )]
    pub state_cache_mib: u32,

    /// How many bytes the inputs of imports may take that wait, run or arrive: they are in the database of the log. A tenant's may
    /// take half of what those of the others leave.
    #[arg(
        long,
        env = "DAYBOOK_IMPORT_BYTES_MAX",
        value_name = "BYTES",
        default_value_t = 32 << 30
    )]
    pub import_bytes_max: u64,

    /// Where callers reach the query service: the addresses of what commands have made (`Location`) begin with it. Without it
    /// they are relative to this service's own, which is right where one address leads to both.
    #[arg(long, env = "DAYBOOK_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<PublicUrl>,

    /// The keys under which the content of commands is hashed to be remembered with their idempotency keys, 64
    /// hexadecimal digits each, with commas between them. The first one is used for new commands; the others must stay for
    /// as long as idempotency keys are kept. All replicas need the same. Only in development may it be absent.
    #[arg(
        long,
        env = "DAYBOOK_FINGERPRINT_KEY",
        value_name = "KEYS",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub fingerprint_keys: Vec<SecretKey>,

    /// The keys under which command services authenticate what they send to each other, 64 hexadecimal digits each, with
    /// commas between them. The first one is used; messages under the others are understood, too, while a key is
    /// exchanged. All replicas need the same. Only in development may it be absent.
    #[arg(
        long,
        env = "DAYBOOK_REPLICA_KEY",
        value_name = "KEYS",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub replica_keys: Vec<SecretKey>,

    /// Keys that seal the consistency tokens of receipts.
    #[command(flatten)]
    pub sealing: SealingConfig,

    /// For how many days idempotency keys are kept at least. All replicas need the same.
    #[arg(
        long,
        env = "DAYBOOK_IDEMPOTENCY_RETENTION_DAYS",
        value_name = "DAYS",
        default_value_t = 30,
        value_parser = clap::value_parser!(u16).range(1..=3_650)
    )]
    pub idempotency_retention_days: u16,
}

/// A URL that paths are put behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl(String);

impl PublicUrl {
    /// The URL to put a path behind: it has no slash at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PublicUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = text.trim_end_matches('/');
        let parts = Uri::from_str(url).map_err(|_| NOT_A_URL)?.into_parts();
        let is_web = parts
            .scheme
            .is_some_and(|scheme| scheme == Scheme::HTTP || scheme == Scheme::HTTPS);
        if is_web && parts.authority.is_some() && !url.contains(['?', '#']) {
            Ok(Self(url.to_owned()))
        } else {
            Err(NOT_A_URL)
        }
    }
}

const NOT_A_URL: &str = "must be a URL like https://api.example.com/daybook";

impl Config {
    /// The bound of each cache of states, in bytes.
    pub(crate) fn state_cache_bytes(&self) -> usize {
        self.state_cache_mib as usize * 1_024 * 1_024
    }

    /// Whether the keys are there that it needs.
    ///
    /// # Errors
    /// When there is none outside of development, or one that anybody could know.
    pub fn check(&self) -> anyhow::Result<()> {
        self.fingerprint_keys()?;
        self.replica_keys()?;
        self.key_ring().map(drop)
    }

    /// The keys of fingerprints; errors as in [`Self::check`].
    pub(crate) fn fingerprint_keys(&self) -> anyhow::Result<Vec<SecretKey>> {
        let development = self.common.is_development();
        SecretKey::given(&self.fingerprint_keys, "DAYBOOK_FINGERPRINT_KEY", development)
    }

    /// The keys that the command services share; errors as in [`Self::check`].
    pub(crate) fn replica_keys(&self) -> anyhow::Result<Vec<SecretKey>> {
        let development = self.common.is_development();
        SecretKey::given(&self.replica_keys, "DAYBOOK_REPLICA_KEY", development)
    }

    /// The ring that seals; errors as in [`Self::check`].
    pub(crate) fn key_ring(&self) -> anyhow::Result<KeyRing> {
        self.sealing.key_ring(self.common.is_development())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_url_is_one_that_a_path_can_be_put_behind() {
        for (text, url) in [
            ("https://api.example.com", "https://api.example.com"),
            ("http://127.0.0.1:7101/", "http://127.0.0.1:7101"),
            ("https://example.com/daybook/", "https://example.com/daybook"),
        ] {
            let parsed: PublicUrl = text.parse().expect("it is one");
            assert_eq!(parsed.as_str(), url);
        }
        for text in [
            "",
            "/",
            "example.com",
            "/daybook",
            "ftp://example.com",
            "https://",
            "https://example.com/?a=b",
            "https://example.com/#a",
            "not a url",
        ] {
            assert_eq!(text.parse::<PublicUrl>(), Err(NOT_A_URL), "{text}");
        }
    }
}
