//! What a service describes: a new operation is held to what every one refuses without anyone thinking of it.

use anyhow::{Context as _, ensure};
use daybook_service::identity::Scope;
use daybook_tests::client::Answer;
use serde_json::Value;

/// An operation, as the description has it.
pub(crate) struct Described {
    /// Its path, with the names of ids in braces.
    pub(crate) path: String,
    /// The scope that it needs.
    pub(crate) scope: Scope,
}

/// The operations of a method in a description that is served, those that are wanted; not fewer than `least`.
pub(crate) fn described(
    description: &Answer,
    method: &str,
    is_wanted: impl Fn(&Value) -> bool,
    least: usize,
) -> anyhow::Result<Vec<Described>> {
    ensure!(description.status == 200, "{description:?}");
    let description = description.json();
    let paths = description["paths"].as_object().context("it has paths")?;
    let operations = paths
        .iter()
        .filter_map(|(path, item)| Some((path, item.get(method)?)));
    let wanted = operations.filter(|(_, operation)| is_wanted(operation));
    let described = wanted.map(|(path, operation)| {
        let scope = operation.pointer("/security/0/api_key/0").and_then(Value::as_str);
        let scope = scope.and_then(Scope::by_name);
        Ok(Described {
            path: path.clone(),
            scope: scope.with_context(|| format!("{path} does not name its scope"))?,
        })
    });
    let described = described.collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(
        described.len() >= least,
        "the contract has shrunk to {} operations",
        described.len()
    );
    Ok(described)
}
