//! The write side against a model of the log, in one thread on paused time: several processes' mailboxes and appenders, every
//! answer delayed, lost or doubled, every caller free to go away. It tries orders of events that no kill hits. In the end
//! the faults stop, and the log and every answer that was given are judged.
//!
//! A seed that fails is printed; put it into [`FOUND`] once it is mended.

#![expect(clippy::print_stdout, reason = "what a run met is for people to read")]

mod judge;
mod run;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::runtime::{Builder, Runtime};

use crate::world::Met;
use daybook_simulation::model::JudgedBy;

/// How many seeds are tried.
const SEEDS: u64 = 100_000;

/// Seeds that found something once.
const FOUND: &[u64] = &[];

fn runtime() -> Runtime {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.expect("a runtime")
}

/// Runs seeds on every processor; the smallest that fails, with what is wrong.
fn first_failure(seeds: std::ops::Range<u64>, judged_by: JudgedBy, met: &Arc<Met>) -> Option<(u64, String)> {
    let next = AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let runtime = runtime();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return None;
            }
            if let Err(wrong) = runtime.block_on(run::seed(seed, judged_by, met)) {
                next.store(seeds.end, Ordering::Relaxed);
                return Some((seed, format!("{wrong:#}")));
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let failures = workers
            .into_iter()
            .filter_map(|worker| worker.join().expect("a worker"));
        failures.min()
    })
}

#[test]
fn what_is_recorded_was_decided_on_what_is_recorded_whatever_gets_lost() {
    let met = Arc::new(Met::default());
    for seed in FOUND {
        assert_eq!(first_failure(*seed..seed + 1, JudgedBy::EventId, &met), None);
    }
    assert_eq!(first_failure(0..SEEDS, JudgedBy::EventId, &met), None);
    let Met {
        lost_before,
        locked,
        lost_after,
        late,
        doubled,
        known_in_chains,
        failed_loads,
        cancelled,
        refusals,
        replays,
        not_recorded,
        unknown,
    } = &*met;
    for (what, counter) in [
        ("requests lost", lost_before),
        ("requests that waited too long for the lock", locked),
        ("answers lost", lost_after),
        ("attempts given up that went on", late),
        ("requests doubled", doubled),
        ("known keys in batches", known_in_chains),
        ("failed loads", failed_loads),
        ("callers gone", cancelled),
        ("refusals", refusals),
        ("replays", replays),
        ("refusals that no key remembers", not_recorded),
        ("unknown outcomes", unknown),
    ] {
        let count = counter.load(Ordering::Relaxed);
        println!("{count} {what}");
        assert!(count > SEEDS / 100, "there were only {count} {what}");
    }
}

/// What the first append did. The simulation is worth something if it finds that out soon.
#[test]
fn an_append_that_compares_versions_is_found_out_within_a_thousand_seeds() {
    let found = first_failure(0..1_000, JudgedBy::Version, &Arc::default());
    let (seed, wrong) = found.expect("an append that compares versions contradicts itself");
    println!("seed {seed}: {wrong}");
}

/// Otherwise a seed that fails would be of no use.
#[test]
fn a_seed_leaves_the_same_log_whatever_ran_before_it() {
    let (shared, met) = (runtime(), Arc::default());
    for seed in 0..100 {
        let logs =
            [&shared, &runtime()].map(|runtime| runtime.block_on(run::seed(seed, JudgedBy::EventId, &met)));
        let [after_others, alone] = logs.map(|log| log.expect("a log that means something"));
        assert_eq!(after_others, alone, "seed {seed}");
    }
}
