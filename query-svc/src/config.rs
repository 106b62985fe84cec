//! The configuration of the query service. The comments on the fields are its manual.

use clap::Parser;
use daybook_event_bus::Deployment;
use daybook_service::config::CommonConfig;
use daybook_service::key::SecretKey;

use crate::cursor::Cursors;

/// Daybook's query service: orders, totals and histories over REST and gRPC.
#[derive(Clone, Debug, Parser)]
#[command(name = "daybook-query-svc", version)]
pub struct Config {
    /// Settings that every service has.
    #[command(flatten)]
    pub common: CommonConfig,

    /// What the streams and subjects of this deployment begin with, so that several can share one NATS account: a lower-case
    /// letter and up to 31 more letters and digits. All services of a deployment need the same.
    #[arg(long, env = "DAYBOOK_DEPLOYMENT", value_name = "NAME", default_value_t)]
    pub deployment: Deployment,

    /// How many connections to Postgres answer lists, histories, "as of" and single rows; tenants share them. There are eight
    /// more: four for single orders, two that look keys up, one for freshness and one for readiness.
    #[arg(long, env = "DAYBOOK_DATABASE_CONNECTIONS", value_name = "COUNT", default_value_t = 8,
          value_parser = clap::value_parser!(u32).range(2..=1_000))]
    pub database_connections: u32,

    /// The keys that sign cursors, 64 hexadecimal digits each, with commas between them. The first one signs, all of
    /// them verify. All replicas need the same. Only in development may it be absent.
    #[arg(
        long,
        env = "DAYBOOK_CURSOR_KEY",
        value_name = "KEYS",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub cursor_keys: Vec<SecretKey>,
}

impl Config {
    /// Whether the keys are there that it needs.
    ///
    /// # Errors
    /// As [`Self::cursors`].
    pub fn check(&self) -> anyhow::Result<()> {
        self.cursors().map(drop)
    }

    /// The signer of cursors.
    ///
    /// # Errors
    /// When there is no key outside of development, or one that anybody could know.
    pub fn cursors(&self) -> anyhow::Result<Cursors> {
        let development = self.common.is_development();
        let keys = SecretKey::given(&self.cursor_keys, "DAYBOOK_CURSOR_KEY", development)?;
        let (first, others) = keys.split_first().expect("there is at least one");
        Ok(Cursors::new(first, others))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(arguments: &[&str]) -> Config {
        let always = [
            "daybook-query-svc",
            "--listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
            "--database-url=postgres://localhost/daybook",
        ];
        let arguments = always.iter().chain(arguments);
        Config::try_parse_from(arguments).expect("the arguments are complete")
    }

    #[test]
    fn development_needs_no_cursor_key() {
        assert!(config(&["--env=development"]).cursors().is_ok());
    }

    #[test]
    fn production_refuses_to_start_without_a_cursor_key_or_with_a_known_one() {
        let good = "0123456789abcdef".repeat(4);
        let zero = "00".repeat(32);
        assert!(config(&["--env=production"]).cursors().is_err());
        assert!(
            config(&["--env=production", "--cursor-keys", &zero])
                .cursors()
                .is_err()
        );
        let both = format!("{good},{zero}");
        assert!(
            config(&["--env=production", "--cursor-keys", &both])
                .cursors()
                .is_err()
        );
        assert!(
            config(&["--env=production", "--cursor-keys", &good])
                .cursors()
                .is_ok()
        );
    }
}
