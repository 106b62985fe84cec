//! What each event of a history changed: the documents before and after it, from the read model's own fold.

use std::collections::{BTreeSet, HashMap};

use daybook_event_store::RecordedEvent;
use daybook_read_model::{Event, FoldError, ReadModel, StreamKey, each_read_model};
use daybook_service::{ApiError, identity::Principal};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Reads;
use super::history::Stream;
use super::order::{ReplayError, decode};

/// A part of a document that an event changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Change {
    /// Which part, as a JSON pointer (RFC 6901).
    pub pointer: String,
    /// What it was before; absent where it was not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub before: Option<Value>,
    /// What it is since then; absent where it is not there any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub after: Option<Value>,
}

impl Reads {
    /// What each of some consecutive events of a stream changed, by the events' ids. Nothing where no read model has documents
    /// of such aggregates.
    pub(super) async fn changes(
        &self,
        caller: &Principal,
        stream: &Stream,
        events: &[RecordedEvent],
    ) -> Result<HashMap<Uuid, Vec<Change>>, ApiError> {
        let versions = || events.iter().map(|event| event.stream_version);
        let (Some(first), Some(last)) = (versions().min(), versions().max()) else {
            return Ok(HashMap::new());
        };
        let Some(mut folding) = folding(stream.category()) else {
            return Ok(HashMap::new());
        };
        let key = StreamKey {
            tenant_id: caller.tenant_id,
            stream_id: stream.id().to_owned(),
        };
        let (mut changes, mut next) = (HashMap::new(), 1);
        while next <= last {
            let events = self
                .events_from(&key, caller.tenant_partition, next, last)
                .await?;
            let Some(newest) = events.last() else {
                break;
            };
            next = newest.stream_version + 1;
            for recorded in &events {
                let event = decode(recorded).map_err(ApiError::internal)?;
                let is_shown = recorded.stream_version >= first;
                let before = is_shown.then(|| folding.document());
                folding
                    .apply(&event)
                    .map_err(|source| ApiError::internal(ReplayError::fold(recorded, source)))?;
                if let Some(before) = before {
                    changes.insert(recorded.event_id, compare(&before, &folding.document()));
                }
            }
        }
        Ok(changes)
    }
}

/// A fold over the events of one aggregate, whatever the read model.
trait Folding: Send {
    fn apply(&mut self, event: &Event) -> Result<(), FoldError>;

    /// The document so far; an empty object before the first event.
    fn document(&self) -> Value;
}

struct FoldingInto<M: ReadModel> {
    document: fn(&M::Row) -> Value,
    row: Option<M::Row>,
}

impl<M: ReadModel> FoldingInto<M> {
    fn of(category: &str) -> Option<Box<dyn Folding>> {
        let document = M::DOCUMENT.filter(|_| M::CATEGORIES.include(Some(category)))?;
        Some(Box::new(Self { document, row: None }))
    }
}

impl<M: ReadModel> Folding for FoldingInto<M> {
    fn apply(&mut self, event: &Event) -> Result<(), FoldError> {
        for key in M::keys(event) {
            if let Some(changed) = M::fold(&key, self.row.as_ref(), event)? {
                self.row = Some(changed);
            }
        }
        Ok(())
    }

    fn document(&self) -> Value {
        let row = self.row.as_ref();
        row.map_or_else(|| Value::Object(Map::new()), self.document)
    }
}

/// The fold of the read model that has documents of aggregates of this category.
fn folding(category: &str) -> Option<Box<dyn Folding>> {
    let folding = each_read_model!(M => FoldingInto::<M>::of(category));
    folding.into_iter().flatten().next()
}

/// The parts of a document that differ, in the order of their names. Items of arrays are compared place by place.
fn compare(before: &Value, after: &Value) -> Vec<Change> {
    let mut changes = Vec::new();
    add_changes("", Some(before), Some(after), &mut changes);
    changes
}

fn add_changes(pointer: &str, before: Option<&Value>, after: Option<&Value>, changes: &mut Vec<Change>) {
    match (before, after) {
        (Some(Value::Object(before)), Some(Value::Object(after))) => {
            let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for name in names {
                let part = format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"));
                add_changes(&part, before.get(name), after.get(name), changes);
            }
        }
        (Some(Value::Array(before)), Some(Value::Array(after))) => {
            for index in 0..before.len().max(after.len()) {
                let part = format!("{pointer}/{index}");
                add_changes(&part, before.get(index), after.get(index), changes);
            }
        }
        (before, after) if before != after => changes.push(Change {
            pointer: pointer.to_owned(),
            before: before.cloned(),
            after: after.cloned(),
        }),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn change(pointer: &str, before: Option<Value>, after: Option<Value>) -> Change {
        Change {
            pointer: pointer.to_owned(),
            before,
            after,
        }
    }

    #[test]
    fn parts_that_differ_are_told_with_what_they_were_and_are() {
        let before =
            json!({"status": "PLACED", "total": {"minor": 5, "currency": "EUR"}, "lines": [1, 2], "a/b~": 1});
        let after =
            json!({"status": "PLACED", "total": {"minor": 7, "currency": "EUR"}, "lines": [1], "paid": null});
        let expected = [
            change("/a~1b~0", Some(json!(1)), None),
            change("/lines/1", Some(json!(2)), None),
            change("/paid", None, Some(Value::Null)),
            change("/total/minor", Some(json!(5)), Some(json!(7))),
        ];
        assert_eq!(compare(&before, &after), expected);
        assert_eq!(compare(&after, &after), []);
    }

    #[test]
    fn a_part_of_another_kind_is_told_as_a_whole() {
        let changes = compare(&json!({"lines": [1]}), &json!({"lines": {"first": 1}}));
        assert_eq!(
            changes,
            [change("/lines", Some(json!([1])), Some(json!({"first": 1})))]
        );
    }

    #[test]
    fn every_aggregate_has_documents() {
        for kind in daybook_domain::aggregates::AGGREGATES {
            assert!(folding(kind.category).is_some(), "{}", kind.category);
        }
    }
}
