//! Batches: up to 100 commands that begin aggregates, sent together, in one request of either transport.
//!
//! The whole batch has one idempotency key. Each item is a command under a key of its own, which follows from the batch's and
//! keeps its order: of a UUID the first 64 bits stay as they are, with the time in them, and behind them come the item's number
//! and a hash. Each is bound to the content of the whole batch, and so is the batch's own.
//!
//! What is recorded is recorded in one transaction, the batch's own key with it, and the answer is made of it alone: a batch that
//! is sent again is answered with the same bytes, and another one under its key is refused.

use std::sync::Arc;

use daybook_domain::aggregate::Aggregate;
use daybook_proto::common::v1 as common;
use daybook_proto::convert::{CommandRequest, Violations};
use daybook_service::error::ApiError;
use daybook_service::identity::principal_with;
use daybook_service::request::deadline;
use http::Extensions;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use tokio::time::timeout_at;
use uuid::Uuid;

use crate::handler::{Answer, Caller, Command, Handler, Served, api_error, envelope};
use crate::mailbox::{Identity, Item, NewBatch, OfBatch, Together};
use crate::request::{check_key, validation_error};

/// The most items in a batch.
pub(crate) const ITEMS_MAX: usize = 100;

/// The code of an item that another one of its batch keeps from being done.
pub(crate) const BATCH_REFUSED: &str = "BATCH_REFUSED";

/// What that code means.
pub(crate) const BATCH_REFUSED_EXPLANATION: &str =
    "Another item of the atomic batch was refused, so nothing of the batch was done.";

/// A batch as it came in.
#[derive(Debug)]
pub(crate) struct Batch<R> {
    /// The idempotency key of the whole.
    pub(crate) key: String,
    /// `None` when it does not say, or says something else.
    pub(crate) mode: Option<Together>,
    /// The items. One that cannot be read has its bytes, and why.
    pub(crate) items: Vec<Result<R, Unreadable>>,
}

/// An item that cannot be read.
#[derive(Debug)]
pub(crate) struct Unreadable {
    /// What came.
    pub(crate) bytes: Vec<u8>,
    /// Why it cannot be read.
    pub(crate) error: ApiError,
}

/// What became of a batch.
#[derive(Debug)]
pub(crate) struct BatchAnswer {
    /// Of each item, in their order.
    pub(crate) results: Vec<Result<common::Receipt, ApiError>>,
    /// Whether the batch was answered before, under the same key.
    pub(crate) is_replay: bool,
}

impl BatchAnswer {
    /// How many items there are of each outcome.
    pub(crate) fn summary(&self) -> common::BatchSummary {
        let count = |count: usize| u32::try_from(count).expect("a batch has few items");
        let succeeded = self.results.iter().filter(|result| result.is_ok()).count();
        common::BatchSummary {
            total: count(self.results.len()),
            succeeded: count(succeeded),
            failed: count(self.results.len() - succeeded),
        }
    }

    /// The results as gRPC has them.
    pub(crate) fn into_results(self) -> Vec<common::BatchResult> {
        use common::batch_result::Outcome;
        let results = (0..).zip(self.results);
        let outcome = |result: Result<_, ApiError>| match result {
            Ok(receipt) => Outcome::Receipt(receipt),
            Err(error) => Outcome::Error(error.to_item_status()),
        };
        results
            .map(|(index, result)| common::BatchResult {
                index,
                outcome: Some(outcome(result)),
            })
            .collect()
    }
}

impl<R> Batch<R> {
    /// A batch as it comes over gRPC.
    pub(crate) fn new(key: String, mode: common::BatchMode, items: Vec<R>) -> Self {
        Self {
            key,
            mode: match mode {
                common::BatchMode::Unspecified => None,
                common::BatchMode::Atomic => Some(Together::AllOrNothing),
                common::BatchMode::Partial => Some(Together::EachByItself),
            },
            items: items.into_iter().map(Ok).collect(),
        }
    }

    fn checked(&self) -> Result<Together, ApiError> {
        let mut violations = Violations::default();
        check_key("/request_id", &self.key, &mut violations);
        if self.mode.is_none() {
            violations.add("/mode", "REQUIRED", "mode must be ATOMIC or PARTIAL");
        }
        let count = self.items.len();
        if !(1..=ITEMS_MAX).contains(&count) {
            let message = format_args!("a batch has 1 to {ITEMS_MAX} items, not {count}");
            violations.add("/items", "OUT_OF_RANGE", message);
        }
        violations.finish(self.mode).map_err(validation_error)
    }
}

