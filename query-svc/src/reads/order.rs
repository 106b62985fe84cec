//! One order: as it is, from its read model, or as it was, by folding the read model's own fold over its history.

use std::sync::Arc;

use daybook_domain::ids::OrderId;
use daybook_event_store::{Direction, EventStore, RecordedEvent};
use daybook_read_model::order_details::{self, Document};
use daybook_read_model::{DecodeError, Event, FoldError, OrderDetails, ReadModel as _, StreamKey};
use daybook_service::{ApiError, identity::Principal};
use thiserror::Error;
use time::OffsetDateTime;

use super::{Answer, Reads};
use crate::freshness::Demand;

/// How many events of a history are read at once.
const CHUNK_EVENTS: u32 = 1_000;

/// Which state of an order is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsOf {
    /// After this many events, at least 1.
    Version(u64),
    /// With all that had been recorded by then. Of a moment that is still to come: as it is now.
    Time(OffsetDateTime),
}

/// Why a history could not be folded. The log holds what the fold rejects, which is a fault of ours.
#[derive(Debug, Error)]
pub(super) enum ReplayError {
    #[error("cannot decode an event of {stream_id}")]
    Decode {
        stream_id: String,
        #[source]
        source: Arc<DecodeError>,
    },
    #[error("cannot fold an event of {stream_id}")]
    Fold {
        stream_id: String,
        #[source]
        source: FoldError,
    },
}

impl ReplayError {
    pub(super) fn fold(event: &RecordedEvent, source: FoldError) -> Self {
        Self::Fold {
            stream_id: event.stream_id.clone(),
            source,
        }
    }
}

impl Reads {
    /// An order as it is.
    ///
    /// # Errors
    /// `RESOURCE_NOT_FOUND` when the caller's tenant has no such order, and what demanding freshness can end in.
    pub async fn order(
        &self,
        caller: &Principal,
        order_id: &OrderId,
        demand: Option<&Demand>,
    ) -> Result<Answer<Arc<Document>>, ApiError> {
        let mut staleness = self.freshen::<OrderDetails>(caller, demand).await?;
        let order_id = order_id.to_string();
        match self.0.loader.find(caller.tenant_id, order_id.clone()).await? {
            Some(document) => {
                // Row and checkpoint commit together, so what made the row is included, and all before it.
                staleness.position = staleness.position.max(document.position);
                Ok(Answer {
                    data: document,
                    staleness,
                })
            }
            None => Err(ApiError::not_found("order", order_id)),
        }
    }

    /// An order as it was. The log is asked and not the read model, so the answer is never behind.
    ///
    /// # Errors
    /// `RESOURCE_NOT_FOUND` when the caller's tenant has no such order, or had none then, or the order has not got to
    /// that version.
    pub async fn order_as_of(
        &self,
        caller: &Principal,
        order_id: &OrderId,
        as_of: AsOf,
    ) -> Result<Answer<Arc<Document>>, ApiError> {
        let staleness = self.staleness_of_log(caller);
        let key = StreamKey {
            tenant_id: caller.tenant_id,
            stream_id: order_id.to_string(),
        };
        let row = self.replay(&key, caller.tenant_partition, as_of).await?;
        let Some(row) = row else {
            return Err(ApiError::not_found("order", key.stream_id));
        };
        match as_of {
            AsOf::Version(version) if row.document.version != version => {
                let which = format!("{}@{version}", key.stream_id);
                Err(ApiError::not_found("order version", which))
            }
            AsOf::Version(_) | AsOf::Time(_) => Ok(Answer {
                data: Arc::new(Document::from(&row)),
                staleness,
            }),
        }
    }

    /// Folds the history as far as is asked, a chunk at a time.
    async fn replay(
        &self,
        key: &StreamKey,
        partition: i32,
        as_of: AsOf,
    ) -> Result<Option<order_details::Row>, ApiError> {
        let mut row = None;
        let mut next = 1;
        loop {
            let events = self
                .events_from(key, partition, next, as_of.last_version())
                .await?;
            let is_last = events.len() < CHUNK_EVENTS as usize;
            let included = events.iter().take_while(|event| as_of.includes(event));
            let count = included.clone().count();
            row = fold(key, row, included).map_err(ApiError::internal)?;
            if is_last || count < events.len() {
                return Ok(row);
            }
            next += u64::from(CHUNK_EVENTS);
        }
    }

    pub(super) async fn events_from(
        &self,
        key: &StreamKey,
        partition: i32,
        from: u64,
        to: u64,
    ) -> Result<Vec<RecordedEvent>, ApiError> {
        let (tenant_id, stream_id) = (key.tenant_id, key.stream_id.clone());
        let read = async move |store: EventStore| {
            let versions = from..=to;
            store
                .read_stream(
                    tenant_id,
                    partition,
                    &stream_id,
                    versions,
                    CHUNK_EVENTS,
                    Direction::Forward,
                )
                .await
        };
        self.0.shared.read_log(tenant_id, read).await
    }
}

