use proptest::prelude::*;

use super::*;

fn settings(change: impl FnOnce(&mut model::Kpa)) -> Settings {
    let mut asked = model::Kpa {
        metric: KpaMetric::Concurrency,
        target_centi: None,
        target_utilization: None,
        window: None,
        panic_window_centi: None,
        panic_threshold_centi: None,
        target_burst_capacity: None,
        initial_scale: None,
        activation_scale: None,
        scale_down_delay: None,
        retention: None,
    };
    change(&mut asked);
    Settings::of(&asked, 100, 0, 1000)
}

fn started() -> State {
    State {
        started: true,
        ..State::default()
    }
}

fn inputs(stable: u64, panic: u64, ready: u32) -> Inputs {
    Inputs {
        stable_milli: stable * 1000,
        panic_milli: panic * 1000,
        ready,
        reachable: true,
        delayed: 0,
        state: started(),
    }
}

fn at(seconds: u64) -> Tick {
    Tick(seconds * 1000)
}

/// Looks with so many requests, once a second from `from` on; the last decision.
fn looks(kpa: &mut Kpa, settings: &Settings, requests: u32, ready: u32, seconds: std::ops::Range<u64>) -> Decision {
    let seen = Observation {
        in_flight: requests,
        ready,
        served: requests,
        ..Observation::default()
    };
    seconds
        .map(|second| kpa.look(settings, &seen, true, at(second)).2)
        .last()
        .expect("at least one")
}

#[test]
fn defaults() {
    let plain = settings(|_| {});
    assert_eq!((plain.total_centi, plain.utilization), (10_000, 70));
    assert_eq!(
        (plain.window.as_secs(), plain.panic_window.as_secs()),
        (60, 6),
        "a tenth"
    );
    assert_eq!(
        settings(|asked| asked.target_centi = Some(30_000)).total_centi,
        10_000,
        "a target above the concurrency is the concurrency"
    );
    let rps = settings(|asked| asked.metric = KpaMetric::Rps);
    assert_eq!(rps.total_centi, 20_000);
    let short = settings(|asked| asked.window = Some(6));
    assert_eq!(short.panic_window.as_secs(), 1);
    assert_eq!(settings(|asked| asked.target_centi = Some(0)).target_e4(), 100, "0.01");
}

/// ceil(mean / 70), at most 1000 times and at least half of what is ready, the panic mean when it asks for twice as many.
#[test]
fn the_two_means() {
    let plain = settings(|_| {});
    for (stable, panic, ready, expected, because) in [
        (70, 70, 1, 1, Because::Stable),
        (71, 71, 2, 2, Because::Stable),
        (71, 71, 1, 2, Because::Panic),
        (140, 140, 2, 2, Because::Stable),
        (700, 700, 8, 10, Because::Stable),
        (140, 700, 4, 10, Because::Panic),
        (140, 490, 4, 2, Because::Stable),
        (70, 70, 10, 5, Because::Stable),
        (1, 0, 3, 1, Because::Stable),
        (70_000, 70_000, 0, 1000, Because::Panic),
        (140_000, 140_000, 1, 1000, Because::Panic),
    ] {
        let (_, decision, _) = decide(&plain, &inputs(stable, panic, ready), at(100));
        assert_eq!(
            (decision.instances, decision.because),
            (expected, because),
            "{stable} {panic} {ready}"
        );
    }
}

#[test]
fn growth_is_at_most_a_thousandfold() {
    let wide = Settings {
        max: 100_000,
        ..settings(|asked| asked.target_centi = Some(100))
    };
    let (_, decision, _) = decide(&wide, &inputs(50_000, 50_000, 2), at(1));
    assert_eq!(decision.instances, 2000);
}

#[test]
fn panic_never_shrinks_and_ends_a_window_after_its_last_cause() {
    let plain = settings(|asked| asked.target_centi = Some(1_000));
    let (state, decision, _) = decide(&plain, &inputs(10, 70, 1), at(0));
    assert_eq!((decision.instances, decision.because), (10, Because::Panic));
    let calm = |state, second| {
        decide(
            &plain,
            &Inputs {
                state,
                ..inputs(7, 7, 10)
            },
            at(second),
        )
    };
    let (state, decision, _) = calm(state, 60);
    assert_eq!((decision.instances, decision.because), (10, Because::Panic));
    let renewed = Inputs {
        state,
        ..inputs(7, 140, 10)
    };
    let (state, decision, _) = decide(&plain, &renewed, at(61));
    assert_eq!(decision.instances, 20, "panic again");
    let (state, decision, _) = calm(state, 121);
    assert_eq!(decision.instances, 20);
    let (state, decision, _) = calm(state, 122);
    assert_eq!((decision.instances, decision.because), (5, Because::Stable));
    assert_eq!((state.panic_since, state.most_in_panic), (None, 0));
}

#[test]
fn activation_and_initial_scale() {
    let four = settings(|asked| asked.activation_scale = Some(4));
    let (_, decision, _) = decide(&four, &inputs(1, 1, 0), at(0));
    assert_eq!((decision.instances, decision.because), (4, Because::Activation));
    let (_, decision, _) = decide(&four, &inputs(0, 0, 0), at(0));
    assert_eq!(decision.instances, 0, "nothing is wanted at all");
    let three = settings(|asked| asked.initial_scale = Some(3));
    let fresh = Inputs {
        state: State::default(),
        ..inputs(0, 0, 1)
    };
    let (state, decision, _) = decide(&three, &fresh, at(0));
    assert_eq!((decision.instances, decision.because), (3, Because::Initial));
    let reached = Inputs {
        ready: 3,
        state,
        ..fresh
    };
    let (state, decision, _) = decide(&three, &reached, at(2));
    assert!(state.started);
    assert_eq!(decision.because, Because::Stable, "from now on it may shrink");
}

