use capacity::InstanceDemand;
use model::{Exit, ExitCause, Timestamp};

use super::*;
use crate::turn::cases::{ready, revision, routed, service, snapshot};

/// A machine with all the room one wants.
fn roomy() -> Room {
    Room {
        memory_bytes: 12 << 30,
        memory_total_bytes: 16 << 30,
        cpu_millis: 2000,
        cpus: 2,
        cpu_stalled: 0,
        memory_stalled: 0,
    }
}

/// A small world: one service with one ready revision, instances and requests as the test puts them.
struct World {
    scaling: Scaling,
    snapshot: Snapshot,
    observed: Observed,
    demand: Demand,
    key: RevisionKey,
    now: Tick,
    next: u8,
    /// What each instance that is asked about has served.
    served: u64,
    room: Room,
    /// Whether the test looks at parked ones.
    parking: bool,
}

impl World {
    fn new(change: impl FnOnce(&mut Revision)) -> Self {
        let service = service("my-api", 1);
        let mut revision = ready(revision(&service, 1));
        change(&mut revision);
        let key = revision.key.clone();
        Self {
            scaling: Scaling::default(),
            snapshot: snapshot(&[routed(service, &revision)], &[revision]),
            observed: Observed::default(),
            demand: Demand::default(),
            key,
            now: Tick(1_000),
            next: 0,
            served: 0,
            room: roomy(),
            parking: false,
        }
    }

    fn look(&mut self) -> (Vec<Act>, Arc<Endpoints>) {
        let observed = Arc::new(self.observed.clone());
        let concern = self.scaling.concerned(&self.snapshot, &observed, BTreeSet::new(), true);
        let seen = Seen {
            snapshot: &self.snapshot,
            demand: &self.demand,
            due: &BTreeMap::new(),
            idle_retention: Duration::from_secs(3),
            parked: capacity::parking::MOST,
            room: &self.room,
            at: Timestamp::from_micros(i64::try_from(self.now.0).expect("small") * 1000),
        };
        let (mut acts, endpoints) = self.scaling.plan(&seen, concern, self.now);
        if !self.parking {
            acts.retain(|act| !matches!(act, Act::Park(_)));
        }
        (acts, endpoints)
    }

    fn requests(&mut self, queued: u32, in_flight: &[(&InstanceId, u32)]) {
        let demand = RevisionDemand {
            queued,
            in_flight: in_flight.iter().map(|(_, count)| count).sum(),
            instances: in_flight
                .iter()
                .map(|(id, count)| InstanceDemand {
                    instance: (*id).clone(),
                    in_flight: *count,
                    served: self.served,
                })
                .collect(),
        };
        self.demand.revisions.insert(self.key.clone(), demand);
    }

    fn instance(&mut self, state: InstanceState) -> InstanceId {
        self.next += 1;
        let id = InstanceId::new([self.next; 12]);
        let instance = Instance {
            of: self.key.clone(),
            state,
            since: Timestamp::from_micros(1_500_000),
            created: Timestamp::from_micros(1_000_000),
        };
        self.observed.instances.insert(id.clone(), instance);
        id
    }

    fn after(&mut self, millis: u64) {
        self.now.0 += millis;
    }
}

fn starts(acts: &[Act]) -> usize {
    acts.iter().filter(|act| matches!(act, Act::Start(..))).count()
}

#[test]
fn eighty_one_waiting_requests_start_two_and_no_more() {
    let mut world = World::new(|_| {});
    world.requests(81, &[]);
    assert_eq!(starts(&world.look().0), 2);
    world.instance(InstanceState::Starting);
    world.instance(InstanceState::Starting);
    assert_eq!(starts(&world.look().0), 0, "two are on their way");
}

#[test]
fn the_maximum_counts_those_that_still_stop() {
    let mut world = World::new(|revision| {
        revision.template.scaling.max = 2.try_into().expect("not zero");
        revision.template.concurrency = model::Concurrency::ONE;
    });
    world.instance(InstanceState::Ready);
    world.instance(InstanceState::Stopping);
    world.requests(5, &[]);
    assert_eq!(
        starts(&world.look().0),
        0,
        "one ready and one stopping are the maximum of two"
    );
}

