//! Where the services are and which key to show them: from flags, the environment, or the development stack's
//! `.daybook/dev.env` in the current directory or above it, in this order.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs, io};

use clap::Args;

use crate::client::Service;
use crate::failure::Failure;

/// Where `cargo xtask up` writes its addresses and keys.
const DEVELOPMENT_FILE: &str = ".daybook/dev.env";

/// Which services there are and how to talk to them.
#[derive(Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Connection {
    /// The command service.
    #[arg(long, global = true, env = "DAYBOOK_COMMAND_URL", value_name = "URL")]
    command_url: Option<String>,

    /// The query service.
    #[arg(long, global = true, env = "DAYBOOK_QUERY_URL", value_name = "URL")]
    query_url: Option<String>,

    /// The projector.
    #[arg(long, global = true, env = "DAYBOOK_PROJECTOR_URL", value_name = "URL")]
    projector_url: Option<String>,

    /// The API key. Prefer the environment: other users can see a command's arguments.
    #[arg(
        long,
        global = true,
        env = "DAYBOOK_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    key: Option<String>,

    /// How long one call to a service may take.
    #[arg(long, global = true, env = "DAYBOOK_TIMEOUT", value_name = "DURATION", default_value = "10s",
          value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// Which of the development stack's keys suits a verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Sends commands.
    Service,
    /// Reads orders.
    Frontend,
    /// Reads histories.
    Auditor,
    /// Operates projections.
    Operator,
}

impl Role {
    fn setting(self) -> &'static str {
        match self {
            Self::Service => "DAYBOOK_SERVICE_KEY",
            Self::Frontend => "DAYBOOK_FRONTEND_KEY",
            Self::Auditor => "DAYBOOK_AUDITOR_KEY",
            Self::Operator => "DAYBOOK_OPERATOR_KEY",
        }
    }
}

/// All that was said about the connection.
pub(crate) struct Settings {
    connection: Connection,
    environment: HashMap<String, String>,
    development: Option<DevelopmentFile>,
}

impl Settings {
    /// Takes the flags and looks for what they leave open.
    pub(crate) fn load(connection: Connection) -> Result<Self, Failure> {
        let development = match env::current_dir() {
            Ok(directory) => DevelopmentFile::find(&directory)?,
            Err(_) => None,
        };
        Ok(Self {
            connection,
            environment: env::vars().collect(),
            development,
        })
    }

    /// The address of a service.
    pub(crate) fn url(&self, service: Service) -> Result<&str, Failure> {
        let given = match service {
            Service::Command => &self.connection.command_url,
            Service::Query => &self.connection.query_url,
            Service::Projector => &self.connection.projector_url,
        };
        if let Some(url) = given.as_deref().filter(|url| !url.is_empty()) {
            return Ok(url);
        }
        let setting = service.setting();
        match self.in_development(setting) {
            Some(url) if is_on_this_machine(url) => Ok(url),
            Some(url) => Err(Failure::Usage(format!(
                "{setting} in {DEVELOPMENT_FILE} is {url}, but the development stack is on this machine: no key is \
                 sent there. Set {setting} in the environment if it is meant"
            ))),
            None => Err(missing(setting)),
        }
    }

    /// The API key for a verb.
    pub(crate) fn key(&self, role: Role) -> Result<&str, Failure> {
        let given = self.connection.key.as_deref().filter(|key| !key.is_empty());
        given
            .or_else(|| self.find(role.setting()))
            .ok_or_else(|| missing("DAYBOOK_API_KEY"))
    }

    /// The database, for the verbs of its administrator.
    pub(crate) fn database_url(&self) -> Result<&str, Failure> {
        self.find("DATABASE_URL").ok_or_else(|| missing("DATABASE_URL"))
    }

    /// How long one call may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.connection.timeout
    }

    fn find(&self, setting: &str) -> Option<&str> {
        let set = self.environment.get(setting).map(String::as_str);
        set.filter(|value| !value.is_empty())
            .or_else(|| self.in_development(setting))
    }

    fn in_development(&self, setting: &str) -> Option<&str> {
        let value = self.development.as_ref()?.values.get(setting)?;
        (!value.is_empty()).then_some(value)
    }
}

fn missing(setting: &str) -> Failure {
    Failure::Usage(format!(
        "{setting} is not set, and no {DEVELOPMENT_FILE} here or above sets it. Set it, or start the development \
         stack with `cargo xtask up`"
    ))
}

/// A file in some directory must not be able to have keys sent elsewhere.
fn is_on_this_machine(url: &str) -> bool {
    let host = url
        .parse::<tonic::transport::Uri>()
        .ok()
        .and_then(|uri| uri.host().map(str::to_owned));
    matches!(host.as_deref(), Some("localhost" | "127.0.0.1" | "[::1]"))
}

