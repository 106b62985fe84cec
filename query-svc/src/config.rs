//! The configuration of the query service. The comments on the fields are its manual.

use clap::Parser;
use daybook_event_bus::Deployment;
use daybook_service::config::CommonConfig;
use daybook_service::deprecation::Deprecation;
use daybook_service::sealing::{KeyRing, SealingConfig};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::datetime;

use crate::streams::StreamsConfig;

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

    /// How many connections to Postgres answer lists, histories, "as of" and single rows; tenants share them. There are ten
    /// more: four for single orders, two that look keys up, two for streams, one for freshness and one for readiness.
    #[arg(long, env = "DAYBOOK_DATABASE_CONNECTIONS", value_name = "COUNT", default_value_t = 8,
          value_parser = clap::value_parser!(u32).range(2..=1_000))]
    pub database_connections: u32,

    /// Streams that stay open.
    #[command(flatten)]
    pub streams: StreamsConfig,

    /// What cursors, consistency tokens, positions of streams and tickets are sealed with.
    #[command(flatten)]
    pub sealing: SealingConfig,

    /// When deprecated routes and methods end, all of them, in RFC 3339, in place of the dates that the descriptions name:
    /// earlier to find out who still calls them, later to give somebody time.
    #[arg(long, env = "DAYBOOK_SUNSET", value_name = "TIME", value_parser = moment)]
    pub sunset: Option<OffsetDateTime>,
}

/// The history of an order by a route and a method of its own, from before every kind of aggregate had one.
const ORDER_HISTORY: Deprecation = Deprecation {
    since: datetime!(2026-12-01 00:00 UTC),
    sunset: datetime!(2028-01-01 00:00 UTC),
};

fn moment(text: &str) -> Result<OffsetDateTime, time::error::Parse> {
    OffsetDateTime::parse(text, &Rfc3339)
}

impl Config {
    /// Whether the keys are there that it needs.
    ///
    /// # Errors
    /// When there is none outside of development, or one that anybody could know.
    pub fn check(&self) -> anyhow::Result<()> {
        self.key_ring().map(drop)
    }

    /// What is deprecated about the history of an order, and until when.
    pub(crate) fn order_history(&self) -> Deprecation {
        Deprecation {
            sunset: self.sunset.unwrap_or(ORDER_HISTORY.sunset),
            ..ORDER_HISTORY
        }
    }

    /// The ring that seals; errors as in [`Self::check`].
    pub(crate) fn key_ring(&self) -> anyhow::Result<KeyRing> {
        self.sealing.key_ring(self.common.is_development())
    }
}
