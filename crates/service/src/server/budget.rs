//! How many bytes callers make the process hold at one time.
//!
//! A request counts from the moment when its headers are known until its answer has been taken: a fixed cost and its head,
//! what its body has or promises, and what its answer has ready. What would go over the limit is refused at once, with a
//! hint when to try again, so that memory is bounded by a number and not by how many callers there are.
//!
//! Work that goes on when its caller goes away keeps the request's claim ([`crate::request::hold`]), so nobody piles up work by
//! cancelling.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::Request;
use axum::response::Response;
use hyper::body::Body as HttpBody;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use uuid::Uuid;

use super::Limits;
use super::body::{count_body, whole};
use super::grpc_web::InBase64;
use super::routes::Needs;
use crate::error::{ApiError, RETRY_AFTER_DEFAULT};
use crate::metrics::Transport;
use crate::request;
use crate::shares::half_of_the_rest;

/// The name of a tenant's share, as its refusal says it.
const QUOTA: &str = "request bytes in flight";

/// Bytes that requests without an identity may hold together.
pub(super) const ANONYMOUS_BYTES_MAX: usize = 4 * 1_024 * 1_024;

/// Bytes of a request beside its head and its body: a task, a stream, and what a handler notes about it.
pub(super) const REQUEST_BYTES: usize = 4 * 1_024;

/// Bytes of a request whose body is taken in parts, however long it is: those that have arrived and are not yet stored.
pub const UPLOAD_BYTES: usize = 1_024 * 1_024;

/// Bytes of each header beside its name and value (as RFC 9113, 6.5.2 counts).
const HEADER_BYTES: usize = 32;

/// The bytes that all requests of the process share.
#[derive(Debug)]
pub(super) struct Budget {
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
    /// Bytes of all tenants together, each with its share at the most: answers may take a tenant over it, and what is
    /// over it must not keep others out.
    within_shares: usize,
    /// The deployment's operators, who belong to no tenant, have one share together.
    by_tenant: HashMap<Option<Uuid>, usize>,
}

/// On what terms a request is let in.
#[derive(Debug)]
pub(super) struct Terms {
    /// Whose share it is.
    pub(super) tenant_id: Option<Uuid>,
    pub(super) needs: Needs,
    /// Kept until its answer has been taken.
    pub(super) place: Option<OwnedSemaphorePermit>,
}

impl Terms {
    pub(super) fn new(needs: Needs) -> Self {
        Self {
            tenant_id: None,
            needs,
            place: None,
        }
    }
}

impl Budget {
    pub(super) fn new(limits: &Limits, gauge: Gauge) -> Self {
        Self {
            bytes_max: limits.bytes_in_flight_max,
            tenant_bytes_max: limits.tenant_bytes_in_flight_max,
            declared_bytes_max: limits.body_bytes_max,
            held: Mutex::default(),
            gauge,
        }
    }

    /// The budget of anonymous callers, on the routes that need no key: little, and nothing for a length that is only
    /// declared. So they take nothing from those who have a key.
    pub(super) fn anonymous(gauge: Gauge) -> Self {
        Self {
            bytes_max: ANONYMOUS_BYTES_MAX,
            tenant_bytes_max: ANONYMOUS_BYTES_MAX,
            declared_bytes_max: 0,
            held: Mutex::default(),
            gauge,
        }
    }

    /// The budget of probes, of which each connection has a few at a time: nobody else's requests fill it.
    pub(super) fn of_probes(gauge: Gauge) -> Self {
        Self {
            bytes_max: usize::MAX,
            tenant_bytes_max: usize::MAX,
            ..Self::anonymous(gauge)
        }
    }

    /// Counts a refusal until it has been taken, for which there is a place, or else has to be room.
    pub(super) fn claim_refusal(self: &Arc<Self>, place: Option<OwnedSemaphorePermit>) -> Option<Arc<Claim>> {
        let has_place = place.is_some();
        let claim = Arc::new(Claim {
            budget: Arc::clone(self),
            tenant_id: None,
            fixed: REQUEST_BYTES,
            held: Mutex::new(0),
            awaits_body: AtomicBool::new(false),
            _place: place,
        });
        if has_place {
            claim.hold(0);
        } else {
            claim.grow_to(0).ok()?;
        }
        Some(claim)
    }