impl<R: CommandRequest> Batch<R> {
    /// A hash of all that the batch says, but for its key.
    fn digest(&self, together: Together) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update([u8::from(together == Together::AllOrNothing)]);
        for item in &self.items {
            let (is_readable, bytes) = match item {
                Ok(request) => (1, request.encode_to_vec()),
                Err(unreadable) => (0, unreadable.bytes.clone()),
            };
            hash.update([is_readable]);
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        }
        hash.finalize().into()
    }
}

/// The key of an item.
fn item_key(batch: &str, index: usize) -> String {
    let mut usual_form = Uuid::encode_buffer();
    match Uuid::try_parse(batch) {
        Ok(uuid) if uuid.hyphenated().encode_lower(&mut usual_form) == batch => {
            uuid_of_item(uuid, index).to_string()
        }
        _ => format!("{batch}/{index:02}"),
    }
}

fn uuid_of_item(batch: Uuid, index: usize) -> Uuid {
    let (high, _) = batch.as_u64_pair();
    let hash = Sha256::digest(batch.as_bytes());
    let (first, _) = hash.split_first_chunk().expect("a hash is longer");
    // Two bits of the variant, seven of the number, and 55 of the hash.
    let low = 0b10 << 62 | (index as u64) << 55 | u64::from_be_bytes(*first) >> 9;
    Uuid::from_u64_pair(high, low)
}

impl<A: Served> Handler<A> {
    /// Handles a batch of either transport; the extensions of its request say who calls.
    pub(crate) async fn handle_batch<R>(
        &self,
        batch: Batch<R>,
        extensions: &Extensions,
    ) -> Result<BatchAnswer, ApiError>
    where
        R: CommandRequest<Aggregate = A>,
    {
        let caller = Caller {
            principal: principal_with(extensions, A::SCOPE)?,
            received_at: OffsetDateTime::now_utc(),
        };
        let together = batch.checked()?;
        let (items, batch) = Items::read(self, batch, together, &caller);
        let mailboxes = self.mailboxes().clone();
        // In a task of its own: a caller that goes away cuts nothing in the middle.
        let handling = tokio::spawn(async move { mailboxes.handle_together(batch).await });
        let handled = match deadline() {
            Some(deadline) => timeout_at(deadline, handling)
                .await
                .map_err(|_| ApiError::deadline_exceeded())?,
            None => handling.await,
        };
        let outcomes = handled.map_err(ApiError::internal)?;
        let outcomes = outcomes.map_err(|error| api_error(error, A::CATEGORY, ""))?;
        Ok(items.answered(self, together, outcomes))
    }
}

/// The items of a batch: the stream of each command, or why there is none.
struct Items {
    of_each: Vec<Result<Arc<str>, ApiError>>,
    tenant_id: Uuid,
}

impl Items {
    /// Checks each item as the single command is checked, and gives what is to be recorded together.
    fn read<R>(
        handler: &Handler<R::Aggregate>,
        batch: Batch<R>,
        together: Together,
        caller: &Caller,
    ) -> (Self, NewBatch<<R::Aggregate as Aggregate>::Command>)
    where
        R: CommandRequest<Aggregate: Served>,
    {
        let digest = batch.digest(together);
        let identity = |key: &str, content: &[u8]| Identity {
            key: key.into(),
            fingerprints: handler.fingerprints().of(R::NAME, content),
        };
        let (partition, tenant_id) = (caller.principal.tenant_partition, caller.principal.tenant_id);
        let mut items = Self {
            of_each: Vec::with_capacity(batch.items.len()),
            tenant_id,
        };
        let mut to_record = NewBatch {
            partition,
            tenant_id,
            identity: identity(&batch.key, &digest),
            together,
            items: Vec::with_capacity(batch.items.len()),
        };
        for (index, item) in batch.items.into_iter().enumerate() {
            let content = [&digest[..], &(index as u64).to_be_bytes()].concat();
            let identity = identity(&item_key(&batch.key, index), &content);
            let command = item
                .map_err(|unreadable| unreadable.error)
                .and_then(|request| items.check(request, &identity, caller));
            let (of_item, to_record_of_item) = match command {
                Ok(command) => (Ok(Arc::clone(&command.stream_id)), Item::Valid(command)),
                Err(error) => (Err(error), Item::Invalid(identity)),
            };
            items.of_each.push(of_item);
            to_record.items.push(to_record_of_item);
        }
        (items, to_record)
    }