#[test]
fn bounds_and_reach() {
    let plain = settings(|_| {});
    let (_, decision, _) = decide(&Settings { min: 2, ..plain }, &inputs(0, 0, 2), at(0));
    assert_eq!((decision.instances, decision.because), (2, Because::Floor));
    let (_, decision, _) = decide(&Settings { max: 3, ..plain }, &inputs(700, 700, 3), at(0));
    assert_eq!((decision.instances, decision.because), (3, Because::Ceiling));
    let gone = Inputs {
        reachable: false,
        ..inputs(700, 700, 3)
    };
    let (_, decision, _) = decide(&Settings { min: 2, ..plain }, &gone, at(0));
    assert_eq!((decision.instances, decision.because), (0, Because::Unreachable));
}

#[test]
fn a_second_of_requests_then_zero_after_window_and_grace() {
    let short = settings(|asked| {
        asked.window = Some(10);
        asked.target_centi = Some(100);
    });
    let mut kpa = Kpa::default();
    let waiting = Observation {
        queued: 1,
        ..Observation::default()
    };
    assert_eq!(kpa.look(&short, &waiting, true, at(0)).2.instances, 2, "1 / 0.7");
    assert_eq!(looks(&mut kpa, &short, 1, 2, 1..5).instances, 2);
    let mut gone = None;
    for second in 5..120 {
        if looks(&mut kpa, &short, 0, 1, second..second + 1).instances == 0 {
            gone = Some(second);
            break;
        }
    }
    // The window is empty at 14; the queue has been in the path since the first look, longer than the grace period.
    assert_eq!(gone, Some(30), "the tick after 30 s in the path");
}

#[test]
fn retention_keeps_the_last_instance() {
    let kept = settings(|asked| {
        asked.window = Some(6);
        asked.retention = Some(100);
    });
    let mut kpa = Kpa::resumed(1, at(0));
    looks(&mut kpa, &kept, 1, 1, 0..10);
    let held = looks(&mut kpa, &kept, 0, 1, 10..110);
    assert_eq!((held.instances, held.because), (1, Because::Grace));
    assert_eq!(looks(&mut kpa, &kept, 0, 1, 110..120).instances, 0);
}

#[test]
fn the_scale_down_delay_holds_the_most_of_its_time() {
    let slow = settings(|asked| {
        asked.window = Some(6);
        asked.target_centi = Some(1_000);
        asked.scale_down_delay = Some(60);
    });
    let mut kpa = Kpa::default();
    assert_eq!(looks(&mut kpa, &slow, 20, 3, 0..20).instances, 3);
    let held = looks(&mut kpa, &slow, 7, 3, 20..70);
    assert_eq!((held.instances, held.because), (3, Because::Delay));
    let after = looks(&mut kpa, &slow, 7, 3, 70..100);
    assert_eq!((after.instances, after.because), (1, Because::Stable));
}

#[test]
fn requests_per_second() {
    let rps = settings(|asked| {
        asked.metric = KpaMetric::Rps;
        asked.target_centi = Some(1_000);
    });
    let mut kpa = Kpa::default();
    assert_eq!(
        looks(&mut kpa, &rps, 21, 3, 0..20).instances,
        3,
        "21 a second, 7 for each"
    );
}

#[test]
fn between_two_ticks_nothing_changes_but_the_first_request_at_zero() {
    let plain = settings(|_| {});
    let mut kpa = Kpa::resumed(0, at(0));
    assert_eq!(kpa.look(&plain, &Observation::default(), true, Tick(0)).2.instances, 0);
    let waiting = Observation {
        queued: 1,
        ..Observation::default()
    };
    assert_eq!(kpa.look(&plain, &waiting, true, Tick(100)).2.instances, 1, "poked");
    let crowd = Observation {
        queued: 900,
        ..Observation::default()
    };
    assert_eq!(kpa.look(&plain, &crowd, true, Tick(200)).2.instances, 1);
    assert!(kpa.look(&plain, &crowd, true, Tick(2_100)).2.instances > 5);
}

#[test]
fn who_comes_back_to_many_instances_is_in_panic() {
    let plain = settings(|_| {});
    let mut kpa = Kpa::resumed(8, at(0));
    let decision = looks(&mut kpa, &plain, 0, 8, 0..60);
    assert_eq!((decision.instances, decision.because), (8, Because::Panic));
    assert_eq!(looks(&mut kpa, &plain, 0, 8, 60..64).instances, 4, "then it may shrink");
}

proptest! {
    #[test]
    fn within_bounds_and_steady_in_panic(
        target in 1_u32..20_000, min in 0_u32..4, extra in 0_u32..50,
        seen in prop::collection::vec((0_u32..500, 0_u32..60), 1..80),
    ) {
        let settings = Settings { min, max: (min + extra).max(1), ..settings(|asked| asked.target_centi = Some(target)) };
        let mut kpa = Kpa::default();
        let mut before: Option<(Decision, State)> = None;
        for (second, (requests, ready)) in seen.into_iter().enumerate() {
            let seen = Observation { in_flight: requests, ready, ..Observation::default() };
            let (_, inputs, decision) = kpa.look(&settings, &seen, true, at(second as u64 * 2));
            prop_assert!(decision.instances >= min && decision.instances <= settings.max);
            prop_assert_eq!(decide(&settings, &inputs, at(second as u64 * 2)).1, decision, "the same again");
            if let Some((last, state)) = before && state.panic_since.is_some() && kpa.state.panic_since.is_some() {
                prop_assert!(decision.instances >= last.instances, "it shrank in a panic");
            }
            before = Some((decision, kpa.state));
        }
    }
}
