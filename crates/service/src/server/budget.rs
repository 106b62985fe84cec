//! How many bytes of request bodies the process holds at one time.
//!
//! A body counts from the moment when it is declared or arrives until its request is answered: as long as it is in a
//! buffer, as a message, or in what a handler makes of it. What would go over the limit is refused at once, with a hint
//! when to try again, so that memory is bounded by a number and not by how many callers there are.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::extract::Request;
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::Limits;
use crate::error::{ApiError, RETRY_AFTER_DEFAULT};

/// The name of a tenant's share, as its refusal says it.
const QUOTA: &str = "request body bytes in flight";

/// Bytes of bodies that requests without an identity may hold together.
const STRANGERS_BYTES_MAX: usize = 1024 * 1_024;

/// What all requests of the process share.
#[derive(Debug)]
pub(super) struct BodyBudget {
    bytes_max: usize,
    tenant_bytes_max: usize,
    /// The largest length that is believed before the bytes are there.
    declared_bytes_max: usize,
    held: Mutex<Held>,
    /// Shows the bytes that are held.
    gauge: Gauge,
}

#[derive(Debug, Default)]
struct Held {
    bytes: usize,
    /// The deployment's operators, who belong to no tenant, have one share together.
    by_tenant: HashMap<Option<Uuid>, usize>,
}

impl BodyBudget {
    pub(super) fn new(limits: &Limits, gauge: Gauge) -> Self {
        Self {
            bytes_max: limits.body_bytes_in_flight_max,
            tenant_bytes_max: limits.tenant_body_bytes_in_flight_max,
            declared_bytes_max: limits.body_bytes_max,
            held: Mutex::default(),
            gauge,
        }
    }

    /// What those who name no key share among themselves, on the routes that need none: little, and nothing for a length that
    /// they only declare. So they take nothing from those who do.
    pub(super) fn of_strangers(gauge: Gauge) -> Self {
        Self {
            bytes_max: STRANGERS_BYTES_MAX,
            tenant_bytes_max: STRANGERS_BYTES_MAX,
            declared_bytes_max: 0,
            held: Mutex::default(),
            gauge,
        }
    }

    /// Counts the body of a request, which may have at most `bytes_max` bytes, for as long as the claim lives. A length
    /// that is declared is counted now, other bytes as they arrive; if they are too many, the receiver says so and the
    /// body ends with an error.
    pub(super) fn admit(
        self: &Arc<Self>,
        request: Request,
        tenant_id: Option<Uuid>,
        bytes_max: usize,
    ) -> Result<(Request, Admission), ApiError> {
        let (refusal, refused) = oneshot::channel();
        let claim = Arc::new(Claim {
            budget: Arc::clone(self),
            tenant_id,
            bytes: Mutex::new(0),
        });
        let declared = HttpBody::size_hint(request.body()).exact().unwrap_or(0);
        let declared = usize::try_from(declared).unwrap_or(usize::MAX);
        if declared > bytes_max {
            return Err(ApiError::payload_too_large(bytes_max));
        }
        claim.grow_to(declared.min(self.declared_bytes_max))?;
        let counted = Arc::clone(&claim);
        let request = request.map(|body| {
            Body::new(Counted {
                body,
                arrived: 0,
                bytes_max,
                claim: counted,
                refusal: Some(refusal),
            })
        });
        Ok((
            request,
            Admission {
                refused,
                _claim: claim,
            },
        ))
    }

    /// Nothing panics while the lock is held, so what a poisoned one holds is whole.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, tenant_id: Option<Uuid>, bytes: usize) -> Result<(), ApiError> {
        let mut held = self.held();
        if held.bytes + bytes > self.bytes_max {
            return Err(ApiError::overloaded(
                "too many bytes of requests are being handled",
            ));
        }
        let of_tenant = held.by_tenant.get(&tenant_id).copied().unwrap_or_default();
        if of_tenant + bytes > self.tenant_bytes_max {
            return Err(ApiError::rate_limited(QUOTA, RETRY_AFTER_DEFAULT));
        }
        held.by_tenant.insert(tenant_id, of_tenant + bytes);
        held.bytes += bytes;
        self.gauge.inc_by(gauge_value(bytes));
        Ok(())
    }

    fn give_back(&self, tenant_id: Option<Uuid>, bytes: usize) {
        let mut held = self.held();
        held.bytes -= bytes;
        self.gauge.dec_by(gauge_value(bytes));
        if let Some(of_tenant) = held.by_tenant.get_mut(&tenant_id) {
            *of_tenant -= bytes;
            if *of_tenant == 0 {
                held.by_tenant.remove(&tenant_id);
            }
        }
    }
}

fn gauge_value(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The bytes that one request holds.
#[derive(Debug)]
struct Claim {
    budget: Arc<BodyBudget>,
    tenant_id: Option<Uuid>,
    bytes: Mutex<usize>,
}

impl Claim {
    fn grow_to(&self, bytes: usize) -> Result<(), ApiError> {
        let mut held = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes > *held {
            self.budget.take(self.tenant_id, bytes - *held)?;
            *held = bytes;
        }
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut().unwrap_or_else(PoisonError::into_inner);
        if bytes > 0 {
            self.budget.give_back(self.tenant_id, bytes);
        }
    }
}

/// The claim of a request that is being answered. Its bytes are given back when this and the body are gone.
#[derive(Debug)]
pub(super) struct Admission {
    refused: oneshot::Receiver<ApiError>,
    _claim: Arc<Claim>,
}

impl Admission {
    /// Runs the handler, unless its body turns out to be too much.
    pub(super) async fn run<T>(mut self, handler: impl Future<Output = T>) -> Result<T, ApiError> {
        tokio::select! {
            biased;
            Ok(error) = &mut self.refused => Err(error),
            // A handler whose body broke off may have said so already, in its own words.
            answer = handler => self.refused.try_recv().map_or(Ok(answer), Err),
        }
    }
}

/// A body whose bytes are counted.
#[derive(Debug)]
struct Counted {
    body: Body,
    arrived: usize,
    bytes_max: usize,
    claim: Arc<Claim>,
    refusal: Option<oneshot::Sender<ApiError>>,
}

impl Counted {
    fn count(&mut self, bytes: usize) -> Result<(), ApiError> {
        self.arrived = self.arrived.saturating_add(bytes);
        if self.arrived > self.bytes_max {
            return Err(ApiError::payload_too_large(self.bytes_max));
        }
        self.claim.grow_to(self.arrived)
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let bytes = frame
            .as_ref()
            .and_then(|frame| frame.as_ref().ok()?.data_ref().map(Bytes::len));
        if let Err(error) = self.count(bytes.unwrap_or(0)) {
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
