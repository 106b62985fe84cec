//! Replicas on a real database, each of which sees the others for itself: work changes hands, whatever was forgotten.

use daybook_projector::checkpoint;
use daybook_projector::feed::{Feed, Taken};
use daybook_projector::replica::{self, Duties};
use daybook_projector::worker::{Context, Step, Worker};
use daybook_read_model::{CustomerTotals, ReadModel, each_read_model};
use sqlx::PgConnection;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Orders, Setup, drain, eventually, hold};

type Model = CustomerTotals;

/// A replica that looks when it is told to.
struct Replica {
    id: Uuid,
    session: PgConnection,
    duties: watch::Sender<Duties>,
    process: Context,
}

impl Replica {
    async fn join(setup: &Setup) -> Self {
        Self::join_with(setup, &[0]).await
    }

    /// With workers for these partitions.
    async fn join_with(setup: &Setup, partitions: &[i32]) -> Self {
        let (duties, assigned) = watch::channel(Duties::default());
        let process = setup.context(assigned).await;
        let connected = process.connector.connect("replica").await;
        let mut session = connected.expect("a connection");
        let id = Uuid::now_v7();
        let joining = replica::join(&mut session, id, partitions);
        joining.await.expect("a new replica");
        let mut replica = Self {
            id,
            session,
            duties,
            process,
        };
        replica.look().await;
        replica
    }

    async fn look(&mut self) {
        let seen = replica::look(&mut self.session, self.id).await;
        self.duties.send_replace(seen.expect("it lives"));
    }

    fn worker(&self) -> Worker<Model> {
        Worker::new(self.process.clone(), 0, &Feed::default())
    }

    fn has(&self, projection: &str, partition: i32) -> bool {
        let duties = self.duties.borrow();
        duties.owner_of_live(projection, partition).is_some()
    }
}

async fn owner(setup: &Setup) -> Option<Uuid> {
    setup
        .value("SELECT owner FROM read_model.fence WHERE projection = 'customer_totals' AND generation = 1")
        .await
}

/// Two replicas: the first has the lease on everything, and half of it falls to the second; the first does not know yet.
async fn one_that_has_all_and_another(setup: &Setup) -> (Replica, Worker<Model>, Replica) {
    Orders::new(51).append(setup, 100).await;
    let mut first = Replica::join(setup).await;
    let mut worker = first.worker();
    assert_eq!(drain(&mut worker).await, Step::CaughtUp);
    each_read_model!(M => if M::NAME != Model::NAME { hold::<M>(&first.process).await; });
    first.look().await;
    let second = Replica::join(setup).await;
    assert!(first.has(Model::NAME, 0));
    (first, worker, second)
}

#[tokio::test]
async fn a_lease_that_could_not_be_given_back_is_given_back_over_another_session() {
    let setup = Setup::new().await;
    let (mut first, mut worker, mut second) = one_that_has_all_and_another(&setup).await;
    let killed: i64 = setup
        .value(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = 'daybook-projector customer_totals/0'",
        )
        .await;
    assert_eq!(killed, 1, "the worker's session");
    first.look().await;
    assert!(!first.has(Model::NAME, 0), "it falls to the other one");
    worker.step().await.expect_err("its session is gone");
    assert_eq!(owner(&setup).await, Some(first.id));

    assert_eq!(worker.step().await.expect("a step"), Step::Standby);
    assert_eq!(owner(&setup).await, None);
    second.look().await;
    assert_eq!(drain(&mut second.worker()).await, Step::CaughtUp);
    assert_eq!(owner(&setup).await, Some(second.id));
    first.look().await;
    assert_eq!(worker.step().await.expect("a step"), Step::Standby);
    assert_eq!(owner(&setup).await, Some(second.id), "nothing is taken away");
}

#[tokio::test]
async fn a_lease_whose_claim_was_never_answered_is_given_back() {
    let setup = Setup::new().await;
    let mut first = Replica::join(&setup).await;
    let mut worker = first.worker();
    each_read_model!(M => drop(hold::<M>(&first.process).await));
    let mut second = Replica::join(&setup).await;
    first.look().await;
    assert!(!first.has(Model::NAME, 0), "it falls to the other one");

    assert_eq!(worker.step().await.expect("a step"), Step::Standby);
    assert_eq!(owner(&setup).await, None);
    second.look().await;
    assert_eq!(drain(&mut second.worker()).await, Step::CaughtUp);
}

#[tokio::test]
async fn a_worker_that_has_nothing_to_do_keeps_no_connection() {
    let setup = Setup::new().await;
    let other = setup.process().await;
    hold::<Model>(&other).await;
    let (duties, assigned) = watch::channel(other.duties.borrow().clone());
    duties.send_modify(|duties| duties.owner = Uuid::now_v7());
    let mut worker = Worker::<Model>::new(setup.context(assigned).await, 0, &Feed::default());
    assert_eq!(worker.step().await.expect("a step"), Step::Standby, "it is held");
    let sessions = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name = 'daybook-projector customer_totals/0'";
    assert_eq!(setup.value::<i64>(sessions).await, 1, "for the next attempt");

    duties.send_modify(|duties| duties.live.clear());
    assert_eq!(worker.step().await.expect("a step"), Step::Standby);
    eventually("the end of its session", async || {
        setup.value::<i64>(sessions).await == 0
    })
    .await;
}

#[tokio::test]
async fn a_feed_reads_only_while_a_worker_of_this_replica_has_a_place_in_it() {
    const READERS: &str = "SELECT count(*) FROM pg_stat_activity
                           WHERE datname = current_database() AND application_name = 'daybook-projector log'";
    const END_READERS: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                               WHERE datname = current_database() AND application_name = 'daybook-projector log'";
    let setup = Setup::new().await;
    let mut orders = Orders::new(52);
    let mut nobody_reads = async || {
        for _ in 0..20 {
            orders.append(&setup, 5).await;
            assert_eq!(setup.value::<i64>(READERS).await, 0);
        }
    };
    let replica = Replica::join(&setup).await;
    let (feed, shutdown) = (Feed::default(), CancellationToken::new());
    let reading = tokio::spawn(feed.clone().run(replica.process.clone(), 0, shutdown.clone()));
    let mut place = feed.subscribe();
    nobody_reads().await;

    let is_fed = |taken: Taken| matches!(taken, Taken::Batches(_));
    eventually("events in the feed", async || {
        is_fed(place.take(0, 10, usize::MAX))
    })
    .await;
    place.step_aside();
    assert!(!is_fed(place.take(0, 10, usize::MAX)), "nothing is kept");
    place.step_aside();
    eventually("the end of its reading", async || {
        setup.value::<i64>(END_READERS).await == 0
    })
    .await;
    nobody_reads().await;

    eventually("events in the feed again", async || {
        is_fed(place.take(0, 10, usize::MAX))
    })
    .await;
    shutdown.cancel();
    reading.await.expect("it does not panic").expect("it was told to");
}

#[tokio::test]
async fn a_partition_that_is_added_falls_to_those_who_have_workers_for_it() {
    let setup = Setup::new().await;
    let mut old = [Replica::join(&setup).await, Replica::join(&setup).await];
    setup.execute("SELECT event_store.add_partition(1)").await;
    let mut new = Replica::join_with(&setup, &[0, 1]).await;
    let opening = checkpoint::open_all(&mut new.session);
    opening.await.expect("checkpoints");
    new.look().await;
    for replica in &mut old {
        replica.look().await;
        each_read_model!(M => assert!(!replica.has(M::NAME, 1)));
    }
    each_read_model!(M => assert!(new.has(M::NAME, 1)));
}