/// The settings of the development stack.
struct DevelopmentFile {
    values: HashMap<String, String>,
}

impl DevelopmentFile {
    /// The nearest one.
    fn find(directory: &Path) -> Result<Option<Self>, Failure> {
        for ancestor in directory.ancestors() {
            let path = ancestor.join(DEVELOPMENT_FILE);
            match fs::read_to_string(&path) {
                Ok(text) => return Ok(Some(Self { values: parse(&text) })),
                Err(error) if is_absent(&error) => {}
                Err(source) => return Err(unreadable(path, source)),
            }
        }
        Ok(None)
    }
}

/// There is none; or one that is not ours to read, which is another user's.
fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | NotADirectory | PermissionDenied)
}

fn unreadable(path: PathBuf, source: io::Error) -> Failure {
    let name = path.display().to_string();
    Failure::Input { name, source }
}

/// `NAME=VALUE` on each line, as a shell reads it. A line that is none sets nothing.
fn parse(text: &str) -> HashMap<String, String> {
    dotenvy::from_read_iter(text.as_bytes()).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# written by cargo xtask up\n\
                        DAYBOOK_COMMAND_URL=http://127.0.0.1:7101\n\
                        export DAYBOOK_QUERY_URL='http://example.org:7102'\n\
                        \n\
                        DAYBOOK_SERVICE_KEY=\"dbk_live_service\"\n\
                        DAYBOOK_OPERATOR_KEY=\n\
                        DATABASE_URL=postgres://postgres@127.0.0.1:7110/daybook?sslmode=disable\n";

    fn settings(flags: [Option<&str>; 2], environment: &[(&str, &str)], file: Option<&str>) -> Settings {
        let [command_url, key] = flags.map(|flag| flag.map(str::to_owned));
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Settings {
            connection: Connection {
                command_url,
                query_url: None,
                projector_url: None,
                key,
                timeout: Duration::from_secs(10),
            },
            environment: environment.iter().map(pair).collect(),
            development: file.map(|text| DevelopmentFile { values: parse(text) }),
        }
    }

    #[test]
    fn a_flag_wins_over_the_development_stack() {
        let flags = [Some("https://daybook.example"), Some("dbk_live_mine")];
        let settings = settings(flags, &[], Some(FILE));
        assert_eq!(
            settings.url(Service::Command).ok(),
            Some("https://daybook.example")
        );
        assert_eq!(settings.key(Role::Service).ok(), Some("dbk_live_mine"));
    }

    #[test]
    fn the_environment_wins_over_the_development_stack() {
        let environment = [("DAYBOOK_SERVICE_KEY", "dbk_live_sourced")];
        let settings = settings([None, None], &environment, Some(FILE));
        assert_eq!(settings.key(Role::Service).ok(), Some("dbk_live_sourced"));
    }

    #[test]
    fn the_development_stack_fills_what_is_left_open() {
        let settings = settings([Some(""), None], &[("DATABASE_URL", "")], Some(FILE));
        assert_eq!(settings.url(Service::Command).ok(), Some("http://127.0.0.1:7101"));
        assert_eq!(settings.key(Role::Service).ok(), Some("dbk_live_service"));
        assert_eq!(
            settings.database_url().ok(),
            Some("postgres://postgres@127.0.0.1:7110/daybook?sslmode=disable")
        );
    }

    #[test]
    fn a_development_file_cannot_send_keys_elsewhere() {
        let settings = settings([None, None], &[], Some(FILE));
        assert!(
            matches!(settings.url(Service::Query), Err(Failure::Usage(message)) if message.contains("example.org"))
        );
    }

    #[test]
    fn what_is_set_nowhere_is_named() {
        let settings = settings([None, None], &[], Some(FILE));
        assert!(
            matches!(settings.key(Role::Operator), Err(Failure::Usage(message)) if message.contains("DAYBOOK_API_KEY"))
        );
        assert!(matches!(settings.url(Service::Projector), Err(Failure::Usage(_))));
    }

    #[test]
    fn the_nearest_file_above_is_found() {
        let root = tempfile::tempdir().expect("a temporary directory can be made");
        let below = root.path().join("crates/cli");
        fs::create_dir_all(&below).expect("a directory can be made in it");
        fs::create_dir(root.path().join(".daybook")).expect("a directory can be made in it");
        fs::write(root.path().join(DEVELOPMENT_FILE), FILE).expect("a file can be written in it");
        let found = DevelopmentFile::find(&below)
            .expect("it can be read")
            .expect("it is there");
        assert_eq!(found.values["DAYBOOK_SERVICE_KEY"], "dbk_live_service");
    }
}
