//! Lists that are answered from an index, or refused.
//!
//! A list has one table of [`AccessPath`]s: each is an index with what can be asked of it. From that table comes which
//! combinations of filters and sort are allowed ([`scan`]), what a refusal and the OpenAPI description say is possible, the
//! statement, and the test of the plans. So a page costs the same however deep in the list it begins, however the values are
//! distributed, and however old the planner's statistics are.

use std::fmt;

use serde::{Deserialize, Serialize};
use sqlx::Postgres;
use sqlx::postgres::PgArguments;
use sqlx::query::QueryAs;
use uuid::Uuid;

/// An index of a list of `R`, and what can be asked of it. Its columns are the tenant, [`equal`](Self::equal),
/// [`each`](Self::each) and [`order`](Self::order), all of them ascending: it is read forwards or backwards.
#[derive(Debug)]
pub struct AccessPath<R: 'static> {
    /// The index: its name behind the table's.
    pub index: &'static str,
    /// The filters that have to be given, with one value each.
    pub equal: &'static [&'static str],
    /// A filter that may be given, with several values of a closed set: each is a scan of its own, of a page.
    pub each: Option<&'static str>,
    /// The filters that may be given and bound the first column of the order.
    pub range: &'static [&'static str],
    /// Whether they have to be given: the index lacks the rows that have nothing in that column.
    pub needs_range: bool,
    /// The order, down to a column that is unique.
    pub order: &'static [Ordered<R>],
    /// Whether it can be read backwards as well.
    pub both_ways: bool,
}

/// A column that a list is ordered by.
#[derive(Debug)]
pub struct Ordered<R: 'static> {
    /// Its name in the contract.
    pub name: &'static str,
    /// The column of the table.
    pub column: &'static str,
    /// Whether the column rises where what the contract names falls.
    pub is_mirrored: bool,
    /// A row's value of the column, as Postgres reads it.
    pub value: fn(&R) -> String,
}

/// The sort of a list, as callers write it: `-placed_at,total_minor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sort(Vec<SortKey>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct SortKey {
    name: String,
    descending: bool,
}

impl Sort {
    /// Reads names with commas between them, each with a `-` before it for descending. Whether they mean anything is for
    /// [`scan`] to say.
    pub fn parse(text: &str) -> Self {
        let keys = text.split(',').map(|key| match key.strip_prefix('-') {
            Some(name) => SortKey::new(name, true),
            None => SortKey::new(key, false),
        });
        Self(keys.collect())
    }

    /// The first name that no access path has.
    pub fn unknown<R>(&self, paths: &[AccessPath<R>]) -> Option<&str> {
        let mut names = self.0.iter().map(|key| key.name.as_str());
        names.find(|name| !sort_names(paths).contains(name))
    }
}

/// The names that lists can be sorted by, alone or together.
pub fn sort_names<R>(paths: &[AccessPath<R>]) -> Vec<&'static str> {
    let mut names = Vec::new();
    for by in paths.iter().flat_map(|path| path.order) {
        if !names.contains(&by.name) {
            names.push(by.name);
        }
    }
    names
}

impl SortKey {
    fn new(name: &str, descending: bool) -> Self {
        Self {
            name: name.to_owned(),
            descending,
        }
    }
}

impl fmt::Display for SortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.descending { "-" } else { "" };
        write!(f, "{sign}{}", self.name)
    }
}

impl fmt::Display for Sort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<_> = self.0.iter().map(SortKey::to_string).collect();
        f.write_str(&keys.join(","))
    }
}

/// No index serves a combination of filters and sort.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{asked} cannot be served from an index; possible are: {possible}")]
pub struct NotServed {
    asked: String,
    possible: String,
}

