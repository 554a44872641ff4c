//! The instances that are seen, by revision: kept up by comparing one look with the look before.
//!
//! A turn for one waiting request must not go through a thousand revisions. So what the engine shows, whole, is compared
//! with what it showed before, and only revisions of which something changed are looked at.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use model::{Instance, InstanceId, InstanceState, Observed, RevisionKey};

#[derive(Debug, Default)]
pub(super) struct Fleet {
    last: Arc<Observed>,
    of: HashMap<RevisionKey, BTreeMap<InstanceId, Instance>>,
    /// Revisions with instances that start, and how many.
    starting: HashMap<RevisionKey, u32>,
}

/// What is different from the look before.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub(super) revisions: BTreeSet<RevisionKey>,
    /// Instances that are there no more, or have ended.
    pub(super) over: Vec<InstanceId>,
    /// Starts that came to an end, either way.
    pub(super) finished: u32,
}

impl Fleet {
    pub(super) fn take_in(&mut self, observed: &Arc<Observed>) -> Difference {
        let mut difference = Difference::default();
        if Arc::ptr_eq(observed, &self.last) {
            return difference;
        }
        let before = std::mem::replace(&mut self.last, observed.clone());
        let (mut old, mut new) = (before.instances.iter().peekable(), observed.instances.iter().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((old, _)), Some((new, _))) => old.cmp(new),
            };
            let was = if order.is_le() { old.next() } else { None };
            let is = if order.is_ge() { new.next() } else { None };
            match (was, is) {
                (Some((_, was)), Some((_, is))) if was == is => {}
                (was, is) => self.change(was, is, &mut difference),
            }
        }
        difference
    }

    fn change(
        &mut self,
        was: Option<(&InstanceId, &Instance)>,
        is: Option<(&InstanceId, &Instance)>,
        difference: &mut Difference,
    ) {
        let starts = |of: Option<(&InstanceId, &Instance)>| {
            of.is_some_and(|(_, instance)| instance.state == InstanceState::Starting)
        };
        let Some((id, instance)) = is.or(was) else {
            return;
        };
        let key = &instance.of;
        difference.revisions.insert(key.clone());
        match (starts(was), starts(is)) {
            (false, true) => *self.starting.entry(key.clone()).or_default() += 1,
            (true, false) => {
                difference.finished += 1;
                if let Some(count) = self.starting.get_mut(key) {
                    *count -= 1;
                    if *count == 0 {
                        self.starting.remove(key);
                    }
                }
            }
            (true, true) | (false, false) => {}
        }
        if is.is_none_or(|(_, instance)| !instance.state.is_alive()) {
            difference.over.push(id.clone());
        }
        let own = self.of.entry(key.clone()).or_default();
        if let Some((id, instance)) = is {
            own.insert(id.clone(), instance.clone());
        } else {
            own.remove(id);
            if own.is_empty() {
                self.of.remove(key);
            }
        }
    }

    pub(super) fn of(&self, revision: &RevisionKey) -> &BTreeMap<InstanceId, Instance> {
        static NONE: BTreeMap<InstanceId, Instance> = BTreeMap::new();
        self.of.get(revision).unwrap_or(&NONE)
    }

    pub(super) fn revisions(&self) -> impl Iterator<Item = &RevisionKey> {
        self.of.keys()
    }

    /// Every revision with instances.
    pub(super) fn all(&self) -> impl Iterator<Item = (&RevisionKey, &BTreeMap<InstanceId, Instance>)> {
        self.of.iter()
    }

    pub(super) fn starting(&self) -> &HashMap<RevisionKey, u32> {
        &self.starting
    }

    pub(super) fn starting_of(&self, revision: &RevisionKey) -> u32 {
        self.starting.get(revision).copied().unwrap_or(0)
    }

    pub(super) fn instance(&self, id: &InstanceId) -> Option<&Instance> {
        self.last.instances.get(id)
    }
}

#[cfg(test)]
mod tests {
    use model::{Exit, ExitCause, Timestamp};

    use super::*;
    use crate::turn::cases::{revision, service};

    #[test]
    fn only_what_changed_is_named() {
        let key = |name| revision(&service(name, 1), 1).key;
        let (one, two) = (key("one"), key("two"));
        let mut observed = Observed::default();
        let mut fleet = Fleet::default();
        let mut show = |observed: &Observed| {
            let difference = fleet.take_in(&Arc::new(observed.clone()));
            let names: Vec<_> = difference
                .revisions
                .into_iter()
                .map(|key| key.service.name.to_string())
                .collect();
            (
                names,
                difference.over.len(),
                difference.finished,
                fleet.starting_of(&one),
                fleet.all().count(),
            )
        };
        let put = |observed: &mut Observed, number: u8, of: &RevisionKey, state| {
            let at = Timestamp::from_micros(1);
            let instance = Instance {
                of: of.clone(),
                state,
                since: at,
                created: at,
            };
            observed.instances.insert(InstanceId::new([number; 12]), instance);
        };
        let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        put(&mut observed, 1, &one, InstanceState::Starting);
        put(&mut observed, 2, &one, InstanceState::Starting);
        put(&mut observed, 3, &two, InstanceState::Ready);
        assert_eq!(show(&observed), (named(&["one", "two"]), 0, 0, 2, 2));
        assert_eq!(show(&observed), (vec![], 0, 0, 2, 2));
        put(&mut observed, 2, &one, InstanceState::Ready);
        assert_eq!(show(&observed), (named(&["one"]), 0, 1, 1, 2));
        let exit = Exit {
            cause: ExitCause::Stopped,
            container: None,
            was_ready: true,
            last_lines: vec![],
        };
        put(&mut observed, 3, &two, InstanceState::Stopped(exit));
        assert_eq!(show(&observed), (named(&["two"]), 1, 0, 1, 2));
        observed.instances.clear();
        assert_eq!(show(&observed), (named(&["one", "two"]), 3, 1, 0, 0));
    }
}
