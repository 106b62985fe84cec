//! The configuration that every binary takes, from flags or the environment. The comments on the fields are its manual:
//! they are what `--help` prints.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, Parser, ValueEnum, value_parser};

use crate::grpc::Reflection;
use crate::server::{Limits, Origin};

/// The exit code for a configuration that cannot be used (`EX_USAGE` of sysexits).
pub const EXIT_USAGE: i32 = 64;

/// No time that is a setting is longer than this.
const TIME_MAX: Duration = Duration::from_hours(24);

/// The environment of the process, which decides how strict it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Environment {
    /// On a developer's machine: logs for people, gRPC reflection on.
    Development,
    /// For real: JSON logs, nothing open that need not be.
    Production,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object for each line.
    Json,
    /// For people.
    Text,
}

/// Settings that every service has.
#[derive(Args, Clone, Debug)]
pub struct CommonConfig {
    /// The address for callers: gRPC and HTTP on one port.
    #[arg(long, env = "DAYBOOK_LISTEN", value_name = "ADDRESS")]
    pub listen: SocketAddr,

    /// The private address of /livez, /readyz and /metrics. Never open it to callers.
    #[arg(long, env = "DAYBOOK_ADMIN_LISTEN", value_name = "ADDRESS")]
    pub admin_listen: SocketAddr,

    /// The origins of web pages that may call from a browser, as browsers write them (`https://shop.example`), with commas
    /// between them. None when absent.
    #[arg(
        long,
        env = "DAYBOOK_CORS_ORIGINS",
        value_name = "ORIGINS",
        value_delimiter = ','
    )]
    pub cors_origins: Vec<Origin>,

    /// The Postgres database, as a URL with the role of this service.
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: Secret,

    /// The NATS server or servers, as URLs with commas between them. User and password of the first are those of the service.
    #[arg(
        long,
        env = "NATS_URL",
        value_name = "URL",
        hide_env_values = true,
        default_value = "nats://127.0.0.1:4222"
    )]
    pub nats_url: Secret,

    /// Where this runs. It is for real unless it is said otherwise.
    #[arg(
        long = "env",
        env = "DAYBOOK_ENV",
        value_name = "ENVIRONMENT",
        default_value = "production"
    )]
    pub environment: Environment,

    /// Logs and traces.
    #[command(flatten)]
    pub telemetry: TelemetryConfig,

    /// How long the service goes on accepting after the stop signal, while it says already that it is not ready: as long as
    /// load balancers take to notice. Not at all by default; behind one, set it to the interval of its checks times the
    /// failures that it waits for, and the grace period of the orchestrator to this, DAYBOOK_GRACE_PERIOD and 3 s.
    #[arg(long, env = "DAYBOOK_DRAIN_DELAY", value_name = "TIME", default_value = "0s", value_parser = delay)]
    pub drain_delay: Duration,

    /// How many connections the private address takes. Scrapers and probes are few. All other limits are those of callers.
    #[arg(long, env = "DAYBOOK_ADMIN_CONNECTIONS_MAX", value_name = "COUNT", default_value_t = 64,
          value_parser = value_parser!(u32).range(1..))]
    pub admin_connections_max: u32,

    /// Limits on callers.
    #[command(flatten)]
    pub limits: Limits,
}

impl CommonConfig {
    /// Whether this is a developer's machine.
    #[must_use]
    pub fn is_development(&self) -> bool {
        self.environment == Environment::Development
    }

    /// Reflection is for development.
    #[must_use]
    pub fn reflection(&self) -> Reflection {
        if self.is_development() {
            Reflection::On
        } else {
            Reflection::Off
        }
    }

    /// Logs and traces, with the format that suits the environment when none was asked for.
    #[must_use]
    pub fn telemetry(&self) -> TelemetryConfig {
        let usual = match self.environment {
            Environment::Development => LogFormat::Text,
            Environment::Production => LogFormat::Json,
        };
        TelemetryConfig {
            log_format: Some(self.telemetry.log_format.unwrap_or(usual)),
            ..self.telemetry.clone()
        }
    }
}

/// Logs and traces.
#[derive(Args, Clone, Debug)]
pub struct TelemetryConfig {
    /// Log filter: a level, or levels by module ("info,daybook_projector=debug").
    #[arg(long, env = "DAYBOOK_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,

    /// How log lines look: JSON in production and text in development, unless it is said here.
    #[arg(long, env = "DAYBOOK_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// Where traces go, over OTLP with gRPC. Nowhere when absent.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
}

impl TelemetryConfig {
    /// How log lines look.
    #[must_use]
    pub fn format(&self) -> LogFormat {
        self.log_format.unwrap_or(LogFormat::Json)
    }
}

/// A value that never shows itself in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The value, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value)
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Self(value.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"…\"")
    }
}

/// Reads a time, like `30s`, `1m 30s` or `0s`.
pub(crate) fn delay(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match time <= TIME_MAX {
        true => Ok(time),
        false => Err("must be at most a day".to_owned()),
    }
}

/// Reads the configuration, and checks what only the service knows about it. Help and version go to standard output with
/// exit code 0; anything wrong is one line on standard error and exit code 64.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "nothing has started yet")]
pub fn parse_or_exit<C: Parser>(check: impl FnOnce(&C) -> anyhow::Result<()>) -> C {
    let line = match C::try_parse() {
        Ok(config) => match check(&config) {
            Ok(()) => return config,
            Err(error) => format!("error: {error:#}"),
        },
        Err(error) if is_question(error.kind()) => error.exit(),
        Err(error) => one_line(&error.to_string()),
    };
    eprintln!("{line}");
    std::process::exit(EXIT_USAGE);
}

fn is_question(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
}

/// clap explains itself over several lines; the usage and the hint after the first blank line are for `--help`.
fn one_line(message: &str) -> String {
    let explained = message.split("\n\n").next().unwrap_or(message);
    explained.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Parser)]
    struct Config {
        #[command(flatten)]
        common: CommonConfig,
    }

    #[test]
    fn what_is_missing_is_said_on_one_line() {
        let error = Config::try_parse_from(["service", "--listen", "nonsense"]).expect_err("not an address");
        let line = one_line(&error.to_string());
        assert!(
            line.contains("nonsense") && line.contains("--listen") && !line.contains('\n'),
            "{line}"
        );
    }

    #[test]
    fn a_configuration_never_shows_its_secrets() {
        let arguments = [
            "service",
            "--listen=127.0.0.1:1",
            "--admin-listen=127.0.0.1:2",
            "--database-url=postgres://daybook:hunter2@db/daybook",
            "--nats-url=nats://user:hunter2@bus",
        ];
        let config = Config::try_parse_from(arguments).expect("a whole configuration");
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(config.common.database_url.expose().contains("hunter2"));
        assert!(!config.common.is_development());
        assert_eq!(config.common.telemetry().format(), LogFormat::Json);
    }
}
