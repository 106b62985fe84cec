//! Appends and reads, each as one call of a function of the schema.

use daybook_event_store::{AppendError, Direction, EventStore, NewCommand, STATEMENTS, append, may_go_on};
use daybook_tests::database::Database;
use daybook_tests::log::{self, METADATA};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use uuid::Uuid;

use super::{Log, TENANT, after, assert_dense, command, decision, leads_to, question, with_key};

#[tokio::test]
async fn events_get_consecutive_positions_and_come_back_byte_for_byte() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    let first = command("a", None, 2);
    let batch = [first.clone(), after(&first, 1), command("b", None, 1)];
    assert_eq!(log.append(&batch).await?, ["written@1", "written@1", "written@4"]);
    let events = log.events().await?;
    assert_dense(&events);
    assert_eq!(events.len(), 4);
    assert_eq!(events[1].payload, r#"{"index":  1, "index": 1}"#);
    assert_eq!(Some(events[1].event_id), leads_to(&batch[0]));
    assert_eq!(Some(events[2].event_id), leads_to(&batch[1]));
    assert_eq!(&*events[1].metadata, METADATA);
    Ok(())
}

#[tokio::test]
async fn what_was_decided_on_another_event_is_not_written_and_fails_nobody_else() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    let first = command("a", None, 3);
    let on_nothing_known = command("b", Some(Uuid::from_u128(9)), 1);
    let written = log
        .append(&[first.clone(), on_nothing_known, command("c", None, 1)])
        .await?;
    assert_eq!(written, ["written@1", "not written, newest v0", "written@4"]);
    // The whole chain falls with its root, also where the versions would fit.
    let on_the_second = command("a", Some(decision(&first).events[1].event_id), 1);
    let behind = after(&on_the_second, 1);
    assert_eq!(
        log.append(&[on_the_second, behind]).await?,
        ["not written, newest v3"; 2]
    );
    assert_eq!(log.append(&[after(&first, 1)]).await?, ["written@5"]);
    assert_dense(&log.events().await?);
    Ok(())
}

/// Two that decide ahead reach one version by different events: a count would let both in.
#[tokio::test]
async fn two_chains_of_one_length_on_one_stream_do_not_mix() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    let (ours, theirs) = (command("a", None, 1), command("a", None, 1));
    assert_eq!(log.append(&[ours]).await?, ["written@1"]);
    assert_eq!(
        log.append(&[after(&theirs, 1)]).await?,
        ["not written, newest v1"]
    );
    assert_eq!(log.events().await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_chain_stands_up_to_its_first_known_key() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    assert_eq!(
        log.append(&[with_key(command("other", None, 2), "k")]).await?,
        ["written@1"]
    );
    let first = command("a", None, 1);
    let refusal = after(&first, 0);
    let known = with_key(after(&refusal, 1), "k");
    let behind = after(&known, 1);
    let elsewhere = command("b", None, 1);
    let verdicts = log
        .append(&[first.clone(), refusal, known, behind, elsewhere])
        .await?;
    assert_eq!(
        verdicts,
        [
            "written@3",
            "written@3",
            "known",
            "not written, newest v0",
            "written@4"
        ]
    );
    assert_eq!(log.append(&[after(&first, 1)]).await?, ["written@5"]);
    assert_dense(&log.events().await?);
    Ok(())
}

/// Commands that open streams of their own, all together or not at all.
fn group(streams: &[&str]) -> Vec<NewCommand> {
    let group = Some(Uuid::now_v7());
    let open = |stream: &&str| NewCommand {
        group,
        ..command(stream, None, 2)
    };
    streams.iter().map(open).collect()
}