#[test]
fn an_idle_instance_is_drained_then_stopped_once_the_ingress_knows() {
    let mut world = World::new(|_| {});
    let id = world.instance(InstanceState::Ready);
    let (acts, endpoints) = world.look();
    assert!(acts.is_empty() && !endpoints.revisions[&world.key].instances[0].draining);
    world.after(2_900);
    assert!(world.look().0.is_empty(), "retention is 3 s");
    world.after(200);
    let (acts, endpoints) = world.look();
    assert!(acts.is_empty(), "the ingress does not know yet: {acts:?}");
    assert!(endpoints.revisions[&world.key].instances[0].draining);
    world.demand.applied = endpoints.version;
    world.requests(0, &[(&id, 1)]);
    assert!(world.look().0.is_empty(), "a request slipped in before: it finishes");
    world.requests(0, &[]);
    assert_eq!(world.look().0, [Act::Stop(id)]);
    assert!(world.look().0.is_empty(), "stopped once");
}

#[test]
fn requests_that_no_look_saw_keep_an_instance() {
    let mut world = World::new(|_| {});
    let id = world.instance(InstanceState::Ready);
    world.requests(0, &[(&id, 0)]);
    world.look();
    for _ in 0..10 {
        world.after(2_000);
        world.served += 1;
        world.requests(0, &[(&id, 0)]);
        assert!(
            !world.look().1.revisions[&world.key].instances[0].draining,
            "it served within the retention"
        );
    }
    world.after(3_100);
    assert!(
        world.look().1.revisions[&world.key].instances[0].draining,
        "and then no more"
    );
}

#[test]
fn a_busy_instance_is_never_drained_and_a_minimum_stays() {
    let mut world = World::new(|revision| revision.template.scaling.min = 1);
    assert_eq!(starts(&world.look().0), 1, "the minimum is started without a request");
    let id = world.instance(InstanceState::Ready);
    world.requests(0, &[(&id, 1)]);
    world.look();
    world.after(3_600_000);
    assert!(!world.look().1.revisions[&world.key].instances[0].draining);
    world.requests(0, &[]);
    world.look();
    world.after(3_600_000);
    assert!(
        !world.look().1.revisions[&world.key].instances[0].draining,
        "the minimum stays"
    );
}

#[test]
fn a_retired_revision_drains_at_once_and_its_minimum_does_not_count() {
    let mut world = World::new(|revision| revision.template.scaling.min = 1);
    world.instance(InstanceState::Ready);
    let service = world.snapshot.services.values().next().expect("one").clone();
    let away = model::Service {
        routed: Routed::default(),
        ..(*service).clone()
    };
    world.snapshot.services.insert(away.key.clone(), Arc::new(away));
    assert!(world.look().1.revisions[&world.key].instances[0].draining);
}

#[test]
fn instances_of_a_deleted_service_go() {
    let mut world = World::new(|_| {});
    let ready = world.instance(InstanceState::Ready);
    let starting = world.instance(InstanceState::Starting);
    world.snapshot = Snapshot::default();
    let (acts, endpoints) = world.look();
    assert_eq!(acts, [Act::Stop(starting)]);
    world.demand.applied = endpoints.version;
    assert_eq!(world.look().0, [Act::Stop(ready)]);
}

#[test]
fn failed_starts_back_off_and_are_counted() {
    let mut world = World::new(|_| {});
    world.requests(1, &[]);
    assert_eq!(starts(&world.look().0), 1);
    let exit = Exit {
        cause: ExitCause::Code(1),
        container: None,
        was_ready: false,
        last_lines: vec![],
    };
    let id = world.instance(InstanceState::Stopped(exit));
    let (acts, endpoints) = world.look();
    assert_eq!(
        acts,
        [Act::Forget(id.clone())],
        "forgotten, and no new start before the backoff"
    );
    assert_eq!(endpoints.revisions[&world.key].failed_starts, 1);
    world.observed.instances.remove(&id);
    world.after(1_100);
    assert_eq!(starts(&world.look().0), 1, "tried again");
}

fn releases(acts: &[Act]) -> usize {
    acts.iter().filter(|act| matches!(act, Act::Release(..))).count()
}

fn parks(acts: &[Act]) -> usize {
    acts.iter().filter(|act| matches!(act, Act::Park(_))).count()
}

impl World {
    fn scaled(&mut self, change: impl FnOnce(&mut model::ServiceScaling)) {
        let service = self.snapshot.services.values().next().expect("one").clone();
        let mut changed = (*service).clone();
        change(&mut changed.scaling);
        self.snapshot.version += 1;
        self.snapshot.services.insert(changed.key.clone(), Arc::new(changed));
    }

