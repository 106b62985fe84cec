//! Streams of Server-Sent Events, as a browser's `EventSource` reads them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use http::Request;
use http::header::{AUTHORIZATION, HOST};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::wait;

/// How much a reader over HTTP/2 lets come that it has not read, in bytes.
const WINDOW_BYTES: u32 = 4 * 1_024;

/// An event of a stream.
#[derive(Debug, Clone)]
pub struct Event {
    /// What kind it is; "" for what the stream shows.
    pub name: String,
    /// What resumes behind it.
    pub id: String,
    /// Its data, as it came.
    pub data: String,
}

impl Event {
    /// Its data as JSON; null when it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or(Value::Null)
    }

    /// The position of an event of the log.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.json()["position"].as_u64().unwrap_or(0)
    }
}

/// How a stream is asked for.
#[derive(Debug, Clone)]
pub struct Source<'a> {
    /// The service.
    pub address: SocketAddr,
    /// The path of the stream, with parameters.
    pub path: &'a str,
    /// The key; none when it is "".
    pub key: &'a str,
    /// `Last-Event-ID`; none when it is "".
    pub last_event_id: &'a str,
}

/// A connection over HTTP/2 that several streams share.
#[derive(Debug)]
pub struct Connection(http2::SendRequest<Empty<Bytes>>);

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When there is nobody.
    pub async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        Self::with(address, &http2::Builder::new(TokioExecutor::new())).await
    }

    async fn with(address: SocketAddr, builder: &http2::Builder<TokioExecutor>) -> anyhow::Result<Self> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let (sender, connection) = builder.handshake(TokioIo::new(tcp)).await?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }
}

/// An open stream.
#[derive(Debug)]
pub struct Stream {
    body: Incoming,
    text: String,
    /// What was received and not read yet; without data where an id came alone.
    events: VecDeque<Event>,
    /// The id that resumes behind all that was read.
    last_id: String,
}

impl<'a> Source<'a> {
    /// A stream that resumes nothing.
    #[must_use]
    pub fn new(address: SocketAddr, path: &'a str, key: &'a str) -> Self {
        Self {
            address,
            path,
            key,
            last_event_id: "",
        }
    }

    /// The same, resumed behind an id.
    #[must_use]
    pub fn behind(self, last_event_id: &'a str) -> Self {
        Self {
            last_event_id,
            ..self
        }
    }

    fn request(&self, uri: String) -> anyhow::Result<Request<Empty<Bytes>>> {
        let mut request = Request::get(uri).header(HOST, self.address.to_string());
        if !self.key.is_empty() {
            request = request.header(AUTHORIZATION, format!("Bearer {}", self.key));
        }
        if !self.last_event_id.is_empty() {
            request = request.header("last-event-id", self.last_event_id);
        }
        Ok(request.body(Empty::new())?)
    }

    /// Opens the stream on a connection of its own, and reads its first id.
    ///
    /// # Errors
    /// When it is refused, with what it is refused with.
    pub async fn open(&self) -> anyhow::Result<Stream> {
        let tcp = TcpStream::connect(self.address).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(tcp)).await?;
        tokio::spawn(connection);
        let answer = sender.send_request(self.request(self.path.to_owned())?).await?;
        let mut stream = Stream::of(answer).await?;
        while stream.events.is_empty() {
            ensure!(stream.read().await?, "the stream has ended before its first id");
        }
        stream.events[0].id.clone_into(&mut stream.last_id);
        Ok(stream)
    }

    /// Opens the stream with a window that is soon full when nobody reads. Nothing is read of it yet.
    ///
    /// # Errors
    /// When it is refused, with what it is refused with.
    pub async fn open_slow(&self) -> anyhow::Result<Stream> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(WINDOW_BYTES);
        let mut connection = Connection::with(self.address, &builder).await?;
        self.open_on(&mut connection).await
    }

    /// Opens the stream on a connection that it shares. Nothing is read of it yet.
    ///
    /// # Errors
    /// When it is refused, with what it is refused with.
    pub async fn open_on(&self, connection: &mut Connection) -> anyhow::Result<Stream> {
        let uri = format!("http://{}{}", self.address, self.path);
        let mut request = self.request(uri)?;
        request.headers_mut().remove(HOST);
        Stream::of(connection.0.send_request(request).await?).await
    }

    /// The code that the stream is refused with.
    ///
    /// # Errors
    /// When it is opened.
    pub async fn refusal(&self) -> anyhow::Result<String> {
        match self.open().await {
            Ok(_) => bail!("{} was opened", self.path),
            Err(error) => {
                let refused = error.downcast::<Refused>()?;
                Ok(refused.0["code"].as_str().unwrap_or_default().to_owned())
            }
        }
    }
}