#[tokio::test]
async fn a_group_stands_as_a_whole_or_not_at_all() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    let there = with_key(command("there", None, 1), "known");
    log.append(std::slice::from_ref(&there)).await?;
    let mut batch = vec![command("before", None, 1)];
    batch.extend(group(&["a", "there", "b"]));
    batch.push(command("between", None, 1));
    let mut with_known_key = group(&["c", "d"]);
    with_known_key[1].key = "known".into();
    batch.extend(with_known_key);
    batch.extend(group(&["e", "f"]));
    assert_eq!(
        log.append(&batch).await?,
        [
            "written@2",
            "not written, newest v0",
            "not written, newest v1",
            "not written, newest v0",
            "written@3",
            "not written, newest v0",
            "known",
            "written@4",
            "written@6"
        ]
    );
    assert_dense(&log.events().await?);
    let whole = group(&["a", "b"]);
    assert_eq!(log.append(&whole).await?, ["written@8", "written@10"]);
    assert_eq!(log.append(&whole).await?, ["known", "known"], "sent again");
    assert_dense(&log.events().await?);
    Ok(())
}

#[tokio::test]
async fn a_question_writes_nothing_and_holds_nobody_up() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    let first = with_key(command("a", None, 1), "k");
    let batch = [question("a", "x"), first.clone(), question("a", "y")];
    assert_eq!(
        log.append(&batch).await?,
        ["not written, newest v0", "written@1", "not written, newest v0"]
    );
    let batch = [question("a", "x"), question("b", "k"), after(&first, 1)];
    assert_eq!(
        log.append(&batch).await?,
        ["not written, newest v1", "known", "written@2"]
    );
    assert_eq!(log.events().await?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn an_append_under_another_isolation_is_refused() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    for isolation in ["REPEATABLE READ", "SERIALIZABLE"] {
        log.connection
            .execute(AssertSqlSafe(format!("BEGIN ISOLATION LEVEL {isolation}")))
            .await?;
        let refused = append(&mut log.connection, 0, &[command("a", None, 1)]).await;
        assert!(matches!(refused, Err(AppendError::Unknown(_))), "{refused:?}");
        log.connection.execute("ROLLBACK").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_commit_is_flushed_whatever_the_database_has_for_a_default() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    log.connection.execute("SET synchronous_commit = off").await?;
    log.connection.execute("BEGIN").await?;
    log.append(&[command("a", None, 1)]).await?;
    let setting: String = sqlx::query_scalar("SHOW synchronous_commit")
        .fetch_one(&mut log.connection)
        .await?;
    assert_eq!(setting, "on");
    Ok(())
}

#[tokio::test]
async fn a_stream_is_read_both_ways_in_pages_and_by_its_tenant_alone() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    log.append(&[command("a", None, 25), command("b", None, 5)])
        .await?;
    let store = EventStore::new(log.database.pool("daybook_query").await?);
    let read = async |tenant, from, limit, direction| -> anyhow::Result<Vec<u64>> {
        let events = store.read_stream(tenant, 0, "a", from, limit, direction).await?;
        Ok(events.iter().map(|event| event.stream_version).collect())
    };
    assert_eq!(
        read(TENANT, 1..=u64::MAX, 10, Direction::Forward).await?,
        (1..=10).collect::<Vec<_>>()
    );
    assert_eq!(read(TENANT, 11..=12, 10, Direction::Forward).await?, [11, 12]);
    assert_eq!(read(TENANT, 1..=20, 3, Direction::Backward).await?, [20, 19, 18]);
    assert_eq!(
        read(Uuid::from_u128(2), 1..=u64::MAX, 10, Direction::Forward).await?,
        [0_u64; 0]
    );
    Ok(())
}

