//! Postgres for tests: one server for the whole run when `cargo xtask test` started one, else one per process.

use std::sync::{Arc, Weak};

use tokio::sync::Mutex;

use crate::cluster::Cluster;
use crate::error::DevstackError;
use crate::postgres::{Postgres, PostgresOptions};

/// The superuser's address of the server that all tests of a run share, set by `cargo xtask test`.
pub const POSTGRES_URL_VARIABLE: &str = "DAYBOOK_TEST_POSTGRES_URL";

/// A server for tests that need databases but do nothing to the server. Keep it as long as they run.
#[derive(Debug, Clone)]
pub struct TestCluster {
    cluster: Cluster,
    _server: Option<Arc<OwnServer>>,
}

impl std::ops::Deref for TestCluster {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

/// A server that somebody else keeps.
impl From<Cluster> for TestCluster {
    fn from(cluster: Cluster) -> Self {
        Self {
            cluster,
            _server: None,
        }
    }
}

/// A server of this process and its directory. Fields drop in order: first the server stops, then the directory goes.
#[derive(Debug)]
struct OwnServer {
    postgres: Postgres,
    _directory: tempfile::TempDir,
}

/// The run's server, or without one a server that the tests of this process share while any of them runs.
///
/// # Errors
/// As [`Postgres::start`].
pub async fn test_cluster() -> Result<TestCluster, DevstackError> {
    if let Some(url) = std::env::var(POSTGRES_URL_VARIABLE)
        .ok()
        .filter(|url| !url.is_empty())
    {
        return Ok(Cluster::from_url(&url)?.into());
    }
    static SHARED: Mutex<Weak<OwnServer>> = Mutex::const_new(Weak::new());
    let mut shared = SHARED.lock().await;
    let server = match shared.upgrade() {
        Some(server) => server,
        None => Arc::new(OwnServer::start().await?),
    };
    *shared = Arc::downgrade(&server);
    Ok(TestCluster {
        cluster: server.postgres.cluster().clone(),
        _server: Some(server),
    })
}

impl OwnServer {
    async fn start() -> Result<Self, DevstackError> {
        let directory = temporary_directory()?;
        let options = PostgresOptions::for_tests(directory.path().join("postgres"));
        Ok(Self {
            postgres: Postgres::start(options).await?,
            _directory: directory,
        })
    }
}

/// A directory for a test's own servers, removed when it is dropped. It can be entered by the servers' user.
///
/// # Errors
/// [`DevstackError::File`].
pub fn temporary_directory() -> Result<tempfile::TempDir, DevstackError> {
    use std::os::unix::fs::PermissionsExt as _;

    let place = std::env::temp_dir();
    let open = std::fs::Permissions::from_mode(0o755);
    let made = tempfile::Builder::new()
        .prefix("daybook-")
        .permissions(open)
        .tempdir_in(&place);
    made.map_err(DevstackError::file("make a directory in", &place))
}
