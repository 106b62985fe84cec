//! `fields=`: only the members that the caller wants.

use serde_json::{Map, Value};

/// The members of an object that a caller wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields(Vec<&'static str>);

impl Fields {
    /// Reads names, out of those that are known.
    ///
    /// # Errors
    /// The first name that is not known.
    pub fn parse<'a>(
        names: impl IntoIterator<Item = &'a str>,
        known: &'static [&'static str],
    ) -> Result<Self, &'a str> {
        let find = |name: &'a str| known.iter().copied().find(|field| *field == name).ok_or(name);
        let mut fields: Vec<_> = names.into_iter().map(find).collect::<Result<_, _>>()?;
        fields.sort_unstable();
        fields.dedup();
        Ok(Self(fields))
    }

    /// These, and what was asked for by itself: expanded members.
    #[must_use]
    pub fn with(mut self, expanded: impl IntoIterator<Item = &'static str>) -> Self {
        self.0.extend(expanded);
        self.0.sort_unstable();
        self.0.dedup();
        self
    }

    /// Whether a member is wanted.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains(&name)
    }

    /// Keeps the selected members of an object. Members that it does not have stay absent.
    pub fn select(&self, object: Value) -> Value {
        let Value::Object(mut members) = object else {
            return object;
        };
        let wanted = self.0.iter().filter_map(|field| members.remove_entry(*field));
        Value::Object(wanted.collect::<Map<_, _>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const KNOWN: &[&str] = &["order_id", "status", "total"];

    #[test]
    fn only_the_wanted_members_are_left() {
        let fields = Fields::parse(["total", "order_id"], KNOWN).expect("all are known");
        let order = json!({"order_id": "ord_1", "status": "PLACED", "total": {"minor": 5}});
        assert_eq!(
            fields.select(order),
            json!({"order_id": "ord_1", "total": {"minor": 5}})
        );
        assert_eq!(fields.select(json!({"status": "PLACED"})), json!({}));
    }

    #[test]
    fn a_selection_is_the_same_however_it_is_written() {
        let one = Fields::parse(["total", "order_id"], KNOWN).expect("all are known");
        let other = Fields::parse(["order_id", "total", "order_id"], KNOWN).expect("all are known");
        assert_eq!(one, other);
    }

    #[test]
    fn what_is_expanded_is_among_them() {
        let fields = Fields::parse(["total"], KNOWN).expect("all are known");
        let fields = fields.with(["lines"]);
        assert!(fields.has("lines") && fields.has("total") && !fields.has("status"));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert_eq!(Fields::parse(["status", "colour"], KNOWN), Err("colour"));
        assert_eq!(Fields::parse([""], KNOWN), Err(""));
    }
}
