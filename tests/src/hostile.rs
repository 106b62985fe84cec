//! Clients that mean harm: what each of them does to a service, over and over, until it is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use daybook_service::identity::generate_api_key;
use futures::FutureExt as _;
use http::{Method, Request};
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Resource, getrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use crate::orders::new_key;
use crate::rest::Rest;
use crate::stack::Running;

/// Clients of one kind, each with connections of its own.
const CLIENTS: usize = 4;

/// Connections that stay idle, where a process may open so many.
const IDLE_CONNECTIONS: usize = 10_000;

/// Files that this process needs for everything else.
const OTHER_FILES: usize = 1_000;

/// Streams that a client leaves unread on one connection, or resets.
const STREAMS: usize = 100;

/// How deep the JSON is that nobody can have meant.
const JSON_DEPTH: usize = 100_000;

/// A credential that is as large as a whole head may be, in bytes.
const TOKEN_BYTES: usize = 16 * 1_024;

/// How long a client that holds something back waits to be cut off.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a hostile client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// Sends keys that it has made up.
    InventedKeys,
    /// Calls what is not there, by methods that are none.
    OddRequests,
    /// Asks for large documents and opens no window for them.
    ZeroWindows,
    /// Takes each request back as soon as it is sent.
    Resets,
    /// Sends the beginning of a body; then nothing, or the end of the connection.
    HalfBodies,
    /// Sends a head byte by byte.
    Drips,
    /// Opens connections and says nothing.
    IdleConnections,
    /// Sends JSON that is nested without end, with a valid key.
    DeepJson,
    /// Sends credentials, cursors and tokens of many kilobytes.
    LargeTokens,
}

/// Whom it is done to.
#[derive(Debug, Clone)]
pub struct Target {
    url: String,
    address: String,
    /// A valid key: some harm can only be done by callers who are known.
    key: String,
}

impl Target {
    /// A service, and a key that it takes.
    #[must_use]
    pub fn new(service: &Running, key: &str) -> Self {
        Self {
            url: service.url(),
            address: service.address.to_string(),
            key: key.to_owned(),
        }
    }
}

/// Hostile clients at work, until this is dropped.
#[derive(Debug)]
pub struct Attackers {
    done: Arc<AtomicUsize>,
    _workers: JoinSet<()>,
}

impl Attackers {
    /// How often they have done it.
    #[must_use]
    pub fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }
}

impl Attack {
    /// Everything that they do.
    pub const ALL: [Self; 9] = [
        Self::InventedKeys,
        Self::OddRequests,
        Self::ZeroWindows,
        Self::Resets,
        Self::HalfBodies,
        Self::Drips,
        Self::IdleConnections,
        Self::DeepJson,
        Self::LargeTokens,
    ];

    /// How often it has to be done before it counts as an attack.
    ///
    /// # Errors
    /// When this process may open few files.
    pub fn least(self) -> anyhow::Result<usize> {
        Ok(match self {
            Self::InventedKeys | Self::OddRequests | Self::LargeTokens => 1_000,
            Self::ZeroWindows | Self::DeepJson => 200,
            Self::Resets => 10_000,
            Self::HalfBodies => 100,
            Self::Drips => 2 * CLIENTS,
            Self::IdleConnections => idle_connections()?,
        })
    }

    /// Starts clients that do it, each once in every `pause`.
    #[must_use]
    pub fn start(self, target: &Target, pause: Duration) -> Attackers {
        let (done, mut workers) = (Arc::default(), JoinSet::new());
        for _ in 0..CLIENTS {
            let mut pace = interval(pause);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let client = Client {
                target: target.clone(),
                rest: Rest::new(&target.url, &target.key),
                pace,
                done: Arc::clone(&done),
            };
            workers.spawn(client.attack(self));
        }
        Attackers {
            done,
            _workers: workers,
        }
    }
}

/// As many connections as there should be, or as this process may open.
fn idle_connections() -> anyhow::Result<usize> {
    let allowed = getrlimit(Resource::Nofile).current;
    let allowed = allowed.map_or(Ok(usize::MAX), usize::try_from)?;
    let left = allowed
        .checked_sub(OTHER_FILES)
        .context("this process may open few files")?;
    Ok(left.min(IDLE_CONNECTIONS))
}

struct Client {
    target: Target,
    rest: Rest,
    pace: Interval,
    done: Arc<AtomicUsize>,
}

impl Client {
    async fn attack(mut self, attack: Attack) {
        // It never ends by itself; what the service does to it (cutting it off, mostly) is as it should be.
        let mut idle = Vec::new();
        for number in 0.. {
            self.pace.tick().await;
            let attacked = match attack {
                Attack::InventedKeys => self.invent_key().await,
                Attack::OddRequests => self.be_odd(number).await,
                Attack::ZeroWindows => self.open_no_window().await,
                Attack::Resets => self.reset().await,
                Attack::HalfBodies => self.send_half(number).await,
                Attack::Drips => self.drip().await,
                Attack::IdleConnections => self.idle(&mut idle).await,
                Attack::DeepJson => self.nest().await,
                Attack::LargeTokens => self.send_large_token(number).await,
            };
            if let Ok(times) = attacked {
                self.done.fetch_add(times, Ordering::Relaxed);
            }
        }
    }

