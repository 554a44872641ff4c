//! Knative's pod autoscaler (KPA), for revisions that carry its annotations.
//!
//! The rules are Knative Serving's (`pkg/autoscaler/scaling`, `pkg/reconciler/autoscaling/kpa`, `config-autoscaler`):
//! two means, of the stable window (60 s) and of the panic window (10 % of it), each divided by the target; every two
//! seconds the greater need is what counts once the panic mean asks for twice the instances there are, and then nothing
//! shrinks until the panic is a stable window old; growth is at most a thousandfold and shrinking at most by half a
//! tick; the last instance goes after the window, and after the grace period and the retention.
//!
//! [`Kpa`] remembers looks; [`decide`] is a function of what it hands over: [`Settings`], [`Inputs`], and the time.
//! Concurrency is what the ingress counts in flight and queued, requests per second are those that ended there.

mod window;

#[cfg(test)]
mod tests;

use std::{collections::VecDeque, time::Duration};

use model::KpaMetric;

use crate::{
    autoscaler::{Observation, Tick},
    decision::{Because, Decision},
};
use window::Window;

/// How often Knative decides.
const TICK: Duration = Duration::from_secs(2);
/// `stable-window`.
const STABLE_WINDOW_SECONDS: u32 = 60;
/// `panic-window-percentage`, hundredths of a percent.
const PANIC_WINDOW_CENTI: u32 = 10_00;
/// `panic-threshold-percentage`, hundredths of a percent.
const PANIC_THRESHOLD_CENTI: u32 = 20_000;
/// `requests-per-second-target-default`, hundredths.
const RPS_TARGET_CENTI: u32 = 20_000;
/// `container-concurrency-target-percentage`.
const UTILIZATION: u8 = 70;
/// `target-burst-capacity`.
const BURST_CAPACITY: i64 = 211;
/// `max-scale-up-rate`, and `max-scale-down-rate`.
const UP_RATE: u64 = 1000;
const DOWN_RATE: u32 = 2;
/// `scale-to-zero-grace-period`.
const GRACE: Duration = Duration::from_secs(30);

/// What is asked for, with Knative's defaults where nothing was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    pub metric: KpaMetric,
    /// What one instance may carry, hundredths of a request or of a request a second.
    pub total_centi: u32,
    /// Of it, so many percent are aimed at.
    pub utilization: u8,
    pub window: Duration,
    pub panic_window: Duration,
    /// Panic begins when the panic mean asks for so many times the instances there are; hundredths of a percent.
    pub panic_threshold_centi: u32,
    pub target_burst_capacity: i64,
    pub initial_scale: u32,
    pub activation_scale: u32,
    pub scale_down_delay: Duration,
    pub retention: Duration,
    pub min: u32,
    pub max: u32,
}

impl Settings {
    /// `concurrency` is what one instance takes at most; `min` and `max` bound the result.
    pub fn of(asked: &model::Kpa, concurrency: u32, min: u32, max: u32) -> Self {
        let most = concurrency.saturating_mul(100);
        let total_centi = match asked.metric {
            KpaMetric::Concurrency => asked.target_centi.map_or(most, |target| target.min(most)),
            KpaMetric::Rps => asked.target_centi.unwrap_or(RPS_TARGET_CENTI),
        };
        let window = u64::from(asked.window.unwrap_or(STABLE_WINDOW_SECONDS));
        let percent_centi = u64::from(asked.panic_window_centi.unwrap_or(PANIC_WINDOW_CENTI));
        let seconds = |asked: Option<u32>| Duration::from_secs(asked.unwrap_or(0).into());
        Self {
            metric: asked.metric,
            total_centi,
            utilization: asked.target_utilization.unwrap_or(UTILIZATION),
            window: Duration::from_secs(window),
            // Below a second there would be nothing to count in it.
            panic_window: Duration::from_millis(window * percent_centi / 10).max(Duration::from_secs(1)),
            panic_threshold_centi: asked.panic_threshold_centi.unwrap_or(PANIC_THRESHOLD_CENTI),
            target_burst_capacity: asked.target_burst_capacity.unwrap_or(BURST_CAPACITY),
            initial_scale: asked.initial_scale.unwrap_or(1),
            activation_scale: asked.activation_scale.unwrap_or(1),
            scale_down_delay: seconds(asked.scale_down_delay),
            retention: seconds(asked.retention),
            min,
            max,
        }
    }

