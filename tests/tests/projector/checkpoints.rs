//! Checkpoints and leases on a real database: who may take a step, and who is refused.

use daybook_projector::checkpoint::{self, Claim};
use daybook_projector::runner::Runner;
use daybook_read_model::{Advance, CustomerTotals, ReadModel};
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use super::{Orders, Setup, claim, drain, eventually, hold};

type Model = CustomerTotals;

/// A log of some hundred events, of which nothing is applied.
async fn setup_with_log(seed: u64) -> Setup {
    let setup = Setup::new().await;
    Orders::new(seed).append(&setup, 300).await;
    setup
}

async fn assert_refused(connection: &mut PgConnection, advance: &Advance) {
    let refused = advance.execute(connection).await;
    let error = refused.expect_err("it is not where the checkpoint is, or not the owner's");
    assert!(Advance::is_refused(&error), "{error}");
}

#[tokio::test]
async fn a_superseded_owner_takes_no_step_and_gives_no_lease_back() {
    let setup = setup_with_log(31).await;
    let (mut zombie, lost) = hold::<Model>(&setup.process().await).await;
    assert!(checkpoint::is_held(&mut zombie, &lost).await.expect("an answer"));
    setup.kill_replicas().await;
    let (mut connection, held) = hold::<Model>(&setup.process().await).await;

    assert_refused(&mut zombie, &lost.advance_to(10)).await;
    assert!(!checkpoint::is_held(&mut zombie, &lost).await.expect("an answer"));
    checkpoint::release(&mut zombie, &lost).await.expect("an answer");
    let third = setup.process().await;
    assert_eq!(claim::<Model>(&third).await.1, Claim::Refused, "it is held");

    held.advance_to(10)
        .execute(&mut connection)
        .await
        .expect("its turn");
    assert_eq!(setup.position(Model::NAME).await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_steps_from_one_position_one_is_committed() {
    let setup = setup_with_log(32).await;
    let process = setup.process().await;
    let (mut first, lease) = hold::<Model>(&process).await;
    let step = lease.advance_to(10);
    let begun = checkpoint::begin_advance(&mut first, &step)
        .await
        .expect("its turn");

    // The same owner and fence, as after a commit whose answer was lost.
    let mut second = process.connector.connect("test").await.expect("a connection");
    let rival = lease.advance_to(20);
    let waiting = tokio::spawn(async move {
        let refused = rival.execute(&mut second).await;
        (second, refused)
    });
    eventually("a rival that waits", async || {
        let waits = "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND wait_event_type = 'Lock'";
        setup.value::<i64>(waits).await == 1
    })
    .await;
    begun.commit().await.expect("a commit");
    let (mut second, refused) = waiting.await.expect("no panic");
    assert!(Advance::is_refused(&refused.expect_err("the first has it")));
    assert_eq!(setup.position(Model::NAME).await, 10);

    assert_refused(&mut second, &step).await;
    assert_eq!(setup.position(Model::NAME).await, 10, "nothing is applied twice");
}

/// The lock on the fence comes first, so this is never seen; it is what holds were the lock ever missing.
#[tokio::test]
async fn the_key_refuses_a_second_step_from_one_position_whatever_else_is_looked_at() {
    let setup = setup_with_log(33).await;
    let (mut connection, lease) = hold::<Model>(&setup.process().await).await;
    lease
        .advance_to(10)
        .execute(&mut connection)
        .await
        .expect("its turn");
    let again =
        "INSERT INTO read_model.checkpoint_step VALUES ('customer_totals', 1, 0, 0, 20, gen_random_uuid())";
    let refused = sqlx::query(again).execute(&mut connection).await;
    assert!(Advance::is_refused(&refused.expect_err("there is one")));
}

#[tokio::test]
async fn no_step_leads_beyond_the_head_of_the_log_or_back_or_into_another_log() {
    let setup = setup_with_log(34).await;
    let head = setup.head().await;
    let (mut connection, mut lease) = hold::<Model>(&setup.process().await).await;
    assert_refused(&mut connection, &lease.advance_to(head + 1)).await;
    lease
        .advance_to(head)
        .execute(&mut connection)
        .await
        .expect("its turn");
    lease.position = head;
    assert_refused(&mut connection, &lease.advance_to(head)).await;
    assert_refused(&mut connection, &lease.advance_to(head - 1)).await;

    Orders::new(35).append(&setup, 50).await;
    let restored = "UPDATE event_store.log SET generation = gen_random_uuid()";
    setup.execute(restored).await;
    assert_refused(&mut connection, &lease.advance_to(head + 1)).await;
    let newest = setup.value("SELECT generation FROM event_store.log").await;
    for log_generation in [Uuid::nil(), newest] {
        let another = Advance {
            log_generation,
            ..lease.advance_to(head + 1)
        };
        assert_refused(&mut connection, &another).await;
    }
    assert_eq!(setup.position(Model::NAME).await, head);
}

#[tokio::test]
async fn a_step_that_was_taken_is_not_taken_again_after_the_next_one() {
    let setup = setup_with_log(41).await;
    let (mut connection, mut lease) = hold::<Model>(&setup.process().await).await;
    let first = lease.advance_to(10);
    first.execute(&mut connection).await.expect("its turn");
    lease.position = 10;
    let second = lease.advance_to(20);
    second.execute(&mut connection).await.expect("its turn");
    assert_refused(&mut connection, &first).await;
    assert_eq!(setup.position(Model::NAME).await, 20);
}

#[tokio::test]
async fn a_superseded_owner_does_not_mark_the_projection_as_failed() {
    let setup = setup_with_log(42).await;
    let (mut zombie, lost) = hold::<Model>(&setup.process().await).await;
    setup.kill_replicas().await;
    let (mut connection, held) = hold::<Model>(&setup.process().await).await;
    let is_failed = "SELECT bool_or(failed_at IS NOT NULL) FROM read_model.checkpoint";
    let noted = checkpoint::fail(&mut zombie, &lost, 1, "an event").await;
    noted.expect("an answer");
    assert!(!setup.value::<bool>(is_failed).await);
    let noted = checkpoint::fail(&mut connection, &held, 1, "an event").await;
    noted.expect("an answer");
    assert!(setup.value::<bool>(is_failed).await);
}

#[tokio::test]
async fn a_lease_is_lost_when_its_log_is_another_one_or_ends_before_the_checkpoint() {
    let setup = setup_with_log(43).await;
    let head = setup.head().await;
    let (mut connection, lease) = hold::<Model>(&setup.process().await).await;
    let advance = lease.advance_to(head);
    advance.execute(&mut connection).await.expect("its turn");
    let held = checkpoint::is_held(&mut connection, &lease).await;
    assert!(held.expect("an answer"));

    let another = "UPDATE event_store.log SET generation = gen_random_uuid()";
    setup.execute(another).await;
    let held = checkpoint::is_held(&mut connection, &lease).await;
    assert!(!held.expect("an answer"), "another log");
    let same = format!(
        "UPDATE event_store.log SET generation = '{}'",
        lease.epoch.generation
    );
    setup.execute(&same).await;
    let held = checkpoint::is_held(&mut connection, &lease).await;
    assert!(held.expect("an answer"));

    setup
        .execute("ALTER TABLE event_store.event DISABLE TRIGGER event_is_immutable")
        .await;
    let cut = format!("DELETE FROM event_store.event WHERE position = {head}");
    setup.execute(&cut).await;
    let held = checkpoint::is_held(&mut connection, &lease).await;
    assert!(!held.expect("an answer"), "a shorter log");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_claim_at_once_one_gets_the_lease() {
    let setup = setup_with_log(44).await;
    let (first, second) = (setup.process().await, setup.process().await);
    let owner = first.duties.borrow().owner;
    let mut connection = setup.superuser.acquire().await.expect("a connection");
    let mut claiming = connection.begin().await.expect("a transaction");
    let claimed = checkpoint::claim_live(&mut claiming, Model::NAME, 0, owner).await;
    assert!(matches!(claimed.expect("an answer"), Claim::Held(_)));

    let rival = tokio::spawn(async move { claim::<Model>(&second).await.1 });
    eventually("a rival that waits", async || {
        let waits = "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND wait_event_type = 'Lock'";
        setup.value::<i64>(waits).await == 1
    })
    .await;
    claiming.commit().await.expect("a commit");
    assert_eq!(rival.await.expect("no panic"), Claim::Refused);
}

#[tokio::test]
async fn a_session_that_has_the_number_of_one_that_ended_keeps_nobody_alive() {
    let setup = setup_with_log(45).await;
    hold::<Model>(&setup.process().await).await;
    let second = setup.process().await;
    assert_eq!(claim::<Model>(&second).await.1, Claim::Refused, "it is held");
    setup
        .execute("UPDATE read_model.replica SET session_started_at = session_started_at - interval '1 us'")
        .await;
    let lives = "SELECT count(*) FROM read_model.replica_state WHERE lives";
    assert_eq!(setup.value::<i64>(lives).await, 0);
    hold::<Model>(&second).await;
}

/// Beyond the head the log holds nothing that an id could differ from.
#[tokio::test]
async fn a_step_over_events_that_are_named_leads_as_far_as_there_are_names() {
    let setup = setup_with_log(40).await;
    let ids: Vec<Uuid> = setup.log().await.iter().map(|event| event.event_id).collect();
    let (mut connection, lease) = hold::<Model>(&setup.process().await).await;
    let over = |to: u64| Advance {
        event_ids: Some(ids.clone()),
        ..lease.advance_to(to)
    };
    let head = setup.head().await;
    for to in [head - 1, head + 1] {
        let refuted = over(to).execute(&mut connection).await;
        let error = refuted.expect_err("it is not as long as the list of names");
        assert!(Advance::is_refuted(&error), "{error}");
    }
    over(head).execute(&mut connection).await.expect("its turn");
    assert_eq!(setup.position(Model::NAME).await, head);
}

#[tokio::test]
async fn of_many_steps_the_newest_is_kept_and_none_is_lost_with_a_batch_that_was_not_committed() {
    let setup = setup_with_log(36).await;
    let (mut connection, mut lease) = hold::<Model>(&setup.process().await).await;
    let steps = "SELECT count(*) FROM read_model.checkpoint_step";
    assert_eq!(setup.value::<i64>(steps).await, 0);
    for position in 1..=100 {
        let advance = lease.advance_to(position);
        advance.execute(&mut connection).await.expect("its turn");
        lease.position = position;
    }
    assert_eq!(setup.value::<i64>(steps).await, 1);
    assert_eq!(setup.position(Model::NAME).await, 100);

    let begun = checkpoint::begin_advance(&mut connection, &lease.advance_to(110)).await;
    begun.expect("its turn").rollback().await.expect("an answer");
    assert_eq!(setup.value::<i64>(steps).await, 1);
    assert_eq!(setup.position(Model::NAME).await, 100);
    connection.close().await.expect("a good connection");
}

#[tokio::test]
async fn the_projector_itself_may_not_rewrite_a_step() {
    let setup = setup_with_log(37).await;
    let mut connection = setup
        .process()
        .await
        .connector
        .connect("test")
        .await
        .expect("a connection");
    let rewrite = sqlx::query("UPDATE read_model.checkpoint_step SET position = 0");
    let refused = rewrite
        .execute(&mut connection)
        .await
        .expect_err("no such privilege");
    let code = refused.as_database_error().and_then(|error| error.code());
    assert_eq!(code.as_deref(), Some("42501"));
}

#[tokio::test]
async fn a_lease_that_is_given_back_is_for_whoever_comes() {
    let setup = setup_with_log(38).await;
    let (first, second) = (setup.process().await, setup.process().await);
    let (connection, lease) = hold::<Model>(&first).await;
    assert_eq!(claim::<Model>(&second).await.1, Claim::Refused, "it is held");
    let again = hold::<Model>(&first).await.1;
    assert!(again.fence > lease.fence, "whoever has it may have it again");

    let mut runner = Runner::<Model>::new(connection, lease, 10_000);
    assert!(!runner.holds_lease().await.expect("an answer"));
    runner.release().await.expect("an answer");
    assert_eq!(
        claim::<Model>(&second).await.1,
        Claim::Refused,
        "it was not its own"
    );
    let (connection, lease) = hold::<Model>(&first).await;
    let runner = Runner::<Model>::new(connection, lease, 10_000);
    runner.release().await.expect("it is released");
    hold::<Model>(&second).await;
}

#[tokio::test]
async fn what_the_last_owner_commits_while_a_lease_is_taken_belongs_to_it() {
    let setup = setup_with_log(39).await;
    let (mut connection, lease) = hold::<Model>(&setup.process().await).await;
    let step = lease.advance_to(10);
    let begun = checkpoint::begin_advance(&mut connection, &step)
        .await
        .expect("its turn");
    setup.kill_replicas().await;
    let successor = setup.process().await;
    let taking = tokio::spawn(async move { claim::<Model>(&successor).await.1 });
    eventually("a successor that waits", async || {
        let waits = "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND wait_event_type = 'Lock'";
        setup.value::<i64>(waits).await == 1
    })
    .await;
    begun.commit().await.expect("a commit");
    match taking.await.expect("no panic") {
        Claim::Held(lease) => assert_eq!(lease.position, 10),
        other => panic!("{other:?}"),
    }
    drop(connection);
    drain(&mut setup.worker::<Model>().await).await;
}