/// A problem instead of a stream.
#[derive(Debug)]
struct Refused(Value);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Refused {}

impl Stream {
    async fn of(answer: http::Response<Incoming>) -> anyhow::Result<Self> {
        let (head, body) = answer.into_parts();
        let content_type = head.headers.get("content-type").map(|value| value.to_str());
        let content_type = content_type.transpose()?.unwrap_or_default();
        if content_type == "application/problem+json" {
            let problem = body.collect().await?.to_bytes();
            return Err(Refused(serde_json::from_slice(&problem)?).into());
        }
        ensure!(
            head.status == 200 && content_type == "text/event-stream",
            "{} {content_type}",
            head.status
        );
        Ok(Self {
            body,
            text: String::new(),
            events: VecDeque::new(),
            last_id: String::new(),
        })
    }

    /// The id that resumes behind all that was read.
    #[must_use]
    pub fn last_id(&self) -> &str {
        &self.last_id
    }

    /// The next event; an error when the stream ends without one, or none comes for a long time.
    ///
    /// # Errors
    /// When there is none.
    pub async fn next(&mut self) -> anyhow::Result<Event> {
        self.poll().await?.context("the stream has ended")
    }

    /// The next event; `None` when the stream has ended.
    ///
    /// # Errors
    /// When it breaks off, or none comes for a long time.
    pub async fn poll(&mut self) -> anyhow::Result<Option<Event>> {
        let polled = timeout(wait::DEADLINE, async {
            loop {
                while let Some(event) = self.events.pop_front() {
                    event.id.clone_into(&mut self.last_id);
                    if !event.data.is_empty() {
                        return Ok(Some(event));
                    }
                }
                if !self.read().await? {
                    return Ok(None);
                }
            }
        });
        polled.await.context("nothing comes")?
    }

    /// The next event, if it comes within a time.
    ///
    /// # Errors
    /// When the stream breaks off or ends.
    pub async fn within(&mut self, patience: Duration) -> anyhow::Result<Option<Event>> {
        match timeout(patience, self.next()).await {
            Ok(next) => next.map(Some),
            Err(_elapsed) => Ok(None),
        }
    }

    /// Reads what comes next. Whether the stream goes on.
    async fn read(&mut self) -> anyhow::Result<bool> {
        let Some(frame) = self.body.frame().await else {
            return Ok(false);
        };
        let Ok(data) = frame?.into_data() else {
            return Ok(true);
        };
        self.text.push_str(std::str::from_utf8(&data)?);
        while let Some(end) = self.text.find("\n\n") {
            let block: String = self.text.drain(..end + 2).collect();
            self.note(block.trim_end());
        }
        Ok(true)
    }

    /// Notes a block of lines, as the standard wants it: without data there is no event, but the id counts. Each of ours has one.
    fn note(&mut self, block: &str) {
        let (mut name, mut id, mut data) = (String::new(), String::new(), Vec::new());
        for line in block.lines() {
            match line.split_once(": ") {
                Some(("id", text)) => text.clone_into(&mut id),
                Some(("event", text)) => text.clone_into(&mut name),
                Some(("data", line)) => data.push(line),
                _ => {}
            }
        }
        let data = data.join("\n");
        self.events.push_back(Event { name, id, data });
    }
}
