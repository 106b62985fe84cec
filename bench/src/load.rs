//! Load: closed loops, where each worker sends when it has its answer, and open loops, where requests come at their time
//! whether earlier ones are answered or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};

/// What a loop did.
#[derive(Debug)]
pub(crate) struct Load {
    /// How many requests were answered well.
    pub(crate) answered: u64,
    /// How long it took, in seconds.
    pub(crate) seconds: f64,
    /// How long each request took, in microseconds. In an open loop from the moment when it was due.
    pub(crate) latencies: Histogram<u64>,
}

impl Load {
    /// Requests per second.
    pub(crate) fn rate(&self) -> f64 {
        self.answered as f64 / self.seconds
    }

    /// A quantile of the latencies, in milliseconds.
    pub(crate) fn quantile_ms(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64 / 1_000.0
    }
}

/// Counts requests that were not answered well, where a measurement goes on all the same. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Refused(Arc<AtomicU64>);

impl Refused {
    /// Counts the answer if it is a refusal.
    pub(crate) fn note<T>(&self, answer: &Result<T, tonic::Status>) {
        self.0.fetch_add(u64::from(answer.is_err()), Ordering::Relaxed);
    }

    /// How many there were.
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Latencies up to a minute, to three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are good")
}

/// Runs `workers` loops of requests for `duration`. `make` gives each worker its state, `send` sends one request.
pub(crate) async fn closed<S, M, R>(
    workers: usize,
    duration: Duration,
    make: M,
    send: R,
) -> anyhow::Result<Load>
where
    S: Send + 'static,
    M: Fn(usize) -> S,
    R: AsyncSend<S>,
{
    let started = Instant::now();
    let end = started + duration;
    let mut tasks = JoinSet::new();
    for worker in 0..workers {
        let (mut state, send) = (make(worker), send.clone());
        tasks.spawn(async move {
            // Not a histogram each: thousands of them cost more to make than the requests that they would count.
            let mut latencies = Vec::new();
            while Instant::now() < end {
                let sent = Instant::now();
                state = send.send(state).await?;
                latencies.push(micros(sent.elapsed()));
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = histogram();
    while let Some(worker) = tasks.join_next().await {
        for latency in worker?? {
            latencies.saturating_record(latency);
        }
    }
    Ok(Load {
        answered: latencies.len(),
        seconds: started.elapsed().as_secs_f64(),
        latencies,
    })
}

/// One request of a closed loop, with the state of its worker. A trait, because a closure cannot say that its future may
/// go to another thread.
pub(crate) trait AsyncSend<S>: Clone + Send + 'static {
    /// Sends a request and waits for the answer.
    fn send(&self, state: S) -> impl Future<Output = anyhow::Result<S>> + Send;
}

impl<S, F, Fut> AsyncSend<S> for F
where
    F: Fn(S) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = anyhow::Result<S>> + Send,
{
    fn send(&self, state: S) -> impl Future<Output = anyhow::Result<S>> + Send {
        self(state)
    }
}

/// How often an open loop looks at the clock.
const TICK: Duration = Duration::from_millis(1);

/// Starts `per_second` requests each second for `duration`, evenly.
pub(crate) async fn open<F, Fut>(per_second: u64, duration: Duration, send: F) -> anyhow::Result<Load>
where
    F: Fn() -> Fut,
    Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let started = Instant::now();
    let total = per_second * duration.as_secs();
    let mut ticks = interval(TICK);
    let mut tasks = JoinSet::new();
    let mut sent = 0;
    while sent < total {
        ticks.tick().await;
        let due = (started.elapsed().as_secs_f64() * per_second as f64) as u64;
        while sent < due.min(total) {
            let at = started + Duration::from_secs_f64(sent as f64 / per_second as f64);
            let request = send();
            tasks.spawn(async move {
                request.await?;
                anyhow::Ok(at.elapsed())
            });
            sent += 1;
        }
    }
    let mut latencies = histogram();
    while let Some(task) = tasks.join_next().await {
        latencies.saturating_record(micros(task??));
    }
    Ok(Load {
        answered: latencies.len(),
        seconds: started.elapsed().as_secs_f64(),
        latencies,
    })
}

fn micros(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}