    fn end(&mut self, id: &InstanceId, cause: ExitCause) {
        let instance = self.observed.instances.get_mut(id).expect("it is there");
        let was_ready = instance.state == InstanceState::Ready;
        instance.state = InstanceState::Stopped(Exit {
            cause,
            container: None,
            was_ready,
            last_lines: vec![],
        });
        instance.since = Timestamp::from_micros(2_000_000);
    }
}

#[test]
fn a_service_level_minimum_is_shared_and_a_manual_number_is_exact() {
    let mut world = World::new(|_| {});
    world.scaled(|scaling| scaling.min = 2);
    assert_eq!(starts(&world.look().0), 2);
    world.scaled(|scaling| (scaling.min, scaling.manual) = (0, Some(3)));
    assert_eq!(starts(&world.look().0), 3);
    let ids: Vec<_> = (0..3).map(|_| world.instance(InstanceState::Ready)).collect();
    world.requests(500, &[(&ids[0], 80), (&ids[1], 80), (&ids[2], 80)]);
    let (acts, endpoints) = world.look();
    assert!(acts.is_empty(), "{acts:?}");
    assert_eq!(endpoints.revisions[&world.key].full, Some(Full::Maximum(3)));
    world.requests(0, &[(&ids[0], 80), (&ids[1], 0), (&ids[2], 2)]);
    world.look();
    world.scaled(|scaling| scaling.manual = Some(1));
    let endpoints = world.look().1;
    let draining = |id: &InstanceId| {
        let own = &endpoints.revisions[&world.key].instances;
        own.iter().any(|of| of.instance == *id && of.draining)
    };
    assert_eq!(
        [draining(&ids[0]), draining(&ids[1]), draining(&ids[2])],
        [false, true, true],
        "the idle one and the less busy one, without waiting for the retention"
    );
}

#[test]
fn a_start_takes_a_parked_instance_first() {
    let mut world = World::new(|_| {});
    let parked = world.instance(InstanceState::Parked);
    world.requests(0, &[]);
    assert!(world.look().0.is_empty(), "a parked one is neither ready nor starting");
    world.requests(81, &[]);
    let (acts, endpoints) = world.look();
    assert_eq!((releases(&acts), starts(&acts)), (1, 1));
    assert!(acts.contains(&Act::Release(parked, Because::Demand)));
    assert!(endpoints.revisions[&world.key].instances.is_empty());
}

#[test]
fn parked_ones_are_made_behind_a_burst_and_given_up_without_traffic() {
    let mut world = World::new(|_| {});
    world.parking = true;
    assert_eq!(parks(&world.look().0), 1, "it may be called");
    world.requests(400, &[]);
    assert_eq!(parks(&world.look().0), 0, "not during a burst");
    let ids: Vec<_> = (0..5).map(|_| world.instance(InstanceState::Ready)).collect();
    let busy: Vec<_> = ids.iter().map(|id| (id, 1)).collect();
    world.requests(0, &busy);
    assert_eq!(parks(&world.look().0), 0, "not right behind it");
    world.after(2_100);
    assert_eq!(parks(&world.look().0), 5, "as many as it started at once");
    let parked: Vec<_> = (0..5).map(|_| world.instance(InstanceState::Parked)).collect();
    assert_eq!(parks(&world.look().0), 0);
    let service = world.snapshot.services.values().next().expect("one").clone();
    let away = model::Service {
        routed: Routed::default(),
        ..(*service).clone()
    };
    world.snapshot.version += 1;
    world.snapshot.services.insert(away.key.clone(), Arc::new(away));
    let acts = world.look().0;
    let given_up = parked.iter().filter(|id| acts.contains(&Act::Stop((*id).clone())));
    assert_eq!(given_up.count(), 5, "no traffic, no tag: {acts:?}");
}

