//! Private nats-servers, for real: started, killed, paused, restarted, and robbed of their store.

use std::net::TcpListener;
use std::time::Duration;

use daybook_devstack::testing::temporary_directory;
use daybook_devstack::{DevstackError, Nats, NatsOptions, NatsUser};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// A client of the plain text protocol, enough to ask JetStream something.
struct Client(BufReader<TcpStream>);

impl Client {
    async fn connect(nats: &Nats) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", nats.port()))
            .await
            .expect("it listens");
        let mut client = Self(BufReader::new(stream));
        client.line().await.expect("INFO");
        let url = nats.url();
        let (user, password) = url
            .strip_prefix("nats://")
            .and_then(|rest| rest.split_once('@')?.0.split_once(':'))
            .expect("it has user and password");
        client
            .send(&format!(
                "CONNECT {{\"verbose\":false,\"user\":\"{user}\",\"pass\":\"{password}\"}}\r\nSUB reply 1\r\n"
            ))
            .await;
        client
    }

    async fn send(&mut self, text: &str) {
        self.0
            .get_mut()
            .write_all(text.as_bytes())
            .await
            .expect("the connection is open");
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).await.ok()?;
        (read > 0).then_some(line)
    }

    async fn request(&mut self, subject: &str, body: &str) -> String {
        self.send(&format!("PUB {subject} reply {}\r\n{body}\r\n", body.len()))
            .await;
        while let Some(line) = self.line().await {
            match line.trim() {
                "PING" => self.send("PONG\r\n").await,
                head if head.starts_with("MSG ") => return self.line().await.expect("the message itself"),
                _ => {}
            }
        }
        panic!("the server closed the connection");
    }

    async fn stream_info(&mut self) -> String {
        self.request("$JS.API.STREAM.INFO.KEPT", "").await
    }
}

async fn start(directory: &tempfile::TempDir) -> Nats {
    Nats::start(NatsOptions::new(directory.path()))
        .await
        .expect("it starts")
}

async fn make_stream(nats: &Nats) {
    let mut client = Client::connect(nats).await;
    let stream = r#"{"name":"KEPT","subjects":["kept"],"storage":"file","first_seq":7}"#;
    let made = client.request("$JS.API.STREAM.CREATE.KEPT", stream).await;
    assert!(made.contains("\"first_seq\":7"), "{made}");
    let stored = client.request("kept", "message").await;
    assert!(stored.contains("\"seq\":7"), "{stored}");
}

#[tokio::test]
async fn a_stream_survives_a_kill_and_the_port_stays() {
    let directory = temporary_directory().expect("a directory");
    let mut nats = start(&directory).await;
    make_stream(&nats).await;
    let port = nats.port();
    let process = nats.process_id().expect("it runs").clone();

    nats.kill().await.expect("SIGKILL ends it");
    assert!(!process.is_alive());
    nats.restart().await.expect("it starts again");
    assert_eq!(nats.port(), port);
    let info = Client::connect(&nats).await.stream_info().await;
    assert!(info.contains("\"last_seq\":7"), "{info}");
}

#[tokio::test]
async fn passwords_are_random_and_stay_as_long_as_the_directory() {
    let directories = [(); 2].map(|()| temporary_directory().expect("a directory"));
    let mut passwords = Vec::new();
    for directory in [&directories[0], &directories[0], &directories[1]] {
        let nats = start(directory).await;
        let url = nats.url_of(NatsUser::Command);
        passwords.push(url.split('@').next().expect("a user").to_owned());
        assert_ne!(url, nats.url());
    }
    assert_eq!(passwords[0], passwords[1]);
    assert_ne!(passwords[0], passwords[2]);
}

#[tokio::test]
async fn a_deleted_store_is_really_gone() {
    let directory = temporary_directory().expect("a directory");
    let mut nats = start(&directory).await;
    make_stream(&nats).await;
    assert!(nats.jetstream_directory().exists());

    nats.delete_store().await.expect("it is ours");
    nats.restart().await.expect("it starts empty");
    let info = Client::connect(&nats).await.stream_info().await;
    assert!(info.contains("stream not found"), "{info}");
}

#[tokio::test]
async fn a_paused_server_is_silent_until_it_is_resumed() {
    let directory = temporary_directory().expect("a directory");
    let mut nats = start(&directory).await;
    make_stream(&nats).await;
    let mut client = Client::connect(&nats).await;

    nats.pause();
    let mut question = tokio::spawn(async move { client.stream_info().await });
    let answer = tokio::time::timeout(Duration::from_millis(300), &mut question).await;
    assert!(answer.is_err(), "a stopped process answered");
    nats.resume();
    assert!(question.await.expect("no panic").contains("\"last_seq\":7"));
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let directory = temporary_directory().expect("a directory");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let options = NatsOptions {
        port,
        ..NatsOptions::new(directory.path())
    };
    let error = Nats::start(options).await.expect_err("somebody listens there");
    assert!(
        matches!(error, DevstackError::PortTaken { port: taken, .. } if taken == port),
        "{error}"
    );
}

#[tokio::test]
async fn dropping_a_server_ends_it() {
    let directory = temporary_directory().expect("a directory");
    let nats = start(&directory).await;
    let process = nats.process_id().expect("it runs").clone();
    drop(nats);
    assert!(!process.is_alive());
}
