//! A TCP proxy between a service and its server, for faults of the network: silence, resets and latency.
//!
//! It forwards from a port of 127.0.0.1 to another one. A *black hole* is what a dropped route looks like from both ends:
//! bytes are taken and never arrive, and nobody is told. What was swallowed is gone, so a connection that lost anything
//! stays silent after [`Proxy::heal`], as one does whose path forgot it; a connection that said nothing meanwhile goes on.
//! Connections that are made in a black hole are accepted and stay silent, too.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// Bytes that are forwarded at once.
const CHUNK_BYTES: usize = 64 * 1_024;

/// Which bytes a black hole swallows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What the client sends.
    ToServer,
    /// What the server sends.
    ToClient,
    /// All.
    Both,
}

impl Direction {
    fn covers(self, way: Self) -> bool {
        self == Self::Both || self == way
    }
}

/// What the proxy does with bytes and connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    BlackHole(Direction),
    Delay(Duration),
    /// Connections are closed as soon as they are made.
    Refuse,
}

/// Where bytes go, the fault, and how often connections were reset: a change of the number ends those that are open.
#[derive(Debug, Clone, Copy)]
struct State {
    target: SocketAddr,
    fault: Fault,
    resets: u64,
}

/// A running proxy. It ends, with its connections, when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    first_target: SocketAddr,
    address: SocketAddr,
    state: watch::Sender<State>,
    swallowed: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Proxy {
    /// Listens on a free port and forwards to `target`.
    ///
    /// # Errors
    /// When there is no port to listen on.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (state, seen) = watch::channel(State {
            target,
            fault: Fault::None,
            resets: 0,
        });
        let swallowed = Arc::default();
        let accepting = tokio::spawn(accept_all(listener, seen, Arc::clone(&swallowed)));
        Ok(Self {
            first_target: target,
            address,
            state,
            swallowed,
            accepting,
        })
    }

    /// Forwards to the server of a URL with a numeric host and a port, and gives the URL with the proxy in its place.
    ///
    /// # Errors
    /// When the URL has no such host, and as [`Self::start`].
    pub async fn in_front_of(url: &str) -> io::Result<(Self, String)> {
        let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
        let authority = authority.split(['/', '?']).next().unwrap_or_default();
        let host = authority.rsplit('@').next().unwrap_or_default();
        let proxy = Self::start(host.parse().map_err(io::Error::other)?).await?;
        let proxied = proxy.in_place_of_server(url);
        Ok((proxy, proxied))
    }

    /// Another URL of the first server, with this proxy in its place.
    #[must_use]
    pub fn in_place_of_server(&self, url: &str) -> String {
        url.replacen(&self.first_target.to_string(), &self.address.to_string(), 1)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Swallows everything that goes this way, and connections that are made from now on.
    pub fn black_hole(&self, direction: Direction) {
        self.set(Fault::BlackHole(direction));
    }

    /// Holds everything back for so long.
    pub fn delay(&self, latency: Duration) {
        self.set(Fault::Delay(latency));
    }

    /// Closes the connections that are open, and new ones as soon as they are made, until [`Self::heal`].
    pub fn refuse(&self) {
        self.set(Fault::Refuse);
        self.reset();
    }

    /// Closes the connections that are open.
    pub fn reset(&self) {
        self.state.send_modify(|state| state.resets += 1);
    }

    /// Forwards to another server from now on, and closes the connections that are open.
    pub fn redirect(&self, target: SocketAddr) {
        self.state.send_modify(|state| {
            state.target = target;
            state.resets += 1;
        });
    }

    /// Forwards new connections to another server from now on. Those that are open stay with theirs, as behind a name that
    /// leads elsewhere by now.
    pub fn redirect_new(&self, target: SocketAddr) {
        self.state.send_modify(|state| state.target = target);
    }

    /// Forwards again. Connections that have lost bytes stay silent.
    pub fn heal(&self) {
        self.set(Fault::None);
    }

    /// How many chunks of bytes and new connections were swallowed: zero means that no fault was met.
    #[must_use]
    pub fn swallowed(&self) -> usize {
        self.swallowed.load(Ordering::Relaxed)
    }

    fn set(&self, fault: Fault) {
        self.state.send_modify(|state| state.fault = fault);
    }
}

/// Accepts until it is aborted; its connections end with it.
async fn accept_all(listener: TcpListener, state: watch::Receiver<State>, swallowed: Arc<AtomicUsize>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                connections.spawn(forward(client, state.clone(), Arc::clone(&swallowed)));
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
}

/// One connection, until an end closes it or it is reset.
async fn forward(client: TcpStream, mut state: watch::Receiver<State>, swallowed: Arc<AtomicUsize>) {
    let State {
        target,
        fault,
        resets,
    } = *state.borrow();
    let was_reset = {
        let mut state = state.clone();
        async move { _ = state.wait_for(|state| state.resets != resets).await }
    };
    let forwarding = async {
        if fault == Fault::Refuse {
            return Ok(());
        }
        if matches!(fault, Fault::BlackHole(_)) {
            swallowed.fetch_add(1, Ordering::Relaxed);
            return hold_silent(client).await;
        }
        let server = TcpStream::connect(target).await?;
        server.set_nodelay(true)?;
        client.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        state.mark_unchanged();
        let pump = |from, to, way| pump(from, to, way, state.clone(), Arc::clone(&swallowed));
        // When one way ends, so does the connection: nobody here closes half of one.
        tokio::select! {
            ended = pump(from_client, to_server, Direction::ToServer) => ended,
            ended = pump(from_server, to_client, Direction::ToClient) => ended,
        }
    };
    // An error ends the connection, which is what the ends would see without a proxy.
    tokio::select! {
        () = was_reset => {}
        _ended = forwarding => {}
    }
}

/// Takes what the client sends until it gives up.
async fn hold_silent(mut client: TcpStream) -> io::Result<()> {
    let mut lost = vec![0; CHUNK_BYTES];
    while client.read(&mut lost).await? > 0 {}
    Ok(())
}

/// Forwards one way. Once it has lost bytes it never forwards again.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: Direction,
    state: watch::Receiver<State>,
    swallowed: Arc<AtomicUsize>,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut has_lost_bytes = false;
    loop {
        let read = from.read(&mut chunk).await?;
        let fault = state.borrow().fault;
        let in_hole = matches!(fault, Fault::BlackHole(direction) if direction.covers(way));
        if read == 0 && (in_hole || has_lost_bytes) {
            // The end is swallowed as well: the other side is not told.
            std::future::pending::<()>().await;
        }
        if read == 0 {
            return Ok(());
        }
        if in_hole || has_lost_bytes {
            has_lost_bytes = true;
            swallowed.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        if let Fault::Delay(latency) = fault {
            tokio::time::sleep(latency).await;
        }
        to.write_all(&chunk[..read]).await?;
    }
}