/// The scan that answers a combination of filters and sort, by the first access path that serves it.
///
/// # Errors
/// When there is none; the message names what is possible.
pub fn scan<R>(
    paths: &'static [AccessPath<R>],
    filters: &[&'static str],
    sort: &Sort,
) -> Result<Scan<R>, NotServed> {
    let mut scans = paths.iter().filter_map(|path| path.scan(filters, sort));
    scans.next().ok_or_else(|| NotServed {
        asked: if filters.is_empty() {
            format!("sort={sort}")
        } else {
            format!("sort={sort} with {}", filters.join(", "))
        },
        possible: paths
            .iter()
            .map(AccessPath::to_string)
            .collect::<Vec<_>>()
            .join("; "),
    })
}

impl<R> AccessPath<R> {
    /// The filters that have to be given.
    pub fn needed(&self) -> impl Iterator<Item = &'static str> {
        let range = self.range.iter().filter(|_| self.needs_range);
        self.equal.iter().chain(range).copied()
    }

    /// The filters that may be given, beside those.
    pub fn optional(&self) -> impl Iterator<Item = &'static str> {
        let range = self.range.iter().filter(|_| !self.needs_range);
        self.each.into_iter().chain(range.copied())
    }

    /// The columns of the index behind the tenant.
    pub fn columns(&self) -> Vec<&'static str> {
        let filters = self.equal.iter().copied().chain(self.each);
        filters.chain(self.order.iter().map(|by| by.column)).collect()
    }

    /// The ways in which it can be read.
    pub fn scans(&'static self) -> impl Iterator<Item = Scan<R>> {
        let ways = if self.both_ways {
            &[false, true][..]
        } else {
            &[false]
        };
        ways.iter().map(|descending| Scan {
            path: self,
            descending: *descending,
        })
    }

    fn scan(&'static self, filters: &[&'static str], sort: &Sort) -> Option<Scan<R>> {
        let knows = |filter: &&str| self.needed().chain(self.optional()).any(|known| known == *filter);
        if !filters.iter().all(knows) || !self.needed().all(|needed| filters.contains(&needed)) {
            return None;
        }
        self.scans().find(|scan| scan.order().0.starts_with(&sort.0))
    }
}

impl<R> fmt::Display for AccessPath<R> {
    /// The sorts and filters that it serves: `total_minor,placed_at or -total_minor,-placed_at with currency (and with
    /// status)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The last column only makes the order unique, where it is not the only one.
        let shown = (self.order.len() - 1).max(1);
        let order = |descending| {
            let keys = self.order[..shown].iter().map(|by| by.sort_key(descending));
            Sort(keys.collect())
        };
        order(false).fmt(f)?;
        if self.both_ways {
            write!(f, " or {}", order(true))?;
        }
        let needed: Vec<_> = self.needed().collect();
        if !needed.is_empty() {
            write!(f, " with {}", needed.join(" and "))?;
        }
        let optional: Vec<_> = self.optional().collect();
        if !optional.is_empty() {
            write!(f, " (and with {})", optional.join(", "))?;
        }
        Ok(())
    }
}

impl<R> Ordered<R> {
    fn sort_key(&self, descending: bool) -> SortKey {
        SortKey::new(self.name, descending != self.is_mirrored)
    }
}

/// An access path, read one way.
#[derive(Debug)]
pub struct Scan<R: 'static> {
    path: &'static AccessPath<R>,
    descending: bool,
}

impl<R> Clone for Scan<R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Scan<R> {}

/// A place in a list: what its last row has in the columns of the order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyset(pub(crate) Vec<String>);

impl<R> Scan<R> {
    /// The index that is read.
    pub fn index(self) -> &'static str {
        self.path.index
    }

    pub(crate) fn has_each(self) -> bool {
        self.path.each.is_some()
    }

    /// The order of the list, down to what makes it unique.
    pub fn order(self) -> Sort {
        let keys = self.path.order.iter().map(|by| by.sort_key(self.descending));
        Sort(keys.collect())
    }

    /// The place of a row in the list; the next page begins after the last row's.
    pub fn keyset(self, row: &R) -> Keyset {
        Keyset(self.path.order.iter().map(|by| (by.value)(row)).collect())
    }
}

/// The bounds of a scan.
#[derive(Debug, Default)]
pub(crate) struct Bounds<'a> {
    /// The values of [`AccessPath::equal`].
    pub(crate) equal: Vec<&'a str>,
    /// The values of [`AccessPath::each`]: all of them where none is asked for. Empty where there is no such column.
    pub(crate) each: Vec<&'a str>,
    /// The least value of the first column of the order.
    pub(crate) from: Option<String>,
    /// Upper bound of that column, exclusive.
    pub(crate) before: Option<String>,
}