#[test]
fn without_room_requests_wait_and_are_told_why() {
    let mut world = World::new(|_| {});
    world.room.memory_bytes = 850 << 20;
    world.requests(1, &[]);
    let (acts, endpoints) = world.look();
    assert!(acts.is_empty(), "{acts:?}");
    let full = endpoints.revisions[&world.key].full.clone();
    assert!(matches!(&full, Some(Full::NoRoom(_))), "{full:?}");
    let told = world.scaling.decisions.of(&world.key);
    let held = told
        .iter()
        .filter(|recorded| matches!(recorded.made, Made::Held { count: 1, .. }));
    assert_eq!(held.count(), 1, "{told:?}");
    assert!(world.scaling.is_waiting());
    world.look();
    assert_eq!(world.scaling.decisions.of(&world.key).len(), told.len(), "told once");
    world.room.memory_bytes = 12 << 30;
    assert_eq!(starts(&world.look().0), 1);
    assert!(world.scaling.held.is_empty());
}

#[test]
fn under_pressure_the_longest_idle_go_early_but_not_the_minimum() {
    let mut world = World::new(|revision| revision.template.scaling.min = 1);
    world.after(1);
    let old = world.instance(InstanceState::Ready);
    world.look();
    world.after(5_000);
    let young = world.instance(InstanceState::Ready);
    world.look();
    world.room.memory_bytes = 500 << 20;
    world.after(6_000);
    let seen = |world: &mut World| {
        let observed = Arc::new(world.observed.clone());
        let concern = world
            .scaling
            .concerned(&world.snapshot, &observed, BTreeSet::new(), true);
        let seen = Seen {
            snapshot: &world.snapshot,
            demand: &world.demand,
            due: &BTreeMap::new(),
            idle_retention: Duration::from_mins(15),
            parked: capacity::parking::MOST,
            room: &world.room,
            at: Timestamp::from_micros(1),
        };
        world.scaling.plan(&seen, concern, world.now).1
    };
    let endpoints = seen(&mut world);
    let own = &endpoints.revisions[&world.key].instances;
    let leaving: Vec<_> = own
        .iter()
        .filter(|of| of.draining)
        .map(|of| of.instance.clone())
        .collect();
    assert_eq!(leaving, [old]);
    world.after(60_000);
    let endpoints = seen(&mut world);
    let own = &endpoints.revisions[&world.key].instances;
    assert!(own.iter().any(|of| of.instance == young && !of.draining), "the minimum");
}

#[test]
fn an_unready_instance_gets_nothing_new_and_is_replaced_only_for_requests() {
    let mut world = World::new(|_| {});
    let id = world.instance(InstanceState::Unready);
    world.requests(0, &[(&id, 1)]);
    let (acts, endpoints) = world.look();
    assert!(acts.is_empty(), "{acts:?}");
    assert!(endpoints.revisions[&world.key].instances[0].draining, "nothing new");
    world.requests(1, &[(&id, 1)]);
    assert_eq!(starts(&world.look().0), 1);
    world.observed.instances.get_mut(&id).expect("there").state = InstanceState::Ready;
    world.requests(0, &[(&id, 1)]);
    assert!(!world.look().1.revisions[&world.key].instances[0].draining, "again");
}

#[test]
fn a_storm_of_crashes_is_damped() {
    let mut world = World::new(|_| {});
    let mut begun = Vec::new();
    for _ in 0..4 {
        world.requests(1, &[]);
        let mut waited = 0;
        while starts(&world.look().0) == 0 {
            world.after(100);
            waited += 100;
        }
        begun.push(waited);
        let id = world.instance(InstanceState::Ready);
        world.requests(0, &[]);
        world.look();
        world.end(&id, ExitCause::Signal(9));
        world.look();
        world.observed.instances.remove(&id);
        world.look();
    }
    assert_eq!(begun, [0, 0, 1_000, 2_000], "the first is replaced at once");
}

#[test]
fn knatives_rules_for_who_asks_for_them() {
    let mut world = World::new(|revision| {
        revision.template.kpa = Some(model::Kpa {
            target_centi: Some(100),
            ..model::Kpa::default()
        });
    });
    world.requests(7, &[]);
    assert_eq!(starts(&world.look().0), 10, "7 at a target of 0.7");
    let ids: Vec<_> = (0..10).map(|_| world.instance(InstanceState::Ready)).collect();
    let busy: Vec<_> = ids.iter().map(|id| (id, 0)).collect();
    world.requests(0, &busy);
    let mut left = Vec::new();
    for _ in 0..140 {
        world.after(1_000);
        let endpoints = world.look().1;
        let own = &endpoints.revisions[&world.key].instances;
        left.push(own.iter().filter(|of| !of.draining).count());
    }
    assert!(
        left[..55].iter().all(|count| *count == 10),
        "panic holds them: {left:?}"
    );
    assert_eq!(left.last(), Some(&0), "{left:?}");
}