    async fn invent_key(&self) -> anyhow::Result<usize> {
        let stranger = self.rest.with_key(&generate_api_key().plain);
        stranger.send(Method::GET, "/v1/orders", &[], "").await.map(|_| 1)
    }

    async fn be_odd(&self, number: usize) -> anyhow::Result<usize> {
        let method = Method::from_bytes(format!("ODD{number}").as_bytes())?;
        let path = format!("/v1/odd{number}/%ff/..%2f?odd={number}&%00");
        self.rest
            .send(method, &path, &[("x-odd", "odd")], "odd")
            .await
            .map(|_| 1)
    }

    /// Holds the answers until the service closes the connection.
    async fn open_no_window(&self) -> anyhow::Result<usize> {
        let stream = TcpStream::connect(&self.target.address).await?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(0);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let mut answers = Vec::new();
        for path in ["/docs", "/openapi.json", "/problems"]
            .into_iter()
            .cycle()
            .take(STREAMS)
        {
            sender.ready().await?;
            answers.push(sender.send_request(self.get(path)?).await?);
        }
        self.done.fetch_add(answers.len(), Ordering::Relaxed);
        let _ = timeout(PATIENCE, connection).await?;
        Ok(0)
    }

    async fn reset(&self) -> anyhow::Result<usize> {
        let stream = TcpStream::connect(&self.target.address).await?;
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        let mut connection = tokio::spawn(connection);
        for _ in 0..STREAMS {
            sender.ready().await?;
            let answer = sender.send_request(self.get("/v1/orders")?);
            // The connection sends it now, and takes it back when the answer is dropped.
            tokio::pin!(answer);
            let _ = answer.as_mut().now_or_never();
            tokio::task::yield_now().await;
        }
        drop(sender);
        let _ = timeout(PATIENCE, &mut connection).await;
        Ok(STREAMS)
    }

    async fn send_half(&self, number: usize) -> anyhow::Result<usize> {
        let key = &self.target.key;
        let head = format!(
            "POST /v1/orders HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\nIdempotency-Key: {}\r\n\
             Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{\"customer_id\":",
            new_key()
        );
        let mut stream = TcpStream::connect(&self.target.address).await?;
        stream.write_all(head.as_bytes()).await?;
        // One in ten waits for the rest to be missed; the others go away.
        if number.is_multiple_of(10) {
            let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await?;
        }
        Ok(1)
    }

    /// Counts when the service has cut it off.
    async fn drip(&self) -> anyhow::Result<usize> {
        let mut stream = TcpStream::connect(&self.target.address).await?;
        let mut drips = interval(Duration::from_secs(1));
        for byte in "GET /v1/orders HTTP/1.1\r\nHost: a\r\nX-Slow: "
            .bytes()
            .chain(std::iter::repeat(b'x'))
        {
            drips.tick().await;
            let is_cut = stream.write_all(&[byte]).await.is_err();
            if is_cut || timeout(Duration::ZERO, stream.read_u8()).await.is_ok() {
                break;
            }
        }
        Ok(1)
    }

    /// Opens all of its share; those that the service has closed since stay closed.
    async fn idle(&self, idle: &mut Vec<TcpStream>) -> anyhow::Result<usize> {
        let share = idle_connections()?.div_ceil(CLIENTS);
        while idle.len() < share {
            idle.push(TcpStream::connect(&self.target.address).await?);
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(0)
    }

    async fn nest(&self) -> anyhow::Result<usize> {
        let key = new_key();
        let headers = [("idempotency-key", key.as_str())];
        let json = "{\"lines\":[".repeat(JSON_DEPTH / 2);
        self.rest
            .send(Method::POST, "/v1/orders", &headers, json)
            .await
            .map(|_| 1)
    }

    async fn send_large_token(&self, number: usize) -> anyhow::Result<usize> {
        let token = "x".repeat(TOKEN_BYTES);
        let half = &token[..TOKEN_BYTES / 2 - 512];
        let sent = match number % 4 {
            0 => {
                self.rest
                    .with_key(&token)
                    .send(Method::GET, "/v1/orders", &[], "")
                    .await
            }
            1 => {
                self.rest
                    .with_key(half)
                    .send(Method::GET, "/v1/orders", &[], "")
                    .await
            }
            2 => {
                let cursor = format!("/v1/orders?cursor={half}");
                self.rest.send(Method::GET, &cursor, &[], "").await
            }
            _ => {
                let headers = [("daybook-consistency", half), ("if-match", half)];
                self.rest.send(Method::GET, "/v1/orders", &headers, "").await
            }
        };
        sent.map(|_| 1)
    }

    fn get(&self, path: &str) -> anyhow::Result<Request<Empty<Bytes>>> {
        Ok(Request::get(format!("{}{path}", self.target.url)).body(Empty::new())?)
    }
}