    /// Counts a request for as long as the claim lives. A length that is declared is counted now, other bytes as they arrive; if
    /// they are too many, the receiver says so and the body ends with an error.
    pub(super) fn admit(
        self: &Arc<Self>,
        request: &mut Request,
        transport: Transport,
        terms: Terms,
    ) -> Result<Admission, ApiError> {
        let Terms {
            tenant_id,
            needs,
            place,
        } = terms;
        let body_bytes_max = needs.body_bytes_max;
        let declared = HttpBody::size_hint(request.body()).exact().unwrap_or(0);
        let declared = usize::try_from(declared).unwrap_or(usize::MAX);
        let declared = match request.extensions().get() {
            Some(InBase64) => InBase64::decoded(declared),
            None => declared,
        };
        if declared > body_bytes_max {
            return Err(ApiError::payload_too_large(body_bytes_max));
        }
        let claim = Arc::new(Claim {
            budget: Arc::clone(self),
            tenant_id,
            fixed: REQUEST_BYTES + head_bytes(request),
            held: Mutex::new(0),
            awaits_body: AtomicBool::new(false),
            _place: place,
        });
        claim.grow_to(match needs.is_upload {
            true => UPLOAD_BYTES,
            false => declared.min(self.declared_bytes_max),
        })?;
        let (refusal, refused) = oneshot::channel();
        if !request.body().is_end_stream() {
            count_body(request, transport, needs, &claim, refusal);
        }
        request::count_work(&claim);
        if needs.is_upload {
            request::set_upload();
        }
        Ok(Admission {
            refused,
            claim,
            is_unary: transport == Transport::Grpc && !needs.is_stream,
        })
    }

    /// Nothing panics while the lock is held, so what a poisoned one holds is whole.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, tenant_id: Option<Uuid>, bytes: usize) -> Result<(), ApiError> {
        let mut held = self.held();
        let of_tenant = held.by_tenant.get(&tenant_id).copied().unwrap_or_default();
        if held.within_shares.saturating_add(bytes) > self.bytes_max {
            return Err(ApiError::overloaded(
                "too many bytes of requests are being handled",
            ));
        }
        if of_tenant.saturating_add(bytes) > self.tenant_bytes_max {
            return Err(ApiError::rate_limited(QUOTA, RETRY_AFTER_DEFAULT));
        }
        // Who holds something leaves half of the rest to whoever comes next.
        let of_others = held.within_shares - of_tenant.min(self.tenant_bytes_max);
        if of_tenant > 0 && of_others > 0 && of_tenant + bytes > half_of_the_rest(self.bytes_max, of_others) {
            return Err(ApiError::overloaded(
                "too many bytes of others' requests are being handled",
            ));
        }
        self.set(&mut held, tenant_id, of_tenant + bytes);
        Ok(())
    }

    /// Counts bytes that are there already, whatever the limits say.
    fn add(&self, tenant_id: Option<Uuid>, bytes: usize) {
        let mut held = self.held();
        let of_tenant = held.by_tenant.get(&tenant_id).copied().unwrap_or_default();
        self.set(&mut held, tenant_id, of_tenant + bytes);
    }

    fn give_back(&self, tenant_id: Option<Uuid>, bytes: usize) {
        let mut held = self.held();
        let of_tenant = held.by_tenant.get(&tenant_id).copied().unwrap_or_default();
        self.set(&mut held, tenant_id, of_tenant - bytes);
    }

    /// Notes that a tenant holds so many bytes now.
    fn set(&self, held: &mut Held, tenant_id: Option<Uuid>, bytes: usize) {
        let before = match bytes {
            0 => held.by_tenant.remove(&tenant_id),
            _ => held.by_tenant.insert(tenant_id, bytes),
        };
        let before = before.unwrap_or_default();
        let within_share = |bytes: usize| bytes.min(self.tenant_bytes_max);
        held.within_shares = held.within_shares + within_share(bytes) - within_share(before);
        self.gauge.inc_by(gauge_value(bytes) - gauge_value(before));
    }
}