/// One that wrote much must not fill the memory of whoever reads it.
#[tokio::test]
async fn a_stream_is_read_no_further_than_eight_mebibytes_at_once_and_then_on() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    let large = || log::event(format!("{:?}", "x".repeat(5 * 1_024 * 1_024)));
    let events = vec![large(), large(), large()];
    log.append(&[log::command(TENANT, "a", None, events)]).await?;
    let store = EventStore::new(log.database.pool("daybook_query").await?);
    for (versions, direction, expected, is_cut) in [
        (1..=u64::MAX, Direction::Forward, vec![1, 2], true),
        (3..=u64::MAX, Direction::Forward, vec![3], false),
        (1..=3, Direction::Backward, vec![3, 2], true),
        (1..=1, Direction::Backward, vec![1], false),
    ] {
        let events = store.read_stream(TENANT, 0, "a", versions, 10, direction).await?;
        let read: Vec<_> = events.iter().map(|event| event.stream_version).collect();
        assert_eq!((read, may_go_on(&events, 10)), (expected, is_cut));
    }
    Ok(())
}

#[tokio::test]
async fn recording_times_never_fall() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    let store = EventStore::new(log.database.pool("daybook_query").await?);
    assert_eq!(store.head(0).await?.recorded_at, None);
    for round in 0..20 {
        log.append(&[command(&format!("a-{round}"), None, 3)]).await?;
    }
    let events = log.events().await?;
    assert!(events.is_sorted_by_key(|event| event.recorded_at));
    // A clock that went back: the next event is recorded no earlier than the one before.
    let superuser = log.database.superuser().await?;
    sqlx::raw_sql(
        "ALTER TABLE event_store.event DISABLE TRIGGER event_is_immutable;
         UPDATE event_store.event SET recorded_at = now() + interval '1 hour' WHERE position = 60",
    )
    .execute(&superuser)
    .await?;
    log.append(&[command("b", None, 1)]).await?;
    let newest = log.events().await?.pop().expect("there are events");
    assert!(newest.recorded_at > events[59].recorded_at + time::Duration::minutes(59));
    Ok(())
}

#[tokio::test]
async fn every_statement_can_be_prepared_against_the_migrated_schema() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let superuser = log.database.superuser().await?;
    let prepare = async |name: &str, statement: String| -> anyhow::Result<()> {
        let prepare = format!("PREPARE \"{name}\" AS {statement}");
        sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&superuser).await?;
        Ok(())
    };
    for (name, statement) in daybook_event_store::STATEMENTS {
        prepare(name, (*statement).to_owned()).await?;
    }
    for (name, statement) in daybook_read_model::statements() {
        use sqlx::SqlSafeStr as _;
        prepare(&name, statement.into_sql_str().as_str().to_owned()).await?;
    }
    Ok(())
}

/// Ids that sort behind everything that a tenant has are not looked up; those before it must be, wherever they are.
#[tokio::test]
async fn in_a_large_batch_every_known_key_and_every_stream_is_found_wherever_it_sorts() -> anyhow::Result<()>
{
    let mut log = Log::new().await?;
    let uuid = |number: u128| Uuid::from_u128(number << 64).to_string();
    let known = [uuid(3), uuid(7), "order-5".to_owned(), "order-9".to_owned()];
    for (number, key) in known.iter().enumerate() {
        log.append(&[with_key(command(&format!("s{number}"), None, 1), key)])
            .await?;
    }
    for last in &known {
        let mut batch: Vec<_> = (10..30)
            .map(|number| command(&format!("n{number}-{last}"), None, 1))
            .collect();
        for (one, key) in batch.iter_mut().zip(["1", "4", "6", "order-1", "order-7"]) {
            one.key = format!("{key}-{last}").into();
        }
        batch.push(with_key(command("t", None, 1), last));
        // Of these streams there are events.
        batch.extend(["s0", "s1", "s2", "s3"].map(|stream| command(stream, None, 1)));
        let became = log.append(&batch).await?;
        let written = became.iter().filter(|one| one.starts_with("written")).count();
        assert_eq!(written, 20, "{became:?}");
        assert_eq!(became[20], "known", "{last}");
        assert_eq!(became[21..], ["not written, newest v1"; 4], "{last}");
    }
    assert_dense(&log.events().await?);
    Ok(())
}

