//! What each event of a history changed: the documents before and after it, from the read model's own fold.

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;

use daybook_event_store::RecordedEvent;
use daybook_read_model::{Event, FoldError, ReadModel, each_read_model};
use daybook_service::error::Code;
use daybook_service::{ApiError, identity::Principal};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Reads;
use super::history::Stream;
use super::replay::{ReplayError, decode};

/// How large a document may be that is compared, in bytes of JSON. It takes ten times as much when it is taken apart.
const DOCUMENT_BYTES_MAX: usize = 2 * 1_024 * 1_024;

/// How many bytes of JSON the changes of a page may be.
const CHANGES_BYTES_MAX: usize = 4 * 1_024 * 1_024;

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
    ///
    /// # Errors
    /// `PAYLOAD_TOO_LARGE` when the history is too long, or the documents or what changed are too large; `READ_MODEL_BEHIND` when
    /// it has an event that this program does not know.
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
        let Some(folding) = folding(stream.category()) else {
            return Ok(HashMap::new());
        };
        let comparison = Comparison {
            folding,
            first,
            document: None,
            changes: HashMap::new(),
            bytes: 0,
        };
        let add = |comparison: &mut Comparison, event: &RecordedEvent| {
            comparison.add(event).map(ControlFlow::Continue)
        };
        let compared = self.replay(caller, stream.id(), last, comparison, add).await?;
        Ok(compared.changes)
    }
}

/// A history whose last events are compared one with another.
struct Comparison {
    folding: Box<dyn Folding>,
    /// The first version that is compared.
    first: u64,
    /// The document after the last event that was compared.
    document: Option<Value>,
    changes: HashMap<Uuid, Vec<Change>>,
    /// How many bytes of JSON the changes are.
    bytes: usize,
}

impl Comparison {
    /// Adds the next event of the history.
    fn add(&mut self, recorded: &RecordedEvent) -> Result<(), ApiError> {
        let event = decode(recorded)?;
        let before = match self.document.take() {
            _ if recorded.stream_version < self.first => None,
            Some(document) => Some(document),
            None => Some(self.folding.document()?),
        };
        self.folding
            .apply(&event)
            .map_err(|source| ReplayError::fold(recorded, source))?;
        let Some(before) = before else {
            return Ok(());
        };
        let after = self.folding.document()?;
        let changes = compare(&before, &after);
        self.bytes += serde_json::to_vec(&changes).map_err(ApiError::internal)?.len();
        if self.bytes > CHANGES_BYTES_MAX {
            return Err(ApiError::answer_too_large(CHANGES_BYTES_MAX));
        }
        self.changes.insert(recorded.event_id, changes);
        self.document = Some(after);
        Ok(())
    }
}

/// A fold over the events of one aggregate, whatever the read model.
trait Folding: Send {
    fn apply(&mut self, event: &Event) -> Result<(), FoldError>;

    /// The document so far; an empty object before the first event.
    ///
    /// # Errors
    /// `PAYLOAD_TOO_LARGE` when it is.
    fn document(&self) -> Result<Value, ApiError>;
}

struct FoldingInto<M: ReadModel> {
    document: fn(&M::Row) -> String,
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
            self.row = M::replay(&key, self.row.take(), [event])?;
        }
        Ok(())
    }

    fn document(&self) -> Result<Value, ApiError> {
        let json = self.row.as_ref().map_or_else(|| "{}".to_owned(), self.document);
        if json.len() > DOCUMENT_BYTES_MAX {
            let message = format!("documents of more than {DOCUMENT_BYTES_MAX} bytes are not compared");
            let error = ApiError::new(Code::PayloadTooLarge, message);
            return Err(error.with_detail("limit_bytes", DOCUMENT_BYTES_MAX));
        }
        serde_json::from_str(&json).map_err(ApiError::internal)
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
    // Most parts are the same.
    if before == after {
        return;
    }
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
        (before, after) => changes.push(Change {
            pointer: pointer.to_owned(),
            before: before.cloned(),
            after: after.cloned(),
        }),
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
