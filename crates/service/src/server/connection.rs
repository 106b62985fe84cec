//! The life of one connection: find out what it speaks, answer it, and ask it to go when it is old, when it does not take its
//! answers, or when the process stops.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::Shared;
use super::access::Connection;
use super::answer::answer;
use super::seats::Holder;
use super::stall::{Protocol, Stream, Turns, opening};
use super::unread::{AnswerBody, Unread};

/// Why a connection ended before its time. None of it is a fault of ours.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("the caller went away before its first request")]
    Opening(#[from] std::io::Error),
    #[error("the caller did not say in time what it speaks")]
    Silent,
    #[error("the connection broke")]
    Broken(#[from] hyper::Error),
}

/// Serves one connection to its end.
pub(super) async fn serve(
    mut tcp: TcpStream,
    holder: Arc<Holder>,
    shared: &Arc<Shared>,
) -> Result<(), ConnectionError> {
    tcp.set_nodelay(true)?;
    let limits = &shared.limits;
    let opening = tokio::select! {
        opening = timeout(limits.header_read_timeout, opening(&mut tcp)) => opening,
        () = shared.shutdown.cancelled() => return Ok(()),
    };
    let (protocol, opening) = opening.map_err(|_| ConnectionError::Silent)??;
    let (head_limit, write_limit) = (limits.header_read_timeout, limits.write_stall_timeout);
    let unread = Arc::new(Unread::default());
    let service = |turns| Service {
        shared: Arc::clone(shared),
        turns,
        connection: Connection::new(holder),
        unread: Arc::clone(&unread),
    };
    match protocol {
        Protocol::Http1 => {
            let turns = Turns::default();
            let stream = Stream::http1(tcp, opening, turns.clone(), head_limit, write_limit);
            let service = service(Some(turns));
            let connection = shared.http1.serve_connection(TokioIo::new(stream), service);
            drive(connection, |it| it.graceful_shutdown(), shared, &unread).await
        }
        Protocol::Http2 => {
            let stream = Stream::http2(tcp, opening, write_limit);
            let connection = shared.http2.serve_connection(TokioIo::new(stream), service(None));
            drive(connection, |it| it.graceful_shutdown(), shared, &unread).await
        }
    }
}

/// Runs a connection until it ends by itself, or has been asked to go and its grace is over.
async fn drive<C>(
    connection: C,
    ask_to_go: impl FnOnce(Pin<&mut C>),
    shared: &Shared,
    unread: &Unread,
) -> Result<(), ConnectionError>
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        ended = connection.as_mut() => return Ok(ended?),
        // Others may share the connection with the one that does not read: they finish what they have begun.
        () = unread.stalled(shared.limits.write_stall_timeout) => {}
        () = shared.shutdown.cancelled() => {}
        () = sleep(spread(shared.limits.connection_age_max)) => {}
    }
    ask_to_go(connection.as_mut());
    tokio::select! {
        biased;
        ended = connection => Ok(ended?),
        () = shared.abort.cancelled() => Ok(()),
        () = sleep(shared.limits.connection_age_grace) => Ok(()),
    }
}

/// A duration up to a tenth shorter, so that connections that were made together do not go together.
fn spread(duration: Duration) -> Duration {
    duration.mul_f64(1.0 - rand::random::<f64>() / 10.0)
}

/// One connection's side of hyper.
struct Service {
    shared: Arc<Shared>,
    turns: Option<Turns>,
    connection: Arc<Connection>,
    unread: Arc<Unread>,
}

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<AnswerBody>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (shared, connection) = (Arc::clone(&self.shared), Arc::clone(&self.connection));
        let (turns, unread) = (self.turns.clone(), Arc::clone(&self.unread));
        if let Some(turns) = &turns {
            turns.pass();
        }
        Box::pin(async move {
            let response = answer(&shared, &connection, request).await;
            if let Some(turns) = turns {
                turns.pass();
            }
            Ok(AnswerBody::watch(response, &unread))
        })
    }
}
