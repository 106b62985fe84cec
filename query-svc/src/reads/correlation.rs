//! All that one request caused, as a tree: which event or command caused each event.

use std::collections::HashMap;

use daybook_event_store::RecordedEvent;
use daybook_read_model::EventIndex;
use daybook_read_model::event_index::Filter;
use daybook_service::{ApiError, identity::Principal};
use uuid::Uuid;

use super::history::HistoryEvent;
use super::{Answer, Reads};
use crate::freshness::Demand;

/// How many events of a correlation are shown: the oldest.
pub(crate) const CORRELATION_EVENTS_MAX: u32 = 1_000;

/// All that one request caused.
#[derive(Clone, Debug)]
pub struct Correlation {
    /// What ties the events together.
    pub correlation_id: String,
    /// The events, each before those that it caused. They are not nested: readers of JSON and protobuf take some 100 levels.
    pub nodes: Vec<Node>,
    /// Whether there are more than are shown.
    pub is_truncated: bool,
}

/// An event in a tree.
#[derive(Clone, Debug)]
pub struct Node {
    /// What happened.
    pub event: HistoryEvent,
    /// How many others it has above itself; 0 for what nothing that is shown caused.
    pub depth: u32,
    /// The ids of the events that it caused, oldest first.
    pub children: Vec<Uuid>,
}

impl Reads {
    /// All events of the caller's tenant with a correlation id, at most [`CORRELATION_EVENTS_MAX`] and as many as fit an answer.
    ///
    /// # Errors
    /// `RESOURCE_NOT_FOUND` when there are none, and what demanding freshness can end in.
    pub async fn correlation(
        &self,
        caller: &Principal,
        correlation_id: String,
        demand: Option<&Demand>,
    ) -> Result<Answer<Correlation>, ApiError> {
        let mut staleness = self.freshen::<EventIndex>(caller, demand).await?;
        let filter = Filter {
            correlation_id: Some(correlation_id.clone()),
            ..Filter::default()
        };
        let scan = filter.scan(None).map_err(ApiError::internal)?;
        let mut found = self
            .stretch(caller, (filter, scan), 0..u64::MAX, CORRELATION_EVENTS_MAX + 1)
            .await?;
        found.events.truncate(CORRELATION_EVENTS_MAX as usize);
        let Some(newest) = found.events.last() else {
            return Err(ApiError::not_found("correlation", correlation_id));
        };
        staleness.include(newest.position);
        Ok(Answer {
            data: Correlation {
                correlation_id,
                is_truncated: found.until < u64::MAX,
                nodes: tree(found.events),
            },
            staleness,
        })
    }
}

/// The events as a tree, in the order of the log among those with the same cause.
fn tree(events: Vec<RecordedEvent>) -> Vec<Node> {
    let mut children = vec![Vec::new(); events.len()];
    let mut roots = Vec::new();
    for (index, cause) in causes(&events).into_iter().enumerate() {
        cause.map_or(&mut roots, |cause| &mut children[cause]).push(index);
    }
    let ids: Vec<_> = events.iter().map(|event| event.event_id).collect();
    let mut events: Vec<_> = events.into_iter().map(Some).collect();
    let mut nodes = Vec::with_capacity(events.len());
    // What is to be shown still; the next one is the last.
    let mut waiting: Vec<_> = roots.into_iter().rev().map(|root| (root, 0)).collect();
    while let Some((index, depth)) = waiting.pop() {
        let children = std::mem::take(&mut children[index]);
        waiting.extend(children.iter().rev().map(|child| (*child, depth + 1)));
        nodes.extend(events[index].take().map(|event| Node {
            event: event.into(),
            depth,
            children: children.into_iter().map(|child| ids[child]).collect(),
        }));
    }
    nodes
}

/// Where the cause of each event is, which comes before it. An event names its cause by the id of an event, or by the key of a
/// command, and then that command's first event counts.
fn causes(events: &[RecordedEvent]) -> Vec<Option<usize>> {
    let mut by_name: HashMap<String, usize> = HashMap::new();
    let cause = |(index, event): (usize, &RecordedEvent)| {
        let metadata = event.decoded_metadata();
        let (key, cause) = (metadata.idempotency_key, metadata.causation_id);
        let cause = cause.filter(|cause| *cause != key);
        let cause = cause.and_then(|cause| by_name.get(&cause).copied());
        by_name.entry(key).or_insert(index);
        by_name.insert(event.event_id.to_string(), index);
        cause
    };
    events.iter().enumerate().map(cause).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::OffsetDateTime;

    use super::*;

    /// An event whose id is its position, of a command with a key.
    fn event(position: u64, key: &str, cause: Option<&str>) -> RecordedEvent {
        let metadata =
            json!({"correlation_id": "checkout-77", "causation_id": cause, "idempotency_key": key});
        RecordedEvent {
            partition: 0,
            position,
            tenant_id: Uuid::nil(),
            category: "order".to_owned(),
            stream_id: "ord_1".to_owned(),
            stream_version: position,
            event_id: Uuid::from_u128(position.into()),
            event_type: "order.placed".to_owned(),
            schema_version: 1,
            payload: "{}".to_owned(),
            metadata: metadata.to_string().into(),
            recorded_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    fn id(position: u64) -> String {
        Uuid::from_u128(position.into()).to_string()
    }

    /// The positions of the nodes with their depths, and of their children.
    fn shape(events: Vec<RecordedEvent>) -> Vec<(u64, u32, Vec<u128>)> {
        let nodes = tree(events).into_iter().map(|node| {
            let children = node.children.iter().map(Uuid::as_u128).collect();
            (node.event.recorded.position, node.depth, children)
        });
        nodes.collect()
    }

    #[test]
    fn an_event_stands_below_the_event_or_the_command_that_caused_it() {
        let events = vec![
            event(1, "place", None),
            event(2, "reserve-1", Some(&id(1))),
            event(3, "reserve-2", Some("place")),
            event(4, "confirm", Some("reserve-1")),
            event(5, "note", None),
        ];
        let expected = vec![
            (1, 0, vec![2, 3]),
            (2, 1, vec![4]),
            (4, 2, vec![]),
            (3, 1, vec![]),
            (5, 0, vec![]),
        ];
        assert_eq!(shape(events), expected);
    }

    #[test]
    fn whose_cause_is_not_there_or_comes_later_stands_at_the_top() {
        let events = vec![
            event(1, "a", Some("of another correlation")),
            event(2, "b", Some("c")),
            event(3, "c", Some("b")),
            event(4, "d", Some("d")),
            event(5, "d", Some("d")),
        ];
        let expected = vec![
            (1, 0, vec![]),
            (2, 0, vec![3]),
            (3, 1, vec![]),
            (4, 0, vec![]),
            (5, 0, vec![]),
        ];
        assert_eq!(shape(events), expected);
    }

    #[test]
    fn a_long_chain_is_no_deep_answer() {
        let chain = (1..=1_000).map(|position| {
            let cause = id(position - 1);
            event(position, "", Some(&cause))
        });
        let nodes = tree(chain.collect());
        assert_eq!((nodes.len(), nodes[999].depth), (1_000, 999));
    }
}
