//! The proxy of the fault tests does to connections what it says.

use std::net::SocketAddr;
use std::time::Duration;

use daybook_devstack::Proxy;
use daybook_devstack::proxy::Direction;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

/// Long enough for loopback on a busy machine.
const ANSWERED: Duration = Duration::from_secs(10);

/// Long enough to tell silence from an answer, which takes microseconds.
const SILENT: Duration = Duration::from_millis(300);

/// A server that sends everything back.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.into_split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    address
}

async fn started() -> (Proxy, TcpStream) {
    let proxy = Proxy::start(echo().await).await.expect("a proxy");
    let client = connect(&proxy).await;
    (proxy, client)
}

async fn connect(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(proxy.address()).await.expect("it accepts")
}

/// Sends a byte and says whether it comes back within the time.
async fn echoes(client: &mut TcpStream, patience: Duration) -> bool {
    client.write_all(b"x").await.expect("the proxy takes it");
    matches!(timeout(patience, client.read_u8()).await, Ok(Ok(b'x')))
}

#[tokio::test]
async fn what_a_black_hole_swallowed_never_comes_back_and_who_was_silent_goes_on() {
    let (proxy, mut speaker) = started().await;
    let mut listener = connect(&proxy).await;
    assert!(echoes(&mut speaker, ANSWERED).await && echoes(&mut listener, ANSWERED).await);
    proxy.black_hole(Direction::Both);
    assert!(!echoes(&mut speaker, SILENT).await);
    let mut newcomer = connect(&proxy).await;
    assert!(!echoes(&mut newcomer, SILENT).await);
    assert!(proxy.swallowed() >= 2);
    proxy.heal();
    assert!(!echoes(&mut speaker, SILENT).await, "it lost a byte");
    assert!(!echoes(&mut newcomer, SILENT).await, "nobody knows of it");
    assert!(echoes(&mut listener, ANSWERED).await, "it lost nothing");
    assert!(echoes(&mut connect(&proxy).await, ANSWERED).await);
}

#[tokio::test]
async fn a_one_way_black_hole_lets_the_other_way_through() {
    let (proxy, mut client) = started().await;
    proxy.black_hole(Direction::ToClient);
    assert!(!echoes(&mut client, SILENT).await);
    let (other, mut client) = started().await;
    assert!(echoes(&mut client, ANSWERED).await);
    other.black_hole(Direction::ToServer);
    assert!(!echoes(&mut client, SILENT).await);
}

#[tokio::test]
async fn a_reset_ends_what_is_open_and_a_refusal_what_is_made() {
    let (proxy, mut client) = started().await;
    assert!(echoes(&mut client, ANSWERED).await);
    proxy.reset();
    let ended = timeout(ANSWERED, client.read_u8()).await;
    assert!(matches!(ended, Ok(Err(_))), "{ended:?}");
    let mut client = connect(&proxy).await;
    assert!(echoes(&mut client, ANSWERED).await, "new ones are fine");
    proxy.refuse();
    let ended = timeout(ANSWERED, connect(&proxy).await.read_u8()).await;
    assert!(matches!(ended, Ok(Err(_))), "{ended:?}");
    proxy.heal();
    assert!(echoes(&mut connect(&proxy).await, ANSWERED).await);
}

#[tokio::test]
async fn latency_delays_each_way() {
    let (proxy, mut client) = started().await;
    let latency = Duration::from_millis(100);
    proxy.delay(latency);
    let sent = Instant::now();
    assert!(echoes(&mut client, ANSWERED).await);
    assert!(sent.elapsed() >= 2 * latency, "{:?}", sent.elapsed());
}
