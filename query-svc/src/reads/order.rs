//! One order: as it is, from its read model, or as it was, by folding the read model's own fold over its history.

use std::ops::ControlFlow;
use std::sync::Arc;

use daybook_domain::ids::OrderId;
use daybook_event_store::RecordedEvent;
use daybook_read_model::order_details::{Document, Row};
use daybook_read_model::{OrderDetails, ReadModel as _, StreamKey};
use daybook_service::{ApiError, identity::Principal};
use time::OffsetDateTime;

use super::replay::{ReplayError, decode};
use super::{Answer, Reads};
use crate::freshness::Demand;

/// Which state of an order is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsOf {
    /// After this many events, at least 1.
    Version(u64),
    /// With all that had been recorded by then. Of a moment that is still to come: as it is now.
    Time(OffsetDateTime),
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
                staleness.include(document.position);
                Ok(Answer {
                    data: document,
                    staleness,
                })
            }
            None => Err(ApiError::not_found("order", order_id)),
        }
    }

    /// An order as it was. The log is asked and not the read model, so the answer is behind only where that is a
    /// standby's.
    ///
    /// # Errors
    /// `RESOURCE_NOT_FOUND` when the caller's tenant has no such order, or had none then, or the order has not got to
    /// that version; `PAYLOAD_TOO_LARGE` when its history is too long to be folded that far; `READ_MODEL_BEHIND` when it has an
    /// event that this program does not know; and what demanding freshness can end in.
    pub async fn order_as_of(
        &self,
        caller: &Principal,
        order_id: &OrderId,
        as_of: AsOf,
        demand: Option<&Demand>,
    ) -> Result<Answer<Arc<Document>>, ApiError> {
        let staleness = self.freshen_log(caller, demand).await?;
        let key = StreamKey {
            tenant_id: caller.tenant_id,
            stream_id: order_id.to_string(),
        };
        let fold = {
            let key = key.clone();
            move |row: &mut Option<Row>, event: &RecordedEvent| {
                as_of.fold(&key, row, event).map_err(ApiError::from)
            }
        };
        let last = as_of.last_version();
        let row = self.replay(caller, &key.stream_id, last, None, fold).await?;
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

    /// Folds the next event of a history, if it is included.
    fn fold(
        self,
        key: &StreamKey,
        row: &mut Option<Row>,
        recorded: &RecordedEvent,
    ) -> Result<ControlFlow<()>, ReplayError> {
        if !self.includes(recorded) {
            return Ok(ControlFlow::Break(()));
        }
        let event = decode(recorded)?;
        *row = OrderDetails::replay(key, row.take(), [&event])
            .map_err(|source| ReplayError::fold(recorded, source))?;
        Ok(ControlFlow::Continue(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use daybook_domain::order::Status;
    use daybook_service::Code;
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

    fn key() -> StreamKey {
        StreamKey {
            tenant_id: Uuid::nil(),
            stream_id: ORDER_ID.to_owned(),
        }
    }

    fn status(as_of: AsOf) -> Option<Status> {
        let (key, mut row) = (key(), None);
        for event in &history() {
            if as_of
                .fold(&key, &mut row, event)
                .expect("the history is whole")
                .is_break()
            {
                break;
            }
        }
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
    fn an_event_that_this_program_does_not_know_is_named() {
        let [placed, _] = history();
        let newer = RecordedEvent {
            schema_version: 9,
            ..placed.clone()
        };
        let imagined = RecordedEvent {
            event_type: "order.imagined".to_owned(),
            ..placed
        };
        for (unknown, what) in [
            (newer, "order.placed in schema version 9"),
            (imagined, "order.imagined in schema version 2"),
        ] {
            let refused = AsOf::Version(1).fold(&key(), &mut None, &unknown);
            let refused = ApiError::from(refused.expect_err("nobody knows it"));
            assert_eq!(refused.code(), &Code::ReadModelBehind);
            assert_eq!(refused.message(), format!("this program does not know {what}"));
        }
    }

    #[test]
    fn what_the_fold_rejects_is_said_with_the_order_that_it_is_about() {
        let [_, confirmed] = history();
        let rejected = AsOf::Version(2).fold(&key(), &mut None, &confirmed);
        let rejected = rejected.expect_err("nothing was placed");
        assert_eq!(
            rejected.to_string(),
            format!("cannot fold an event of {ORDER_ID}")
        );
    }
}