    /// What one instance is aimed at, ten-thousandths; 0.01 at least.
    fn target_e4(&self) -> u64 {
        (u64::from(self.total_centi) * u64::from(self.utilization)).max(100)
    }
}

/// All that one decision looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inputs {
    /// Mean of the stable window over all instances, thousandths of the metric.
    pub stable_milli: u64,
    /// Mean of the panic window.
    pub panic_milli: u64,
    /// Instances that take requests.
    pub ready: u32,
    /// Traffic or a tag leads to the revision.
    pub reachable: bool,
    /// Most instances that were wanted within the scale-down delay.
    pub delayed: u32,
    pub state: State,
}

/// What one decision hands to the next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    /// The panic's begin, or when it was last renewed.
    pub panic_since: Option<Tick>,
    /// Most instances wanted in this panic.
    pub most_in_panic: u32,
    /// When the revision left zero.
    pub active_since: Option<Tick>,
    /// When nothing was wanted any more.
    pub inactive_since: Option<Tick>,
    /// Since when the ingress' queue counts as in the path: too little spare capacity for a burst, or no instance.
    pub proxied_since: Option<Tick>,
    /// The initial scale was reached once.
    pub started: bool,
}

/// Decides. The state that comes back is the one to pass next time; the number of instances before the scale-down delay
/// is the one to remember for it.
pub fn decide(settings: &Settings, inputs: &Inputs, now: Tick) -> (State, Decision, u32) {
    let mut state = inputs.state;
    if !inputs.reachable {
        let decision = Decision {
            instances: 0,
            because: Because::Unreachable,
        };
        return (
            State {
                started: true,
                ..State::default()
            },
            decision,
            0,
        );
    }
    let at_least_one = inputs.ready.max(1);
    let target = settings.target_e4();
    let wanted = |mean_milli: u64| (mean_milli * 10).div_ceil(target);
    let (stable, panic) = (wanted(inputs.stable_milli), wanted(inputs.panic_milli));
    let most = u64::from(at_least_one) * UP_RATE;
    let least = u64::from(inputs.ready.max(1) / DOWN_RATE);
    let activated = |wanted: u64| {
        let limited = narrow(wanted.min(most).max(least));
        if settings.activation_scale > 1 && wanted > 0 {
            limited.max(settings.activation_scale)
        } else {
            limited
        }
    };
    let over = panic * 10_000 >= u64::from(at_least_one) * u64::from(settings.panic_threshold_centi);
    match state.panic_since {
        _ if over => state.panic_since = Some(now),
        Some(since) if now.since(since) > settings.window => {
            state.panic_since = None;
            state.most_in_panic = 0;
        }
        Some(_) | None => {}
    }
    let mut because = Because::Stable;
    let mut desired = activated(stable);
    if desired > narrow(stable.max(least)) {
        because = Because::Activation;
    }
    if state.panic_since.is_some() {
        state.most_in_panic = state.most_in_panic.max(desired).max(activated(panic));
        desired = state.most_in_panic;
        because = Because::Panic;
    }
    let undelayed = desired;
    if inputs.delayed > desired {
        desired = inputs.delayed;
        because = Because::Delay;
    }
    let has_burst_room = has_burst_room(settings, inputs);
    if has_burst_room {
        state.proxied_since = None;
    } else {
        state.proxied_since.get_or_insert(now);
    }
    state.started |= inputs.ready >= settings.initial_scale;
    if !state.started && settings.initial_scale > desired {
        desired = settings.initial_scale;
        because = Because::Initial;
    }
    if settings.min > desired {
        desired = settings.min;
        because = Because::Floor;
    }
    if desired > 0 {
        state.active_since.get_or_insert(now);
        state.inactive_since = None;
    } else if inputs.ready == 0 {
        state.active_since = None;
        state.inactive_since = None;
        because = Because::Idle;
    } else if may_go(settings, &mut state, now) {
        because = Because::Idle;
    } else {
        desired = 1;
        because = Because::Grace;
    }
    if desired > settings.max {
        desired = settings.max;
        because = Because::Ceiling;
    }
    let decision = Decision {
        instances: desired,
        because,
    };
    (state, decision, undelayed)
}