fn gauge_value(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The size of a request's head, each header with what it costs beside its name and value.
pub(super) fn head_bytes(request: &Request) -> usize {
    let headers = request.headers().iter();
    let headers = headers.map(|(name, value)| name.as_str().len() + value.len() + HEADER_BYTES);
    headers.sum::<usize>() + target_bytes(request)
}

/// The size of path and query string.
pub(super) fn target_bytes(request: &Request) -> usize {
    let target = request.uri().path_and_query();
    target.map_or(0, |target| target.as_str().len())
}

/// The bytes that one request holds, and its answer after it.
#[derive(Debug)]
pub(crate) struct Claim {
    budget: Arc<Budget>,
    tenant_id: Option<Uuid>,
    /// Bytes with an empty body.
    fixed: usize,
    held: Mutex<usize>,
    /// Whether its handler waits for more of the request's body.
    awaits_body: AtomicBool,
    _place: Option<OwnedSemaphorePermit>,
}

impl Claim {
    /// Notes whether the handler waits for more of the body.
    pub(super) fn set_awaits_body(&self, awaits_body: bool) {
        self.awaits_body.store(awaits_body, Ordering::Relaxed);
    }

    /// Whether the handler waits for more of the body.
    pub(super) fn awaits_body(&self) -> bool {
        self.awaits_body.load(Ordering::Relaxed)
    }

    /// Makes room for a body of this size, if there is.
    pub(super) fn grow_to(&self, body_bytes: usize) -> Result<(), ApiError> {
        let bytes = self.fixed.saturating_add(body_bytes);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes > *held {
            self.budget.take(self.tenant_id, bytes - *held)?;
            *held = bytes;
        }
        Ok(())
    }

    /// Makes room for a whole answer. One that is larger than a tenant's share is never sent, and a small one always: it may be
    /// the receipt of a command, and to refuse it would say that nothing was done.
    fn make_room_for_answer(&self, answer_bytes: usize) -> Result<(), ApiError> {
        if answer_bytes <= REQUEST_BYTES {
            self.hold(answer_bytes);
            return Ok(());
        }
        let bytes_max = self.budget.tenant_bytes_max - self.fixed.min(self.budget.tenant_bytes_max);
        if answer_bytes > bytes_max {
            return Err(ApiError::answer_too_large(bytes_max));
        }
        self.grow_to(answer_bytes)
    }

    /// Counts a part of the answer that is ready. An answer that has begun is not broken off: those who come next wait.
    pub(super) fn hold(&self, answer_bytes: usize) {
        let bytes = self.fixed.saturating_add(answer_bytes);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes > *held {
            self.budget.add(self.tenant_id, bytes - *held);
            *held = bytes;
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let bytes = *self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        if bytes > 0 {
            self.budget.give_back(self.tenant_id, bytes);
        }
    }
}

/// The claim of a request that is being answered.
#[derive(Debug)]
pub(super) struct Admission {
    refused: oneshot::Receiver<ApiError>,
    claim: Arc<Claim>,
    /// Whether the answer is one message of gRPC, which is there when its head is.
    is_unary: bool,
}

impl Admission {
    /// Runs the handler, unless its body turns out to be too much. The claim goes with the answer, in its extensions.
    ///
    /// An answer that is complete is refused when there is no room for it; of a stream each part counts when it is ready.
    pub(super) async fn run(mut self, handler: impl Future<Output = Response>) -> Result<Response, ApiError> {
        let mut answer = tokio::select! {
            biased;
            Ok(error) = &mut self.refused => return Err(error),
            answer = handler => answer,
        };
        // A handler whose body broke off may have said so already, in its own words.
        if let Ok(error) = self.refused.try_recv() {
            return Err(error);
        }
        if self.is_unary {
            answer = whole(answer).await?;
        }
        if let Some(bytes) = HttpBody::size_hint(answer.body()).exact() {
            self.claim
                .make_room_for_answer(usize::try_from(bytes).unwrap_or(usize::MAX))?;
        }
        answer.extensions_mut().insert(self.claim);
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn answers_that_take_a_tenant_over_its_share_keep_no_other_out() {
        let limits = Limits {
            bytes_in_flight_max: 100,
            tenant_bytes_in_flight_max: 60,
            ..Limits::default()
        };
        let budget = Budget::new(&limits, Gauge::default());
        let [one, other, third] = [1, 2, 3].map(|number| Some(Uuid::from_u128(number)));
        budget.take(one, 10).expect("there is room");
        budget.add(one, 1_000);
        assert_eq!(
            budget.take(one, 1).map_err(|error| error.code().clone()),
            Err(Code::RateLimited)
        );
        budget.take(other, 20).expect("half of what the one leaves");
        assert_eq!(
            budget.take(other, 1).map_err(|error| error.code().clone()),
            Err(Code::Overloaded)
        );
        budget.take(third, 10).expect("half of what both leave");
        budget.take(None, 1).expect("and so on");
        budget.add(other, 20);
        assert_eq!(
            budget.take(None, 1).map_err(|error| error.code().clone()),
            Err(Code::Overloaded)
        );
        budget.give_back(one, 1_010);
        budget.give_back(other, 40);
        budget.give_back(third, 10);
        budget.give_back(None, 1);
        budget.take(third, 60).expect("all was given back");
        assert_eq!(budget.gauge.get(), 60);
    }

    #[test]
    fn a_tenant_that_holds_nothing_is_let_in_wherever_there_is_room() {
        const MIB: usize = 1_024 * 1_024;
        let budget = Budget::new(&Limits::default(), Gauge::default());
        for (number, mib) in (1..).zip([32, 16, 8, 4, 2, 1]) {
            let tenant = Some(Uuid::from_u128(number));
            budget.take(tenant, mib * MIB).expect("there is room");
        }
        let seventh = Some(Uuid::from_u128(7));
        budget.take(seventh, MIB - 1).expect("it holds nothing");
        let refused = budget.take(seventh, 1);
        assert_eq!(
            refused.map_err(|error| error.code().clone()),
            Err(Code::Overloaded),
            "its own share is not full"
        );
    }

    #[test]
    fn a_small_answer_goes_out_though_there_is_no_room_and_a_larger_one_does_not() {
        let limits = Limits {
            tenant_bytes_in_flight_max: 10_000,
            ..Limits::default()
        };
        let budget = Arc::new(Budget::new(&limits, Gauge::default()));
        let claim = budget.claim_refusal(None).expect("there is room");
        budget.take(None, 10_000 - REQUEST_BYTES).expect("the rest");
        claim
            .make_room_for_answer(REQUEST_BYTES)
            .expect("it may be a receipt");
        for (bytes, code) in [(5_000, Code::RateLimited), (10_000, Code::PayloadTooLarge)] {
            let refused = claim.make_room_for_answer(bytes);
            assert_eq!(refused.map_err(|error| error.code().clone()), Err(code));
        }
    }
}