impl AsOf {
    fn last_version(self) -> u64 {
        match self {
            Self::Version(version) => version,
            Self::Time(_) => u64::MAX,
        }
    }

    fn includes(self, event: &RecordedEvent) -> bool {
        match self {
            Self::Version(version) => event.stream_version <= version,
            Self::Time(moment) => event.recorded_at <= moment,
        }
    }
}

/// The row after some more events.
fn fold<'a>(
    key: &StreamKey,
    row: Option<order_details::Row>,
    events: impl Iterator<Item = &'a RecordedEvent>,
) -> Result<Option<order_details::Row>, ReplayError> {
    let events: Vec<_> = events.map(decode).collect::<Result<_, _>>()?;
    OrderDetails::replay(key, row, &events).map_err(|source| ReplayError::Fold {
        stream_id: key.stream_id.clone(),
        source,
    })
}

/// The event that was recorded.
pub(super) fn decode(recorded: &RecordedEvent) -> Result<Event, ReplayError> {
    let event = Event::decode(recorded);
    match &event.body {
        Ok(_) => Ok(event),
        Err(source) => Err(ReplayError::Decode {
            stream_id: event.stream_id,
            source: Arc::clone(source),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use daybook_domain::order::Status;
    use time::macros::datetime;
    use uuid::Uuid;

    const ORDER_ID: &str = "ord_01h455vb4pex5vsknk084sn02q";

    fn recorded(version: u64, event_type: &str, payload: &str, recorded_at: OffsetDateTime) -> RecordedEvent {
        RecordedEvent {
            partition: 0,
            position: 10 + version,
            tenant_id: Uuid::nil(),
            category: "order".to_owned(),
            stream_id: ORDER_ID.to_owned(),
            stream_version: version,
            event_id: Uuid::from_u128(version.into()),
            event_type: event_type.to_owned(),
            schema_version: if event_type == "order.placed" { 2 } else { 1 },
            payload: payload.to_owned(),
            metadata: "{}".into(),
            recorded_at,
        }
    }

    /// Placed at noon, confirmed at one.
    fn history() -> [RecordedEvent; 2] {
        let placed = r#"{"order_id":"ord_01h455vb4pex5vsknk084sn02q","customer_id":"c1","currency":"EUR","lines":
            [{"line_number":1,"sku":"tea","quantity":2,"unit_price_minor":250}],"total_minor":500,"item_count":2}"#;
        let confirmed = r#"{"customer_id":"c1","currency":"EUR","total_minor":500,"item_count":2}"#;
        [
            recorded(1, "order.placed", placed, datetime!(2024-05-01 12:00 UTC)),
            recorded(2, "order.confirmed", confirmed, datetime!(2024-05-01 13:00 UTC)),
        ]
    }

    fn status(as_of: AsOf) -> Option<Status> {
        let key = StreamKey {
            tenant_id: Uuid::nil(),
            stream_id: ORDER_ID.to_owned(),
        };
        let history = history();
        let included = history.iter().filter(|event| as_of.includes(event));
        let row = fold(&key, None, included).expect("the history is whole");
        row.map(|row| row.document.status)
    }

    #[test]
    fn an_order_as_of_a_version_has_that_many_events() {
        assert_eq!(status(AsOf::Version(1)), Some(Status::Placed));
        assert_eq!(status(AsOf::Version(2)), Some(Status::Confirmed));
    }

    #[test]
    fn an_order_as_of_a_moment_has_what_had_been_recorded_by_then() {
        assert_eq!(status(AsOf::Time(datetime!(2024-05-01 11:59:59 UTC))), None);
        assert_eq!(
            status(AsOf::Time(datetime!(2024-05-01 12:00 UTC))),
            Some(Status::Placed)
        );
        assert_eq!(
            status(AsOf::Time(datetime!(2024-05-01 12:59:59 UTC))),
            Some(Status::Placed)
        );
        assert_eq!(
            status(AsOf::Time(datetime!(2034-05-01 13:00 UTC))),
            Some(Status::Confirmed)
        );
    }

    #[test]
    fn a_history_goes_on_from_the_row_of_the_chunk_before() {
        let key = StreamKey {
            tenant_id: Uuid::nil(),
            stream_id: ORDER_ID.to_owned(),
        };
        let [placed, confirmed] = history();
        let row = fold(&key, None, [&placed].into_iter()).expect("the history is whole");
        let row = fold(&key, row, [&confirmed].into_iter())
            .expect("it goes on")
            .expect("there is an order");
        assert_eq!((row.document.version, row.position), (2, 12));
    }

    #[test]
    fn what_the_fold_rejects_is_said_with_the_order_that_it_is_about() {
        let key = StreamKey {
            tenant_id: Uuid::nil(),
            stream_id: ORDER_ID.to_owned(),
        };
        let [_, confirmed] = history();
        let rejected = fold(&key, None, [&confirmed].into_iter()).expect_err("nothing was placed");
        assert_eq!(
            rejected.to_string(),
            format!("cannot fold an event of {ORDER_ID}")
        );
    }
}
