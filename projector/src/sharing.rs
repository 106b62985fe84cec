//! How the replicas of the projector share the work evenly, without a leader.
//!
//! Every replica sees who lives and who holds which lease, and comes to the same conclusion by itself. Free work goes to
//! whoever holds the least. Work that is held moves only from a replica that holds at least two more than another one:
//! so each move evens out the sum, none is ever taken back, and in the end no two replicas that run the same projections
//! on the same partitions differ by more than one. Two replicas that see different moments may both want the same lease;
//! one gets it.

use uuid::Uuid;

/// A replica that lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// Its id, as the owner of leases.
    pub(crate) id: Uuid,
    /// The projections that its program has. While a deployment is under way they differ.
    pub(crate) projections: Vec<String>,
    /// The partitions that it has workers for. While the log is given another one they differ.
    pub(crate) partitions: Vec<i32>,
}

impl Member {
    fn runs(&self, work: &Work) -> bool {
        self.partitions.contains(&work.partition) && self.projections.contains(&work.projection)
    }
}

/// The live tables of a projection in one partition: what a worker works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Work {
    /// The projection's name.
    pub(crate) projection: String,
    /// The partition of the log.
    pub(crate) partition: i32,
    /// The replica that holds or last held the lease.
    pub(crate) owner: Option<Uuid>,
}

/// The work of a replica: the part that it holds and keeps, and the free part that falls to it. `members` and `work`
/// are in an order that all replicas see.
pub(crate) fn share<'w>(own: Uuid, members: &[Member], work: &'w [Work]) -> Vec<&'w Work> {
    let mut loads = vec![0_usize; members.len()];
    let mut holders: Vec<Option<usize>> = work
        .iter()
        .map(|work| members.iter().position(|member| Some(member.id) == work.owner))
        .collect();
    for &holder in holders.iter().flatten() {
        loads[holder] += 1;
    }
    for (work, holder) in work.iter().zip(&mut holders) {
        if holder.is_none() {
            *holder = least(members, &loads, work).inspect(|&least| loads[least] += 1);
        }
    }
    for (work, holder) in work.iter().zip(&mut holders) {
        if let (Some(giver), Some(taker)) = (*holder, least(members, &loads, work))
            && loads[giver] >= loads[taker] + 2
        {
            loads[giver] -= 1;
            loads[taker] += 1;
            // Whoever takes it finds it free when it has been released.
            *holder = None;
        }
    }
    let own = members.iter().position(|member| member.id == own);
    work.iter()
        .zip(holders)
        .filter(|(_, holder)| own.is_some() && *holder == own)
        .map(|(work, _)| work)
        .collect()
}

