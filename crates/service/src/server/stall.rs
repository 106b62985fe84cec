//! A connection whose caller does not keep going is an error of the stream, so that hyper gives it up.
//!
//! hyper has one timer for HTTP/1, which cannot tell a connection that is idle (fine for a minute) from one that sends
//! its request's head byte by byte (an attack). Here the first byte of a head starts a timer of its own, and the call of
//! the handler stops it. A second timer runs while the caller does not read.
//!
//! A socket that is closed while there are unread bytes in it resets the connection, and the caller, who is still sending a
//! body that was refused, may never see the answer. So the end of a connection lingers for a moment.
//!
//! The protocol is found out here and not by hyper-util's `server-auto`, which waits for a silent caller without end
//! and tells nobody what it found, while only a head of HTTP/1 has a timer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// The first bytes of every HTTP/2 connection (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a connection that we close is read on, while its caller still sends.
const LINGER_MAX: Duration = Duration::from_secs(1);

/// How many bytes are thrown away at a time then.
const LINGER_BUFFER_BYTES: usize = 16 * 1_024;

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// Reads until it is clear what the caller speaks. Gives what was read, too, to be read again.
pub(super) async fn opening(stream: &mut TcpStream) -> io::Result<(Protocol, Bytes)> {
    let mut read = Vec::with_capacity(HTTP2_PREFACE.len());
    loop {
        if stream.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if read.starts_with(HTTP2_PREFACE) {
            return Ok((Protocol::Http2, read.into()));
        }
        if !HTTP2_PREFACE.starts_with(&read) {
            return Ok((Protocol::Http1, read.into()));
        }
    }
}

/// Whose turn it is, as hyper's service and the stream both see it: a count of the turns. At an even one the caller owes
/// the next head, at an odd one a handler owes its answer. A count and not a flag, for an answer can be quicker than the
/// stream's next look.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns(Arc<AtomicU64>);

impl Turns {
    /// A request's head is complete; or its answer begins, and the next head may come.
    pub(super) fn pass(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A timer that runs only while something is owed.
#[derive(Debug)]
struct Owed {
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Owed {
    fn new(limit: Duration) -> Self {
        Self { limit, timer: None }
    }

    fn start(&mut self) {
        let limit = self.limit;
        self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
    }

    fn stop(&mut self) {
        self.timer = None;
    }

    /// Whether it is too late; if it is not yet, the task will be woken then.
    fn is_overdue(&mut self, cx: &mut Context<'_>) -> bool {
        self.timer
            .as_mut()
            .is_some_and(|timer| timer.as_mut().poll(cx).is_ready())
    }
}

/// The head that a caller of HTTP/1 is sending.
#[derive(Debug)]
struct Head {
    turns: Turns,
    turn: u64,
    owed: Owed,
}

impl Head {
    /// Stops the timer when the turn has passed since the last look. Whether it is the caller's turn now.
    fn is_awaited(&mut self) -> bool {
        let turn = self.turns.count();
        if turn != self.turn {
            self.turn = turn;
            self.owed.stop();
        }
        turn.is_multiple_of(2)
    }
}

/// The stream of one connection, which fails when the caller stalls.
#[derive(Debug)]
pub(super) struct Stream {
    tcp: TcpStream,
    /// Bytes that were read before.
    opening: Bytes,
    /// For HTTP/1 only: HTTP/2 has its pings.
    head: Option<Head>,
    unread: Owed,
    lingering: Owed,
}

impl Stream {
    /// An HTTP/1 stream, each of whose heads may take `head_limit` from its first byte.
    pub(super) fn http1(
        tcp: TcpStream,
        opening: Bytes,
        turns: Turns,
        head_limit: Duration,
        write_limit: Duration,
    ) -> Self {
        let head = Head {
            turn: turns.count(),
            turns,
            owed: Owed::new(head_limit),
        };
        Self {
            head: Some(head),
            ..Self::http2(tcp, opening, write_limit)
        }
    }

    /// An HTTP/2 stream.
    pub(super) fn http2(tcp: TcpStream, opening: Bytes, write_limit: Duration) -> Self {
        Self {
            tcp,
            opening,
            head: None,
            unread: Owed::new(write_limit),
            lingering: Owed::new(LINGER_MAX),
        }
    }

    /// Some bytes came in: at the caller's turn they begin (or continue) a head.
    fn came_in(&mut self) {
        if let Some(head) = &mut self.head
            && head.is_awaited()
        {
            head.owed.start();
        }
    }

    /// Nothing came in: is a head overdue?
    fn head_is_overdue(&mut self, cx: &mut Context<'_>) -> bool {
        self.head
            .as_mut()
            .is_some_and(|head| head.is_awaited() && head.owed.is_overdue(cx))
    }

    /// Throws away what the caller still sends, until it ends or there is nothing on its way any more.
    fn linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut bytes = [0; LINGER_BUFFER_BYTES];
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = Pin::new(&mut self.tcp).poll_read(cx, &mut buffer);
            let is_still_sending = match read {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.lingering.start();
                    true
                }
                Poll::Ready(_) => false,
                Poll::Pending => self.lingering.timer.is_some(),
            };
            if !is_still_sending || self.lingering.is_overdue(cx) {
                return Poll::Ready(());
            }
            if read.is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Passes on how a write went, and fails when the caller has not read for too long.
    fn went_out<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.unread.stop();
            return written;
        }
        self.unread.start();
        if self.unread.is_overdue(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.opening.is_empty() {
            let count = self.opening.len().min(buffer.remaining());
            buffer.put_slice(&self.opening.split_to(count));
            self.came_in();
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        match Pin::new(&mut self.tcp).poll_read(cx, buffer) {
            Poll::Ready(Ok(())) if buffer.filled().len() > before => {
                self.came_in();
                Poll::Ready(Ok(()))
            }
            Poll::Pending if self.head_is_overdue(cx) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            other => other,
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write(cx, bytes);
        self.went_out(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write_vectored(cx, slices);
        self.went_out(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.tcp).poll_shutdown(cx))?;
        self.linger(cx).map(Ok)
    }
}
