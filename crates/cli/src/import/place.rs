//! Places one order, again and again while that may help.

use std::time::{Duration, Instant};

use daybook_proto::orders::v1::PlaceOrderRequest;
use daybook_proto::orders::v1::order_service_client::OrderServiceClient;

use super::line::Line;
use super::turn::Turn;
use crate::client::Authorized;
use crate::refusal::Refusal;

/// How long one order is tried. A service that is restarting is back by then.
const RETRY_FOR: Duration = Duration::from_secs(30);

/// The pause after the first attempt that failed; it doubles with each one.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The metadata that marks the receipt of an earlier send, as the header of this name does over HTTP.
const REPLAYED: &str = "idempotency-replayed";

/// What a malformed line is counted under; it never leaves this machine.
const MALFORMED_LINE: &str = "MALFORMED_LINE";

/// A connection of the import.
pub(crate) type Client = OrderServiceClient<Authorized>;

/// What became of a line.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The order is there.
    Placed {
        /// It was there before.
        is_replay: bool,
    },
    /// The line was refused; others may fare better.
    Refused(Refused),
    /// Others will not fare better.
    Hopeless(Box<Refusal>),
}

/// A line that was refused.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Its number in the file.
    pub(crate) line: u64,
    /// The order's reference, where it could be read.
    pub(crate) reference: Option<String>,
    /// Why, as a code.
    pub(crate) code: String,
    /// Why, in words.
    pub(crate) message: String,
}

/// Places the order of a line when its turn has come.
pub(crate) async fn place(client: Client, line: Line, mut turn: Option<Turn>) -> Outcome {
    let number = line.number;
    let request = match line.request {
        Ok(request) => request,
        Err(message) => return Outcome::Refused(malformed(number, message)),
    };
    if let Some(turn) = &mut turn {
        turn.come().await;
    }
    match send(client, &request).await {
        Ok(is_replay) => Outcome::Placed { is_replay },
        Err(refusal) if refusal.is_transient() || refusal.concerns_every_request() => {
            Outcome::Hopeless(refusal)
        }
        Err(refusal) => Outcome::Refused(Refused {
            line: number,
            reference: Some(request.reference),
            message: refusal.summary(),
            code: refusal.code,
        }),
    }
}

fn malformed(line: u64, message: String) -> Refused {
    Refused {
        line,
        reference: None,
        code: MALFORMED_LINE.to_owned(),
        message,
    }
}

/// Sends the same request with the same key until it is answered for good or the time is up.
async fn send(mut client: Client, request: &PlaceOrderRequest) -> Result<bool, Box<Refusal>> {
    let began = Instant::now();
    let mut pause = PAUSE_MIN;
    loop {
        let refusal = match client.place_order(request.clone()).await {
            Ok(response) => return Ok(response.metadata().contains_key(REPLAYED)),
            Err(status) => Refusal::from(status),
        };
        let wait = pause_before_retry(pause, &refusal);
        if !refusal.is_transient() || began.elapsed() + wait > RETRY_FOR {
            return Err(Box::new(refusal));
        }
        tokio::time::sleep(wait).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// At least what the service asks for, and never the same for all: they were refused together.
fn pause_before_retry(pause: Duration, refusal: &Refusal) -> Duration {
    let spread = pause.mul_f64(rand::random_range(0.5..1.5));
    refusal.retry_after.unwrap_or_default().min(PAUSE_MAX) + spread
}