/// Whether the instances there are could take a burst of the target capacity besides what they have. If not, Knative
/// keeps its activator in the path.
fn has_burst_room(settings: &Settings, inputs: &Inputs) -> bool {
    match settings.target_burst_capacity {
        0 => inputs.ready > 0,
        burst if burst < 0 => false,
        burst => {
            let spare = i128::from(inputs.ready) * i128::from(settings.total_centi)
                - i128::from(burst) * 100
                - i128::from(inputs.panic_milli / 10);
            inputs.ready > 0 && spare >= 0
        }
    }
}

/// Whether the last instance may go: nothing was wanted for a stable window since it became active, and the queue has
/// been in the path, or nothing wanted, for the grace period, and nothing wanted for the retention.
fn may_go(settings: &Settings, state: &mut State, now: Tick) -> bool {
    let active = *state.active_since.get_or_insert(now);
    if now.since(active) < settings.window {
        return false;
    }
    let inactive = *state.inactive_since.get_or_insert(now);
    let proxied = state.proxied_since.is_some_and(|since| now.since(since) >= GRACE);
    (proxied || now.since(inactive) >= GRACE) && now.since(inactive) >= settings.retention
}

fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// One revision's memory: what was seen within its stable window, and what was decided last.
#[derive(Debug, Default)]
pub struct Kpa {
    window: Window,
    state: State,
    /// What was wanted at each tick of the scale-down delay.
    wanted: VecDeque<(Tick, u32)>,
    last: Option<(Tick, Inputs, Decision)>,
}

impl Kpa {
    /// For a revision that was ready before this process began: with instances that there are it starts in panic at
    /// their number, as Knative's autoscaler does, and its initial scale counts as reached.
    pub fn resumed(ready: u32, now: Tick) -> Self {
        let state = State {
            panic_since: (ready > 1).then_some(now),
            most_in_panic: if ready > 1 { ready } else { 0 },
            started: true,
            ..State::default()
        };
        Self {
            state,
            ..Self::default()
        }
    }

    /// Takes in a look, and decides when a tick is due, or at once when the first request waits at zero. The inputs
    /// are those of the decision that stands.
    pub fn look(
        &mut self,
        settings: &Settings,
        seen: &Observation,
        reachable: bool,
        now: Tick,
    ) -> (Tick, Inputs, Decision) {
        self.window.look(settings, seen, now);
        if let Some((at, inputs, decision)) = self.last
            && now.since(at) < TICK
            && inputs.reachable == reachable
            && !(decision.instances == 0 && seen.queued > 0)
        {
            return (at, inputs, decision);
        }
        while let Some((at, _)) = self.wanted.front()
            && now.since(*at) >= settings.scale_down_delay
        {
            self.wanted.pop_front();
        }
        let inputs = Inputs {
            stable_milli: self.window.mean(settings.window, now),
            panic_milli: self.window.mean(settings.panic_window, now),
            ready: seen.ready,
            reachable,
            delayed: self.wanted.iter().map(|(_, wanted)| *wanted).max().unwrap_or(0),
            state: self.state,
        };
        let (state, decision, wanted) = decide(settings, &inputs, now);
        self.state = state;
        if !settings.scale_down_delay.is_zero() {
            self.wanted.push_back((now, wanted));
        }
        self.last = Some((now, inputs, decision));
        (now, inputs, decision)
    }
}