impl Bounds<'_> {
    /// All texts that begin like this. (Everything here sorts by code points.)
    pub(crate) fn starting_with(prefix: &str) -> Self {
        let mut next = prefix.to_owned();
        let before = loop {
            let Some(last) = next.pop() else { break None };
            if let Some(following) = (last..=char::MAX).nth(1) {
                next.push(following);
                break Some(next);
            }
        };
        Self {
            from: Some(prefix.to_owned()),
            before,
            ..Self::default()
        }
    }
}

/// The parameters of a statement that selects from `read_model.page(NULL::read_model.<view>, $1, …, $9)`.
pub(crate) fn bind_page<'q, O, R>(
    query: QueryAs<'q, Postgres, O, PgArguments>,
    tenant_id: Uuid,
    scan: Scan<R>,
    bounds: &'q Bounds<'q>,
    after: Option<&'q Keyset>,
    limit: u32,
) -> QueryAs<'q, Postgres, O, PgArguments> {
    query
        .bind(tenant_id)
        .bind(scan.path.columns())
        .bind(&bounds.equal)
        .bind(&bounds.each)
        .bind(&bounds.from)
        .bind(&bounds.before)
        .bind(scan.descending)
        .bind(after.map(|place| &place.0))
        .bind(i64::from(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Row;

    const BY_NAME: Ordered<Row> = Ordered {
        name: "name",
        column: "name",
        is_mirrored: false,
        value: |_| String::new(),
    };
    const BY_AGE: Ordered<Row> = Ordered {
        name: "age",
        column: "youth",
        is_mirrored: true,
        value: |_| String::new(),
    };
    static PATHS: [AccessPath<Row>; 2] = [
        AccessPath {
            index: "name",
            equal: &[],
            each: Some("kind"),
            range: &["name_from"],
            needs_range: false,
            order: &[BY_NAME],
            both_ways: false,
        },
        AccessPath {
            index: "town",
            equal: &["town"],
            each: None,
            range: &[],
            needs_range: false,
            order: &[BY_AGE, BY_NAME],
            both_ways: true,
        },
    ];

    fn found(filters: &[&'static str], sort: &str) -> Option<(&'static str, bool)> {
        let scan = scan(&PATHS, filters, &Sort::parse(sort)).ok()?;
        Some((scan.index(), scan.descending))
    }

    #[test]
    fn a_combination_is_served_by_the_index_that_has_its_filters_and_its_order() {
        assert_eq!(found(&[], "name"), Some(("name", false)));
        assert_eq!(found(&["kind", "name_from"], "name"), Some(("name", false)));
        assert_eq!(found(&["town"], "-age"), Some(("town", false)));
        assert_eq!(found(&["town"], "-age,name"), Some(("town", false)));
        assert_eq!(found(&["town"], "age,-name"), Some(("town", true)));
    }

    #[test]
    fn what_no_index_serves_is_refused_with_what_is_possible() {
        for (filters, sort) in [
            (&[][..], "-name"),
            (&[], "age"),
            (&["town", "kind"], "age"),
            (&["town"], "age,name"),
            (&["town"], "age,-name,-name"),
            (&["town"], "name"),
            (&[], ""),
            (&[], "-"),
            (&[], "name,"),
            (&[], "NAME"),
        ] {
            assert_eq!(found(filters, sort), None, "{filters:?} {sort}");
        }
        let refused = scan(&PATHS, &["town"], &Sort::parse("name")).expect_err("no index has it");
        assert_eq!(
            refused.to_string(),
            "sort=name with town cannot be served from an index; possible are: name (and with kind, name_from); \
             -age or age with town"
        );
    }

    #[test]
    fn what_begins_like_a_text_lies_before_the_next_that_does_not() {
        let before = |prefix| Bounds::starting_with(prefix).before;
        assert_eq!(before("ab").as_deref(), Some("ac"));
        assert_eq!(before("a\u{d7ff}").as_deref(), Some("a\u{e000}"));
        assert_eq!(before("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(before("\u{10ffff}"), None);
    }
}
