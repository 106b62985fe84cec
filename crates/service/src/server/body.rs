//! The bodies of requests, whose bytes are counted as they arrive; and those of answers that are one message.
//!
//! A length is believed where somebody makes room for it: a gRPC message says in its first five bytes how long it is, and
//! tonic reserves that much before it arrives.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::Version;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::budget::Claim;
use super::routes::Needs;
use crate::error::ApiError;
use crate::metrics::Transport;

/// Bytes before each gRPC message: a flag, and four bytes of length.
pub(super) const MESSAGE_PREFIX_BYTES: usize = 5;

/// How much of the body of a request that is answered without it is let arrive, and for how long.
const PASSED_OVER_BYTES_MAX: usize = 4_096;
const PASSED_OVER_FOR: Duration = Duration::from_millis(100);

/// Has the body of a request counted. What is too much is told to `refusal`, and ends the body with an error.
pub(super) fn count_body(
    request: &mut Request,
    transport: Transport,
    needs: Needs,
    claim: &Arc<Claim>,
    refusal: oneshot::Sender<ApiError>,
) {
    let counted = Counted {
        is_http2: request.version() == Version::HTTP_2,
        body: std::mem::take(request.body_mut()),
        arrived: 0,
        bytes_max: needs.body_bytes_max,
        is_upload: needs.is_upload,
        messages: (transport == Transport::Grpc).then(Messages::default),
        claim: Arc::clone(claim),
        refusal: Some(refusal),
    };
    *request.body_mut() = Body::new(counted);
}

/// A body whose bytes are counted.
#[derive(Debug)]
struct Counted {
    is_http2: bool,
    body: Body,
    arrived: usize,
    bytes_max: usize,
    /// Whether what arrived before is held no more.
    is_upload: bool,
    /// For gRPC only.
    messages: Option<Messages>,
    claim: Arc<Claim>,
    refusal: Option<oneshot::Sender<ApiError>>,
}

impl Counted {
    fn count(&mut self, data: &[u8]) -> Result<(), ApiError> {
        self.arrived = self.arrived.saturating_add(data.len());
        let promised = self.messages.as_mut().map_or(0, |messages| messages.read(data));
        let bytes = self.arrived.saturating_add(promised);
        if bytes > self.bytes_max {
            return Err(ApiError::payload_too_large(self.bytes_max));
        }
        if self.is_upload {
            return Ok(());
        }
        self.claim.grow_to(bytes)
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.claim.set_awaits_body(polled.is_pending());
        let frame = ready!(polled);
        let data = match &frame {
            Some(Ok(frame)) => frame.data_ref(),
            _ => None,
        };
        if let Some(data) = data
            && let Err(error) = self.count(data)
        {
            if let Some(refusal) = self.refusal.take() {
                // Where the answer has begun nobody waits for this any more; the body breaks off all the same.
                let _ = refusal.send(error.clone());
            }
            return Poll::Ready(Some(Err(axum::Error::new(error))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        HttpBody::size_hint(&self.body)
    }
}

/// A handler may answer without its body.
impl Drop for Counted {
    fn drop(&mut self) {
        if self.is_http2
            && !self.body.is_end_stream()
            && let Ok(runtime) = Handle::try_current()
        {
            let (body, claim) = (std::mem::take(&mut self.body), Arc::clone(&self.claim));
            runtime.spawn(async move {
                pass_over(body).await;
                drop(claim);
            });
        }
    }
}

/// Lets the small body of a request arrive that is answered without it. The h2 crate charges a connection for each small
/// frame that comes after that, never takes it back, and closes the connection in the end, with all its other callers.
pub(super) async fn pass_over(mut body: Body) {
    let mut left = PASSED_OVER_BYTES_MAX;
    let arriving = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                return;
            }
        }
    };
    // What takes longer was not sent with its request.
    let _ = timeout(PASSED_OVER_FOR, arriving).await;
}

/// Has the one message of an answer encoded now, so that its size is known.
pub(super) async fn whole(answer: Response) -> Result<Response, ApiError> {
    // A refusal is its head alone, and ends with it. With a body, however empty, its end would be a frame of its own, and
    // clients built on gRPC's C core then report UNKNOWN in place of the status.
    if answer.body().is_end_stream() {
        return Ok(answer);
    }
    let (parts, body) = answer.into_parts();
    let collected = body.collect().await.map_err(ApiError::internal)?;
    let trailers = collected.trailers().cloned().map(Ok);
    let body = Full::new(collected.to_bytes()).with_trailers(std::future::ready(trailers));
    Ok(Response::from_parts(parts, Body::new(body)))
}

/// How far the body of a gRPC call has come in its messages.
#[derive(Debug, Default)]
struct Messages {
    prefix_read: usize,
    length: usize,
    to_come: usize,
}

impl Messages {
    /// Reads what arrived, and gives how many bytes of the last message are still to come.
    fn read(&mut self, mut data: &[u8]) -> usize {
        loop {
            let of_message = self.to_come.min(data.len());
            self.to_come -= of_message;
            let Some((&byte, rest)) = data[of_message..].split_first() else {
                return self.to_come;
            };
            data = rest;
            // The first byte is the flag.
            self.length = if self.prefix_read == 0 {
                0
            } else {
                self.length << 8 | usize::from(byte)
            };
            self.prefix_read += 1;
            if self.prefix_read == MESSAGE_PREFIX_BYTES {
                self.to_come = self.length;
                self.prefix_read = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_counts_as_soon_as_it_says_how_long_it_is_however_its_bytes_are_cut() {
        let sent = [&[0, 0, 0, 0, 2][..], b"hi", &[0, 0, 0, 1, 0], &[7; 200]].concat();
        for piece_bytes in 1..=sent.len() {
            let mut messages = Messages::default();
            let promised: Vec<usize> = sent
                .chunks(piece_bytes)
                .map(|piece| messages.read(piece))
                .collect();
            assert_eq!(promised.last(), Some(&56), "{piece_bytes}");
            assert!(promised.iter().all(|promised| *promised <= 256), "{piece_bytes}");
        }
        let mut messages = Messages::default();
        assert_eq!(messages.read(&[1, 255, 255, 255, 255]), 0xffff_ffff);
    }
}
