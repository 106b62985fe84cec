//! Answers that a caller does not take.
//!
//! A caller of HTTP/2 can read its socket and answer pings, and still never open the window of a stream; its answer would
//! wait for as long as the connection lives. So answers go out in pieces, each of which has to be taken in time, and the
//! claim of the request lives until the last of them is gone.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use hyper::body::{Body as HttpBody, Buf, Bytes, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::budget::Claim;

/// How many bytes have to be taken in [`super::Limits::write_stall_timeout`].
const PIECE_BYTES: usize = 16 * 1_024;

/// The pieces of one connection's answers that hyper has and the caller has not.
#[derive(Debug, Default)]
pub(super) struct Unread {
    pieces: Mutex<Pieces>,
    handed_out: Notify,
}

#[derive(Debug, Default)]
struct Pieces {
    next_number: u64,
    /// Since when each is on its way, the oldest first.
    since: BTreeMap<u64, Instant>,
}

impl Unread {
    /// Waits until a piece has been on its way for longer than `limit`.
    pub(super) async fn stalled(&self, limit: Duration) {
        loop {
            let oldest = self.pieces().since.first_key_value().map(|(_, since)| *since);
            match oldest {
                None => self.handed_out.notified().await,
                Some(since) if since.elapsed() >= limit => return,
                Some(since) => sleep_until(since + limit).await,
            }
        }
    }

    /// Nothing panics while the lock is held, so what a poisoned one holds is whole.
    fn pieces(&self) -> MutexGuard<'_, Pieces> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand_out(self: &Arc<Self>, bytes: Bytes, claim: Option<Arc<Claim>>) -> Piece {
        let mut pieces = self.pieces();
        let number = pieces.next_number;
        pieces.next_number += 1;
        pieces.since.insert(number, Instant::now());
        if pieces.since.len() == 1 {
            self.handed_out.notify_one();
        }
        Piece {
            bytes,
            number,
            unread: Arc::clone(self),
            _claim: claim,
        }
    }
}

/// A part of an answer, on its way until it is dropped.
#[derive(Debug)]
pub(super) struct Piece {
    bytes: Bytes,
    number: u64,
    unread: Arc<Unread>,
    _claim: Option<Arc<Claim>>,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.unread.pieces().since.remove(&self.number);
    }
}

/// The body of an answer, in pieces.
#[derive(Debug)]
pub(super) struct AnswerBody {
    body: Body,
    /// The rest of the frame that came last.
    frame: Bytes,
    claim: Option<Arc<Claim>>,
    unread: Arc<Unread>,
}

impl AnswerBody {
    /// Has an answer that goes out on this connection watched.
    pub(super) fn watch(mut response: Response, unread: &Arc<Unread>) -> http::Response<Self> {
        let claim = response.extensions_mut().remove::<Arc<Claim>>();
        response.map(|body| Self {
            body,
            frame: Bytes::new(),
            claim,
            unread: Arc::clone(unread),
        })
    }
}

impl HttpBody for AnswerBody {
    type Data = Piece;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, axum::Error>>> {
        if self.frame.is_empty() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            };
            match frame.into_data() {
                Ok(data) => self.frame = data,
                Err(other) => {
                    let trailers = other.into_trailers().unwrap_or_default();
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
            }
            if let Some(claim) = &self.claim {
                claim.hold(self.frame.len());
            }
        }
        let count = self.frame.len().min(PIECE_BYTES);
        let bytes = self.frame.split_to(count);
        let piece = self.unread.hand_out(bytes, self.claim.clone());
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.frame.is_empty() && self.body.is_end_stream()
    }

    /// The size of the rest of the body: hyper asks before the first frame.
    fn size_hint(&self) -> SizeHint {
        HttpBody::size_hint(&self.body)
    }
}