/// Stream ids are compared as bytes, whatever a database sorts texts by.
#[tokio::test]
async fn a_database_that_sorts_as_a_language_does_judges_alike() -> anyhow::Result<()> {
    let Some(database) = Database::create_sorted("en-US").await? else {
        eprintln!("SKIPPED: this Postgres has no ICU");
        return Ok(());
    };
    database.add_tenants(&[TENANT]).await?;
    let mut connection = PgConnection::connect(&database.url("daybook_command")).await?;
    let upper = command("B", None, 1);
    append(&mut connection, 0, &[upper.clone(), command("a9", None, 1)]).await?;
    let mut batch: Vec<_> = (0..9)
        .map(|number| command(&format!("b{number}"), None, 1))
        .collect();
    batch.push(after(&upper, 1));
    let judgement = append(&mut connection, 0, &batch).await?;
    assert!(log::is_written_whole(&batch, &judgement), "{judgement:?}");
    Ok(())
}

/// Positions and versions without holes are the log's own rule, not its callers' promise.
#[tokio::test]
async fn a_batch_whose_events_would_leave_a_hole_is_refused_as_a_whole() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    log.append(&[command("a", None, 1)]).await?;
    for (stream, indexes) in ["1, 5", "1, -1000000", "0, 0"].into_iter().enumerate() {
        let append = format!(
            "SELECT event_store.append(
                 0, ARRAY['{TENANT}'::uuid], '{{}}', '{{}}', '{{1}}', '{{b{stream}}}', '{{order}}', '{{NULL}}', '{{1}}', '{{2}}',
                 '{{2}}', '{{}}', '{{}}', '{{1}}', ARRAY['\\x0171'::bytea], '{{7}}', ARRAY['{{}}'::json], '{{2}}', '{{0}}', '{{NULL}}',
                 '{{1, 1}}', '{{{indexes}}}', ARRAY[gen_random_uuid(), gen_random_uuid()], '{{t, t}}', '{{1, 1}}',
                 ARRAY['{{}}'::json, '{{}}'])"
        );
        let refused = log.connection.execute(AssertSqlSafe(append.clone())).await;
        assert!(refused.is_err(), "indexes {indexes} are taken");
        let whole = append
            .replace(indexes, "0, 1")
            .replace("\\x0171", &format!("\\x016{stream}"));
        log.connection.execute(AssertSqlSafe(whole)).await?;
        assert_dense(&log.events().await?);
    }
    Ok(())
}

/// Counts that are none, or negative, and chains that are not in the order of their commands.
#[tokio::test]
async fn a_batch_whose_chains_do_not_fit_its_commands_is_refused_as_a_whole() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    let batch = |stream: &str,
                 command_chain: &str,
                 first: &str,
                 end: &str,
                 chain_events: &str,
                 index: &str| {
        format!(
            "SELECT event_store.append(
                 0, ARRAY['{TENANT}'::uuid], '{{}}', '{{}}', '{{1, 1}}', '{{{stream}, {stream}-2}}', '{{order, order}}',
                 '{{NULL, NULL}}', '{{{first}}}', '{{{end}}}', '{{{chain_events}}}', '{{}}', '{{}}', '{{{command_chain}}}',
                 ARRAY[convert_to('{stream}', 'UTF8'), convert_to('{stream}-2', 'UTF8')], '{{7, 7}}',
                 ARRAY['{{}}'::json, '{{}}'], '{{1, 0}}', '{{0, 0}}', '{{NULL, NULL}}',
                 '{{1}}', '{{{index}}}', ARRAY[gen_random_uuid()], '{{t}}', '{{1}}', ARRAY['{{}}'::json])"
        )
    };
    let misfits = [
        ("1, 2", "1, 2", "2, 2", "5, NULL", "4"),
        ("1, 2", "1, 2", "2, 2", "5, -4", "4"),
        ("1, 2", "1, 2", "2, 3", "-200, 201", "0"),
        ("2, 1", "2, 1", "3, 2", "0, 1", "0"),
        ("1, 2", "2, 2", "2, 2", "0, 1", "0"),
        ("1, 2", "1, NULL", "2, 2", "1, 0", "0"),
    ];
    for (number, (command_chain, first, end, chain_events, index)) in misfits.into_iter().enumerate() {
        let misfit = batch(
            &format!("m{number}"),
            command_chain,
            first,
            end,
            chain_events,
            index,
        );
        let refused = log.connection.execute(AssertSqlSafe(misfit)).await;
        assert!(refused.is_err(), "case {number} is taken");
        assert!(log.events().await?.is_empty(), "case {number} left something");
    }
    let fit = batch("fit", "1, 2", "1, 2", "2, 3", "1, 0", "0");
    log.connection.execute(AssertSqlSafe(fit)).await?;
    assert_dense(&log.events().await?);
    Ok(())
}