/// The member that has the least to do of those that can do this.
fn least(members: &[Member], loads: &[usize], work: &Work) -> Option<usize> {
    (0..members.len())
        .filter(|&member| members[member].runs(work))
        .min_by_key(|&member| loads[member])
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &[&str] = &["list", "totals"];
    const NEW: &[&str] = &["list", "totals", "sales"];

    fn member(id: u128, projections: &[&str]) -> Member {
        Member {
            id: Uuid::from_u128(id),
            projections: projections.iter().map(|&name| name.to_owned()).collect(),
            partitions: (0..16).collect(),
        }
    }

    fn work_of(projections: &[&str], partitions: i32) -> Vec<Work> {
        let work = projections.iter().flat_map(|&projection| {
            (0..partitions).map(|partition| Work {
                projection: projection.to_owned(),
                partition,
                owner: None,
            })
        });
        work.collect()
    }

    /// Has every member take and give back what it should, until nobody has anything to do; gives how many leases were
    /// acquired, and how many each member holds.
    fn settle(members: &[Member], work: &mut [Work]) -> (usize, Vec<usize>) {
        let mut acquired = 0;
        for _ in 0..10 {
            let shares: Vec<Vec<Work>> = members
                .iter()
                .map(|member| share(member.id, members, work).into_iter().cloned().collect())
                .collect();
            let before = work.to_vec();
            for work in work.iter_mut() {
                let is_in = |share: &Vec<Work>| {
                    share.iter().any(|other| {
                        (&other.projection, other.partition) == (&work.projection, work.partition)
                    })
                };
                let wanted: Vec<usize> = (0..members.len()).filter(|&m| is_in(&shares[m])).collect();
                assert!(wanted.len() <= 1, "two want {work:?}");
                let owner = wanted.first().map(|&member| members[member].id);
                acquired += usize::from(owner.is_some() && owner != work.owner);
                work.owner = owner;
            }
            if before == work {
                let held = |member: &Member| work.iter().filter(|w| w.owner == Some(member.id)).count();
                return (acquired, members.iter().map(held).collect());
            }
        }
        panic!("it does not settle: {work:?}");
    }

    #[test]
    fn each_holds_the_floor_or_the_ceiling_of_its_share_after_every_join_and_leave() {
        for partitions in [1, 2, 5, 16] {
            let mut work = work_of(NEW, partitions);
            let mut members = Vec::new();
            // Twelve join one after another, then the older half leave at once, then all but one.
            let leaves: [Box<dyn Fn(u128) -> bool>; 2] = [Box::new(|id| id > 6), Box::new(|id| id == 9)];
            for id in 1..=12 {
                members.push(member(id, NEW));
                assert_even(&members, &mut work);
            }
            for stays in leaves {
                members.retain(|member| stays(member.id.as_u128()));
                assert_even(&members, &mut work);
            }
        }
    }

    fn assert_even(members: &[Member], work: &mut [Work]) {
        let (_, held) = settle(members, work);
        let (least, most) = (work.len() / members.len(), work.len().div_ceil(members.len()));
        assert!(held.iter().all(|&held| held == least || held == most), "{held:?}");
        assert_eq!(held.iter().sum::<usize>(), work.len(), "something is left lying");
    }

    #[test]
    fn no_more_moves_than_has_to() {
        let mut work = work_of(NEW, 4);
        let mut members = vec![member(1, NEW), member(2, NEW)];
        assert_eq!(settle(&members, &mut work), (12, vec![6, 6]));
        assert_eq!(settle(&members, &mut work).0, 0, "nothing moves by itself");
        members.push(member(3, NEW));
        assert_eq!(settle(&members, &mut work), (4, vec![4, 4, 4]));
        members.remove(0);
        assert_eq!(settle(&members, &mut work), (4, vec![6, 6]));
    }

    #[test]
    fn a_projection_goes_to_those_whose_program_has_it() {
        let mut work = work_of(NEW, 1);
        let members = [member(1, OLD), member(2, OLD), member(3, NEW)];
        assert_eq!(settle(&members, &mut work), (3, vec![1, 1, 1]));
        let sales = work.iter().find(|work| work.projection == "sales");
        assert_eq!(sales.and_then(|work| work.owner), Some(members[2].id));

        let alone = [member(1, OLD)];
        assert_eq!(settle(&alone, &mut work).1, [2], "nobody has the third");
    }

    #[test]
    fn a_partition_goes_to_those_who_have_workers_for_it() {
        let mut work = work_of(OLD, 2);
        let mut members = [member(1, OLD), member(2, OLD), member(3, OLD)];
        for old in &mut members[..2] {
            old.partitions = vec![0];
        }
        assert_eq!(settle(&members, &mut work), (4, vec![1, 1, 2]));
        let added = work.iter().filter(|work| work.partition == 1);
        assert!(added.into_iter().all(|work| work.owner == Some(members[2].id)));

        assert_eq!(settle(&members[..1], &mut work).1, [2], "nobody has the second");
    }

    #[test]
    fn who_is_not_counted_among_the_living_works_on_nothing() {
        let members = [member(1, NEW)];
        let work = work_of(NEW, 1);
        assert!(share(Uuid::from_u128(2), &members, &work).is_empty());
    }
}