    fn check<R>(
        &self,
        request: R,
        identity: &Identity,
        caller: &Caller,
    ) -> Result<Command<R::Aggregate>, ApiError>
    where
        R: CommandRequest<Aggregate: Served>,
    {
        let mut violations = Violations::default();
        if !request.request_id().is_empty() {
            let message = "the key of an item follows from that of its batch; leave it out";
            violations.add("/request_id", "CONTRADICTION", message);
        }
        if request.expected_version().is_some_and(|version| version != 0) {
            let message = "what a batch begins has no events yet, so only 0 can be expected";
            violations.add("/expected_version", "OUT_OF_RANGE", message);
        }
        let (fingerprints, request_bytes) = (identity.fingerprints.clone(), request.encoded_len());
        let command = envelope(
            request,
            &identity.key,
            fingerprints,
            request_bytes,
            caller,
            violations,
        )?;
        let earlier = self
            .of_each
            .iter()
            .position(|item| item.as_ref().is_ok_and(|id| *id == command.stream_id));
        match earlier {
            None => Ok(command),
            Some(earlier) => {
                let kind = R::Aggregate::CATEGORY;
                let message = format!("it is the same {kind} as that of item {earlier}");
                Err(ApiError::invalid_field("", "DUPLICATE", message))
            }
        }
    }

    /// The answer, given what became of each item.
    fn answered<A: Served>(
        self,
        handler: &Handler<A>,
        together: Together,
        outcomes: Vec<OfBatch>,
    ) -> BatchAnswer {
        let replays = outcomes.iter().filter_map(|outcome| match outcome {
            OfBatch::Recorded(outcome) => Some(outcome.is_replay),
            OfBatch::Refused(_) | OfBatch::NotDone => None,
        });
        let replays: Vec<bool> = replays.collect();
        let is_replay = !replays.is_empty() && replays.into_iter().all(|is_replay| is_replay);
        let items = self.of_each.into_iter().zip(outcomes);
        let results = items.map(|(item, outcome)| match (item, outcome) {
            (_, OfBatch::Recorded(outcome)) => {
                let stream = (self.tenant_id, Arc::clone(&outcome.receipt.stream_id));
                let Answer { receipt, .. } = handler.answer(Ok(outcome), &stream)?;
                Ok(Some(receipt))
            }
            (Err(error), _) => Err(error),
            (Ok(id), OfBatch::Refused(error)) => Err(api_error(error, A::CATEGORY, &id)),
            (Ok(_), OfBatch::NotDone) => match together {
                Together::AllOrNothing => Ok(None),
                Together::EachByItself => {
                    let message = "it was not valid when the batch first came; send it under a new key";
                    Err(ApiError::invalid_field("", "REFUSED_BEFORE", message))
                }
            },
        });
        BatchAnswer {
            results: with_not_done(results.collect()),
            is_replay,
        }
    }
}

/// Says of each item without an outcome of its own which other one keeps it from being done.
fn with_not_done(
    results: Vec<Result<Option<common::Receipt>, ApiError>>,
) -> Vec<Result<common::Receipt, ApiError>> {
    let culprit = results.iter().position(Result::is_err).unwrap_or_default();
    let refused = || {
        let message = format!("item {culprit} was refused, so nothing of the batch was done");
        ApiError::domain_rule(BATCH_REFUSED, message).with_detail(
            "refused_index",
            u64::try_from(culprit).expect("a batch has few items"),
        )
    };
    let results = results.into_iter();
    results.map(|result| result?.ok_or_else(refused)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_items_keep_their_order_between_the_keys_before_and_after_the_batch() {
        let [before, batch, after] = [
            "0192f0c1-7b1c-7d3a-bfff-ffffffffffff",
            "0192f0c1-7b1c-7d3b-9a00-0123456789ab",
            "0192f0c1-7b1c-7d3c-8000-000000000000",
        ];
        let mut keys = vec![before.to_owned()];
        keys.extend((0..ITEMS_MAX).map(|index| item_key(batch, index)));
        keys.push(after.to_owned());
        assert!(keys.is_sorted() && keys.windows(2).all(|pair| pair[0] != pair[1]));
        let uuid: Uuid = keys[1].parse().expect("a UUID");
        assert_eq!(
            (uuid.get_version_num(), uuid.get_variant()),
            (7, uuid::Variant::RFC4122)
        );
    }

    /// Frozen: a batch that is sent again meets a newer program.
    #[test]
    fn the_key_of_an_item_is_always_the_same() {
        assert_eq!(
            item_key("0192f0c1-7b1c-7d3a-8f00-0123456789ab", 7),
            "0192f0c1-7b1c-7d3a-83ef-4c97b9a2b95e"
        );
        assert_eq!(item_key("import-17", 7), "import-17/07");
        let upper = "0192F0C1-7B1C-7D3A-8F00-0123456789AB";
        assert_eq!(item_key(upper, 99), format!("{upper}/99"));
    }

    #[test]
    fn other_batches_have_other_keys_also_where_only_the_end_of_theirs_differs() {
        let key = |batch| item_key(batch, 0);
        assert_ne!(
            key("0192f0c1-7b1c-7d3a-8f00-0123456789ab"),
            key("0192f0c1-7b1c-7d3a-8f00-0123456789ac")
        );
    }
}
