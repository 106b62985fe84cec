//! Why a verb failed, what is said about it, and how the process ends.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use daybook_client::Refusal;

use crate::client::Service;
use crate::exit::Exit;

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The verb has shown by itself what is wrong.
    #[error("not all is well")]
    Shown(Exit),
    /// What was asked for cannot be understood, or a setting is missing.
    #[error("{0}")]
    Usage(String),
    /// No connection to a service.
    #[error("the {service} service at {url} cannot be reached")]
    Unreachable {
        /// Which one.
        service: Service,
        /// Where it was looked for.
        url: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// A service refused or failed.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// A service does not answer, or not as its contract says.
    #[error(transparent)]
    Client(daybook_client::Failure),
    /// The database cannot be reached.
    #[error("the database cannot be reached")]
    Connect(#[source] sqlx::Error),
    /// The database refused or failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// A migration failed. Those before it are applied.
    #[error("the schema {schema} cannot be migrated")]
    Migrate {
        /// Which schema.
        schema: &'static str,
        /// Why.
        #[source]
        source: sqlx::migrate::MigrateError,
    },
    /// It exists already.
    #[error("{0}")]
    Conflict(String),
    /// It ended badly.
    #[error("{0}")]
    Failed(String),
    /// It took too long.
    #[error("{0}")]
    TimedOut(String),
    /// A file cannot be read.
    #[error("{name} cannot be read")]
    Input {
        /// Which one.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The output cannot be written.
    #[error("the output cannot be written")]
    Output(#[source] io::Error),
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(Box::new(status.into()))
    }
}

impl From<daybook_client::Failure> for Failure {
    fn from(failure: daybook_client::Failure) -> Self {
        use daybook_client::Failure as Client;
        match failure {
            Client::Refused(refusal) | Client::CommandRefused { refusal, .. } => Self::Refused(refusal),
            Client::Key | Client::Address { .. } | Client::Path { .. } => Self::Usage(failure.to_string()),
            Client::Unreachable(_) | Client::Answer { .. } | Client::Unknown { .. } => Self::Client(failure),
        }
    }
}

impl Failure {
    /// Says what is wrong on standard error, once, with its causes.
    pub(crate) fn report(&self) -> ExitCode {
        if !self.is_silent() {
            eprintln!("error: {}", self.with_causes());
        }
        self.exit().into()
    }

    /// What is wrong and why. Some libraries repeat a cause in their own words; it is said once.
    pub(crate) fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let message = error.to_string();
            if !text.ends_with(&message) {
                text = format!("{text}: {message}");
            }
            cause = error.source();
        }
        text
    }

    /// Whether there is nothing to say: it has been said, or nobody reads the output any more.
    fn is_silent(&self) -> bool {
        matches!(self, Self::Shown(_)) || self.is_broken_pipe()
    }

    fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// How the process ends. A reader that has seen enough (`daybook … | head`) is no failure.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Shown(exit) => *exit,
            Self::Usage(_) => Exit::Usage,
            Self::Unreachable { .. } | Self::Connect(_) => Exit::Unavailable,
            Self::Refused(refusal) => Exit::from(refusal.as_ref()),
            Self::Conflict(_) => Exit::Conflict,
            Self::TimedOut(_) => Exit::TimedOut,
            Self::Output(_) if self.is_broken_pipe() => Exit::Done,
            Self::Database(_)
            | Self::Migrate { .. }
            | Self::Client(_)
            | Self::Failed(_)
            | Self::Input { .. }
            | Self::Output(_) => Exit::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_goes_away_is_no_failure() {
        let broken_pipe = Failure::Output(io::ErrorKind::BrokenPipe.into());
        assert!(broken_pipe.is_silent());
        assert_eq!(broken_pipe.exit(), Exit::Done);
    }

    #[test]
    fn a_cause_that_repeats_its_own_is_told_once() {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let failure = Failure::Connect(sqlx::Error::Io(refused()));
        let text = failure.with_causes();
        assert_eq!(text.matches(&refused().to_string()).count(), 1, "{text}");
    }

    #[test]
    fn a_full_disk_is_a_failure() {
        let full = Failure::Output(io::ErrorKind::StorageFull.into());
        assert!(!full.is_silent());
        assert_eq!(full.exit(), Exit::Failed);
    }
}
