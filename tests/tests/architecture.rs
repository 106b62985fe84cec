//! The tree is the architecture: which crate may know which other.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Each crate and the crates of ours that it may depend on. What is not here may depend on nothing of ours.
const ALLOWED: &[(&str, &[&str])] = &[
    ("daybook-domain", &[]),
    ("daybook-postgres", &[]),
    ("daybook-event-store", &["daybook-postgres"]),
    ("daybook-event-bus", &["daybook-event-store"]),
    ("daybook-read-model", &["daybook-domain", "daybook-event-store"]),
    ("daybook-service", &["daybook-postgres"]),
    ("daybook-devstack", &[]),
    ("daybook-client", &["daybook-proto"]),
    ("daybook-proto", &["daybook-domain"]),
    (
        "daybook-command-svc",
        &[
            "daybook-domain",
            "daybook-event-bus",
            "daybook-event-store",
            "daybook-postgres",
            "daybook-proto",
            "daybook-service",
        ],
    ),
    (
        "daybook-projector",
        &[
            "daybook-event-bus",
            "daybook-event-store",
            "daybook-postgres",
            "daybook-proto",
            "daybook-read-model",
            "daybook-service",
        ],
    ),
    (
        "daybook-query-svc",
        &[
            "daybook-domain",
            "daybook-event-bus",
            "daybook-event-store",
            "daybook-postgres",
            "daybook-proto",
            "daybook-read-model",
            "daybook-service",
        ],
    ),
    (
        "daybook-cli",
        &[
            "daybook-client",
            "daybook-domain",
            "daybook-event-store",
            "daybook-postgres",
            "daybook-proto",
            "daybook-read-model",
            "daybook-service",
        ],
    ),
    ("daybook-simulation", &["daybook-domain", "daybook-event-store"]),
    ("xtask", &["daybook-devstack"]),
];

/// What would bring IO, a clock, randomness or an executor into the domain.
const NOT_IN_THE_DOMAIN: &[&str] = &[
    "async-nats",
    "axum",
    "rand",
    "sqlx",
    "time",
    "tokio",
    "tonic",
    "tracing",
];

/// The crates that may depend on everything: they test and measure everything.
const ABOVE_ALL: [&str; 2] = ["daybook-tests", "daybook-bench"];

fn dependencies() -> anyhow::Result<BTreeMap<String, BTreeSet<String>>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .output()?;
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
    Ok(packages
        .iter()
        .map(|package| {
            let listed = package["dependencies"].as_array().cloned().unwrap_or_default();
            let normal = listed.iter().filter(|dependency| dependency["kind"].is_null());
            (
                text(&package["name"]),
                normal.map(|dependency| text(&dependency["name"])).collect(),
            )
        })
        .collect())
}

#[test]
fn crates_depend_on_those_below_them_alone() -> anyhow::Result<()> {
    let all = dependencies()?;
    let ours: BTreeSet<&String> = all.keys().collect();
    assert!(ours.len() > 10, "the workspace was not read: {ours:?}");
    for (name, dependencies) in all.iter().filter(|(name, _)| !ABOVE_ALL.contains(&name.as_str())) {
        let allowed = ALLOWED.iter().find(|(crate_name, _)| crate_name == name);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("{name} is not in the list"));
        for dependency in dependencies.iter().filter(|dependency| ours.contains(dependency)) {
            assert!(
                allowed.contains(&dependency.as_str()),
                "{name} must not depend on {dependency}"
            );
        }
    }
    Ok(())
}

#[test]
fn the_domain_depends_on_nothing_that_does_io() -> anyhow::Result<()> {
    let all = dependencies()?;
    let domain = &all["daybook-domain"];
    assert!(!domain.is_empty(), "the domain's dependencies were not read");
    for dependency in NOT_IN_THE_DOMAIN {
        assert!(
            !domain.contains(*dependency),
            "the domain must not depend on {dependency}"
        );
    }
    Ok(())
}
