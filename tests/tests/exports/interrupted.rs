//! Exports that do not go through at once.

use anyhow::Context as _;
use daybook_devstack::process::Signal;
use daybook_tests::rest::Rest;
use daybook_tests::stack::{Backend, Role};
use daybook_tests::wait;
use http::Method;
use serde_json::json;

use crate::support::{MANY, chunks, ended, exported, get, hold, is_held, many, taken, whole};

/// A service, and a tenant with much to export.
async fn backend() -> anyhow::Result<(Backend, Rest)> {
    let backend = Backend::start(1).await?;
    many(&backend.servers.database, backend.tenant.tenant_id).await?;
    let auditor = Rest::new(&backend.commands[0].url(), &backend.tenant.auditor_key);
    Ok((backend, auditor))
}

#[tokio::test]
async fn an_export_whose_service_is_killed_is_finished_by_another_one_and_is_the_same_file()
-> anyhow::Result<()> {
    for format in ["ndjson", "csv"] {
        let (mut backend, auditor) = backend().await?;
        let body = json!({"format": format});
        let holding = hold(&backend.superuser).await?;
        let location = taken(&auditor, &body).await?;
        is_held(&backend.superuser).await?;
        let operation = get(&auditor, &location).await?.json()["data"].clone();
        assert_eq!(operation["state"], "RUNNING");
        assert_eq!(operation["export"]["positions_done"], 2_000, "{operation}");
        assert!(operation["estimated_completion"].is_string(), "{operation}");
        let early = get(&auditor, &format!("{location}/output")).await?;
        assert_eq!(
            (early.status, &early.json()["code"]),
            (409, &"OPERATION_RUNNING".into())
        );

        let process = backend.commands[0].service.process_id().context("it runs")?;
        process.signal(Signal::KILL);
        backend.commands[0].service.stop().await?;
        drop(holding);
        let other = backend.servers.run(Role::Command, &[]).await?;
        let auditor = Rest::new(&other.url(), &backend.tenant.auditor_key);
        let (interrupted, file) = whole(&auditor, &location).await?;
        assert_eq!(interrupted["manifest"]["events"], MANY);
        let (at_once, same) = exported(&auditor, &body).await?;
        assert_eq!(interrupted["manifest"], at_once["manifest"]);
        assert!(file.body == same.body, "the files differ");
    }
    Ok(())
}

#[tokio::test]
async fn an_export_that_is_cancelled_ends_and_leaves_no_file() -> anyhow::Result<()> {
    let (backend, auditor) = backend().await?;
    let holding = hold(&backend.superuser).await?;
    let location = taken(&auditor, &json!({"format": "ndjson"})).await?;
    is_held(&backend.superuser).await?;
    let cancelled = auditor
        .send(Method::POST, &format!("{location}/cancel"), &[], "")
        .await?;
    assert_eq!(cancelled.json()["data"]["state"], "CANCELLING");
    drop(holding);
    let operation = ended(&auditor, &location).await?;
    assert_eq!(operation["state"], "CANCELLED");
    assert!(
        operation["manifest"].is_null() && operation["error"].is_null(),
        "{operation}"
    );
    assert_eq!(get(&auditor, &format!("{location}/output")).await?.status, 404);
    assert_eq!(chunks(&backend.superuser).await?, 0);
    Ok(())
}

#[tokio::test]
async fn an_export_goes_on_in_a_history_that_has_all_of_it_and_fails_in_another_one() -> anyhow::Result<()> {
    for (common, state) in [(MANY, "SUCCEEDED"), (MANY - 1, "FAILED")] {
        let (backend, auditor) = backend().await?;
        let holding = hold(&backend.superuser).await?;
        let location = taken(&auditor, &json!({"format": "ndjson"})).await?;
        is_held(&backend.superuser).await?;
        sqlx::query("SELECT event_store.fork(0, 0, 'a test', $1)")
            .bind(i64::try_from(common)?)
            .execute(&backend.superuser)
            .await?;
        drop(holding);
        let operation = ended(&auditor, &location).await?;
        assert_eq!(operation["state"], state, "{operation}");
        if state == "FAILED" {
            assert_eq!(operation["error"]["code"], "POSITION_UNKNOWN");
            assert_eq!(get(&auditor, &format!("{location}/output")).await?.status, 404);
            assert_eq!(chunks(&backend.superuser).await?, 0);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_file_goes_with_its_operation_when_that_is_old() -> anyhow::Result<()> {
    let (backend, auditor) = backend().await?;
    exported(&auditor, &json!({"format": "ndjson"})).await?;
    let aged = "UPDATE event_store.operation SET ended_at = now() - interval '31 days'";
    sqlx::query(aged).execute(&backend.superuser).await?;
    // Each process looks for what is old when it starts.
    let _other = backend.servers.run(Role::Command, &[]).await?;
    wait::until("nothing is left of it", async || {
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM event_store.operation")
            .fetch_one(&backend.superuser)
            .await?;
        Ok(left == 0 && chunks(&backend.superuser).await? == 0)
    })
    .await
}