/// What was recorded leads to the same decisions again, whatever happened meanwhile.
#[test]
fn recorded_inputs_lead_to_the_same_decision() {
    let mut world = World::new(|revision| {
        revision.template.scaling.max = 3.try_into().expect("not zero");
        revision.template.concurrency = model::Concurrency::new(10).expect("in range");
    });
    let mut ids = Vec::new();
    for step in 0..30_u32 {
        let queued = (step * 7) % 23;
        let busy: Vec<_> = ids.iter().map(|id| (id, step % 4)).collect();
        world.requests(queued, &busy);
        for _ in 0..starts(&world.look().0) {
            ids.push(world.instance(InstanceState::Ready));
        }
        world.after(700);
    }
    let recorded = world.scaling.decisions.of(&world.key);
    let mut replayed = 0;
    for of in &recorded {
        if let Made::Scale { inputs, decision, .. } = &of.made {
            assert_eq!(inputs.decide(), *decision);
            replayed += 1;
        }
    }
    assert!(replayed >= 3, "{recorded:?}");
    let told = world.scaling.decisions.of_service(&world.key.service);
    assert!(told[0].stands && told.iter().skip(1).all(|of| !of.stands));
    assert!(told[0].inputs.contains(&("max", 3)), "{:?}", told[0]);
}

/// With a thousand services a turn for one waiting request looks at one.
#[test]
fn a_turn_for_a_bell_is_short_among_a_thousand_services() {
    let mut services = Vec::new();
    let mut revisions = Vec::new();
    let mut observed = Observed::default();
    let mut demand = Demand::default();
    for number in 0..1000_u32 {
        let service = service(&format!("s{number}"), 1);
        let revision = ready(revision(&service, 1));
        let mut chance = [0; 12];
        chance[..4].copy_from_slice(&number.to_be_bytes());
        let id = InstanceId::new(chance);
        let instance = Instance {
            of: revision.key.clone(),
            state: InstanceState::Ready,
            since: Timestamp::from_micros(1),
            created: Timestamp::from_micros(1),
        };
        observed.instances.insert(id.clone(), instance);
        let of = RevisionDemand {
            instances: vec![InstanceDemand {
                instance: id,
                in_flight: 0,
                served: 1,
            }],
            ..RevisionDemand::default()
        };
        demand.revisions.insert(revision.key.clone(), of);
        services.push(routed(service, &revision));
        revisions.push(revision);
    }
    let key = revisions[500].key.clone();
    let snapshot = snapshot(&services, &revisions);
    let observed = Arc::new(observed);
    let mut scaling = Scaling::default();
    let room = roomy();
    let mut turn = |demand: &Demand, rung: BTreeSet<RevisionKey>, all: bool, now: u64| {
        let begun = std::time::Instant::now();
        let concern = scaling.concerned(&snapshot, &observed, rung, all);
        let seen = Seen {
            snapshot: &snapshot,
            demand,
            due: &BTreeMap::new(),
            idle_retention: Duration::from_mins(15),
            parked: capacity::parking::MOST,
            room: &room,
            at: Timestamp::from_micros(1),
        };
        let (acts, _) = scaling.plan(&seen, concern, Tick(now));
        (acts, begun.elapsed())
    };
    turn(&demand, BTreeSet::new(), true, 0);
    let (_, whole) = turn(&demand, BTreeSet::new(), true, 1_000);
    let mut bell: Vec<Duration> = Vec::new();
    for look in 0..20_u64 {
        let mut one = demand.revisions[&key].clone();
        one.queued = u32::try_from(look).expect("small") + 1;
        let only = Demand {
            applied: 0,
            revisions: [(key.clone(), one)].into(),
        };
        let (acts, took) = turn(&only, [key.clone()].into(), false, 1_001 + look);
        assert!(acts.len() <= 1, "{acts:?}");
        bell.push(took);
    }
    bell.sort_unstable();
    eprintln!(
        "1,000 services: a turn for a bell {:?} (median), for all {whole:?}",
        bell[10]
    );
    // Measured 0.02 ms on two idle cores; a loaded machine takes longer, a scan of all much longer.
    assert!(bell[10] < Duration::from_millis(5), "{bell:?}");
}
