use proptest::prelude::*;

use super::*;

fn bounds(concurrency: u32) -> Bounds {
    Bounds {
        min: 0,
        max: 100,
        manual: None,
        concurrency,
        cpu_millis: 1000,
    }
}

fn once(bounds: &Bounds, seen: Observation) -> Decision {
    let means = Memory::default().remember(Tick(0), &seen);
    decide(bounds, means, &seen)
}

/// The same look once a second for so long; the last decision.
fn every_second(bounds: &Bounds, seen: Observation, seconds: u64) -> Decision {
    let mut memory = Memory::default();
    let mut made = None;
    for second in 0..seconds {
        let means = memory.remember(Tick(second * 1000), &seen);
        made = Some(decide(bounds, means, &seen));
    }
    made.expect("at least one second")
}

fn is(instances: u32, because: Because) -> Decision {
    Decision { instances, because }
}

#[test]
fn eighty_one_requests_at_eighty_need_two() {
    for (requests, instances) in [(0, 0), (1, 1), (80, 1), (81, 2), (160, 2), (161, 3)] {
        let seen = Observation {
            queued: requests,
            ..Default::default()
        };
        assert_eq!(once(&bounds(80), seen).instances, instances, "{requests}");
    }
}

#[test]
fn bounds_hold() {
    let busy = Observation {
        in_flight: 500,
        ready: 10,
        busy: 10,
        ..Default::default()
    };
    let narrow = Bounds { max: 10, ..bounds(1) };
    assert_eq!(once(&narrow, busy), is(10, Because::Ceiling));
    let warm = Bounds { min: 2, ..bounds(80) };
    assert_eq!(once(&warm, Observation::default()), is(2, Because::Floor));
}

#[test]
fn manual_scaling_looks_at_nothing_else() {
    let fixed = Bounds {
        min: 5,
        max: 1,
        manual: Some(3),
        ..bounds(1)
    };
    let crowd = Observation {
        in_flight: 3,
        queued: 500,
        ready: 3,
        busy: 3,
        ..Default::default()
    };
    for seen in [crowd, Observation::default()] {
        assert_eq!(once(&fixed, seen), is(3, Because::Manual));
    }
    let none = Bounds {
        manual: Some(0),
        ..bounds(80)
    };
    assert_eq!(once(&none, crowd), is(0, Because::Manual));
}

#[test]
fn idle_ones_are_held_until_expired() {
    let idle = Observation {
        ready: 3,
        ..Default::default()
    };
    assert_eq!(once(&bounds(80), idle), is(3, Because::Holding));
    let one_gone = Observation { expired: 1, ..idle };
    assert_eq!(once(&bounds(80), one_gone).instances, 2);
    let all_gone = Observation { expired: 3, ..idle };
    assert_eq!(once(&bounds(80), all_gone), is(0, Because::Idle));
}

#[test]
fn a_busy_minute_aims_at_sixty_percent() {
    let seen = Observation {
        in_flight: 72,
        ready: 1,
        busy: 1,
        ..Default::default()
    };
    // 72 in flight on average fit one instance of 80, but are more than 60 % of it.
    assert_eq!(every_second(&bounds(80), seen, 120), is(2, Because::Average));
}

#[test]
fn a_hot_minute_aims_at_sixty_percent_of_the_cpu() {
    let hot = |cpu_millis, ready| Observation {
        in_flight: 1,
        ready,
        busy: 1,
        cpu_millis,
        ..Default::default()
    };
    let two = Bounds {
        cpu_millis: 2000,
        ..bounds(80)
    };
    for (asked, cpu_millis, ready, expected) in [
        (bounds(80), 590, 1, is(1, Because::Demand)),
        (bounds(80), 610, 1, is(2, Because::Cpu)),
        (bounds(80), 1000, 1, is(2, Because::Cpu)),
        (bounds(80), 2000, 2, is(4, Because::Cpu)),
        (two, 1150, 1, is(1, Because::Demand)),
        (two, 1300, 1, is(2, Because::Cpu)),
    ] {
        assert_eq!(
            every_second(&asked, hot(cpu_millis, ready), 120),
            expected,
            "{cpu_millis} of {ready}"
        );
    }
    assert_eq!(
        every_second(&bounds(80), hot(1000, 1), 30),
        is(1, Because::Demand),
        "half a minute of it is less than 60 % of a minute"
    );
}

#[test]
fn cpu_without_requests_starts_nothing() {
    let background = Observation {
        ready: 1,
        cpu_millis: 1000,
        ..Default::default()
    };
    assert_eq!(every_second(&bounds(80), background, 120), is(1, Because::Holding));
    let short_ones = Observation {
        served: 3,
        ..background
    };
    assert_eq!(
        every_second(&bounds(80), short_ones, 120),
        is(2, Because::Cpu),
        "requests that no look saw are requests"
    );
}

#[test]
fn an_unready_instance_is_replaced_only_for_requests() {
    let calm = Observation {
        ready: 1,
        unready: 1,
        in_flight: 2,
        busy: 1,
        ..Default::default()
    };
    assert_eq!(once(&bounds(80), calm).instances, 2, "the two that are there");
    let none_left = Observation {
        unready: 2,
        ..Default::default()
    };
    assert_eq!(once(&bounds(80), none_left).instances, 2);
    let waiting = Observation { queued: 1, ..none_left };
    assert_eq!(once(&bounds(80), waiting), is(3, Because::Demand));
    let at_most_two = Bounds { max: 2, ..bounds(80) };
    assert_eq!(once(&at_most_two, waiting), is(2, Because::Ceiling));
}

#[test]
fn many_looks_in_one_second_weigh_as_one() {
    let seen = Observation {
        in_flight: 80,
        ready: 1,
        busy: 1,
        ..Default::default()
    };
    let mut memory = Memory::default();
    let mut means = Means::default();
    for look in 0..500 {
        means = memory.remember(Tick(look), &seen);
    }
    assert_eq!(
        means.requests_milli,
        80_000 / 60,
        "one second of 80 in a minute is little"
    );
}

proptest! {
    #[test]
    fn never_outside_the_bounds(
        min in 0_u32..5, extra in 0_u32..20, concurrency in 1_u32..100,
        looks in prop::collection::vec(
            (0_u32..200, 0_u32..200, 0_u32..10, 0_u32..10, 0_u32..3, 0_u32..9000, 0_u64..5000), 1..50,
        ),
    ) {
        let max = (min + extra).max(1);
        let bounds = Bounds { min, max, ..bounds(concurrency) };
        let mut memory = Memory::default();
        let mut now = 0;
        for (in_flight, queued, starting, ready, unready, cpu_millis, step) in looks {
            now += step;
            let seen = Observation {
                in_flight, queued, starting, ready, unready, cpu_millis,
                busy: ready.min(in_flight), ..Default::default()
            };
            let means = memory.remember(Tick(now), &seen);
            let decision = decide(&bounds, means, &seen);
            prop_assert!(decision.instances >= min && decision.instances <= max);
            if in_flight + queued > 0 {
                prop_assert!(decision.instances >= 1);
            }
            prop_assert!(memory.seconds.len() <= 60);
        }
    }
}
