//! One of Daybook's own services as a process: started, waited for until `/readyz` says yes, stopped in order.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::error::DevstackError;
use crate::process::{Lifetime, Program};
use crate::server::{Kind, Server};

/// How long one answer of `/readyz` may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// How long a service may drain after SIGTERM. Its own deadline is shorter.
const STOP_GRACE: Duration = Duration::from_secs(15);

/// How a service is to be run.
#[derive(Debug, Clone)]
pub struct ServiceOptions {
    /// What it is called in messages.
    pub name: String,
    /// The program.
    pub binary: PathBuf,
    /// Its settings, beside the environment of this process.
    pub environment: Vec<(String, String)>,
    /// Where its output goes.
    pub log: PathBuf,
    /// Where it serves `/readyz`.
    pub admin: SocketAddr,
    /// How long it lives.
    pub lifetime: Lifetime,
}

/// A running service.
pub type Service = Server<ServiceOptions>;

impl Kind for ServiceOptions {
    type Options = Self;

    const STOP: &'static [(Signal, Duration)] = &[(Signal::TERM, STOP_GRACE)];

    const REASON_MARKS: &'static [&'static str] = &[""];

    fn prepare(options: Self) -> Result<Self, DevstackError> {
        Ok(options)
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn log(&self) -> PathBuf {
        self.log.clone()
    }

    fn lifetime(&self) -> Lifetime {
        self.lifetime
    }

    fn configure(&mut self) -> Result<Program, DevstackError> {
        Ok(Program {
            path: self.binary.clone(),
            arguments: Vec::new(),
            environment: self.environment.clone(),
            directory: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            account: None,
        })
    }

    async fn is_ready(&self) -> bool {
        answers_ready(self.admin).await
    }
}

/// Whether `GET /readyz` answers 200 there.
async fn answers_ready(admin: SocketAddr) -> bool {
    let status_line = async {
        let mut stream = TcpStream::connect(admin).await.ok()?;
        let request = format!("GET /readyz HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.ok()?;
        Some(start)
    };
    let start = tokio::time::timeout(PROBE_DEADLINE, status_line).await;
    start
        .ok()
        .flatten()
        .is_some_and(|start| start == *b"HTTP/1.1 200")
}