/// As the publisher and a rebuild read: many tenants, and most of what they read is newer than the last ANALYZE.
#[tokio::test]
async fn a_read_of_the_log_touches_no_more_than_it_gives_however_old_the_statistics_are() -> anyhow::Result<()>
{
    const LIMIT: i64 = 1_000;
    const BYTES: i64 = 8 << 20;
    let log = Log::new().await?;
    let tenants: Vec<Uuid> = (6..300).map(Uuid::from_u128).collect();
    log.database.add_tenants(&tenants).await?;
    let superuser = log.database.superuser().await?;
    sqlx::raw_sql("ALTER TABLE event_store.event SET (autovacuum_enabled = off)")
        .execute(&superuser)
        .await?;
    let insert = "INSERT INTO event_store.event
        SELECT p, 1, now(), 0, t.number, 1, gen_random_uuid(), 'order', 'order_' || p, 'order.placed', '{}', '{}'
        FROM generate_series($1, $2) AS p
        JOIN event_store.tenant AS t ON t.number = 1 + p % 299";
    sqlx::query(insert)
        .bind(1_i64)
        .bind(20_000_i64)
        .execute(&superuser)
        .await?;
    sqlx::raw_sql("ANALYZE event_store.event, event_store.tenant")
        .execute(&superuser)
        .await?;
    sqlx::query(insert)
        .bind(20_001_i64)
        .bind(60_000_i64)
        .execute(&superuser)
        .await?;

    let (_, read_log) = STATEMENTS
        .iter()
        .find(|(name, _)| *name == "read_log")
        .expect("it is there");
    let mut publisher = PgConnection::connect(&log.database.url("daybook_publisher")).await?;
    let prepare = format!("PREPARE read_log(integer, bigint, bigint, bigint) AS {read_log}");
    sqlx::raw_sql(AssertSqlSafe(prepare))
        .execute(&mut publisher)
        .await?;
    for mode in ["force_custom_plan", "force_generic_plan"] {
        let set = format!("SET plan_cache_mode = {mode}");
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut publisher).await?;
        let explain = format!("EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE read_log(0, 20000, {LIMIT}, {BYTES})");
        let plan: serde_json::Value = sqlx::query_scalar(AssertSqlSafe(explain))
            .fetch_one(&mut publisher)
            .await?;
        let root = &plan[0]["Plan"];
        assert_eq!(root["Actual Rows"], LIMIT, "{mode}: {root:#}");
        assert_eq!(rows_of_events(root), LIMIT, "{mode}: {root:#}");
    }
    Ok(())
}

/// How many rows of the event table a plan read.
fn rows_of_events(plan: &serde_json::Value) -> i64 {
    let number = |name: &str| plan[name].as_i64().unwrap_or_default();
    let own = match plan["Relation Name"].as_str() {
        Some("event") => (number("Actual Rows") + number("Rows Removed by Filter")) * number("Actual Loops"),
        _ => 0,
    };
    let parts = plan["Plans"].as_array().into_iter().flatten();
    own + parts.map(rows_of_events).sum::<i64>()
}
