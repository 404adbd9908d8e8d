//! The guard before a simulated upstream, under a simulated clock.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use proptest::prelude::*;

use super::shares::Shares;
use super::*;

const SECOND: u64 = 1_000_000;

fn bounds() -> Bounds {
    Bounds {
        least: 4,
        most: 1000,
        slack_percent: 100,
        measure_us: 3 * SECOND,
    }
}

/// Numbers that look random, the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n.max(1)
    }
}

/// Somebody who asks again as soon as there was an answer.
#[derive(Clone, Copy)]
struct Caller {
    who: Who,
    /// From an answer to the next call, µs.
    thinks_us: u64,
    /// From a refusal to the next call, µs.
    waits_us: u64,
}

impl Caller {
    fn of(who: Who) -> Self {
        Self {
            who,
            thinks_us: 0,
            waits_us: 5_000,
        }
    }
}

#[derive(Default, Clone, Debug)]
struct Seen {
    answered: u64,
    /// Of those, the ones that were answered within [`Sim::deadline_us`].
    good: u64,
    shed: u64,
    latencies: Vec<u64>,
}

impl Seen {
    fn median(&self) -> u64 {
        let mut all = self.latencies.clone();
        all.sort_unstable();
        all.get(all.len() / 2).copied().unwrap_or(0)
    }

    fn shed_part(&self) -> f64 {
        self.shed as f64 / (self.shed + self.answered).max(1) as f64
    }
}

/// Time, number, and what: `Ok(caller)` asks, `Err(call)` is done.
type Event = (u64, u64, Result<usize, usize>);

/// A call that the upstream has.
struct Running {
    caller: usize,
    began_us: u64,
    place: Option<Place>,
}

/// An upstream with so many workers before a queue, and callers before the guard.
struct Sim {
    now_us: u64,
    guard: Option<Guard>,
    callers: Vec<Caller>,
    workers: u64,
    takes_us: u64,
    /// From so many calls on, each takes longer in proportion: a backend that thrashes.
    thrashes_from: Option<u64>,
    deadline_us: u64,
    busy: u64,
    queue: VecDeque<usize>,
    running: Vec<Option<Running>>,
    events: BinaryHeap<Reverse<Event>>,
    number: u64,
    dice: Dice,
    seen: Vec<Seen>,
    most_in_flight: u32,
}

impl Sim {
    fn new(workers: u64, takes_us: u64, callers: Vec<Caller>, guard: Option<Guard>) -> Self {
        let mut sim = Self {
            now_us: 0,
            guard,
            workers,
            takes_us,
            thrashes_from: None,
            deadline_us: u64::MAX,
            busy: 0,
            queue: VecDeque::new(),
            running: Vec::new(),
            events: BinaryHeap::new(),
            number: 0,
            dice: Dice(0x9E37_79B9_7F4A_7C15),
            seen: vec![Seen::default(); callers.len()],
            callers,
            most_in_flight: 0,
        };
        for caller in 0..sim.callers.len() {
            let at = sim.dice.below(50_000);
            sim.at(at, Ok(caller));
        }
        sim
    }

    fn guarded(workers: u64, takes_us: u64, callers: Vec<Caller>) -> Self {
        Self::new(workers, takes_us, callers, Some(Guard::new(bounds())))
    }

    fn at(&mut self, time: u64, what: Result<usize, usize>) {
        self.number += 1;
        self.events.push(Reverse((time, self.number, what)));
    }

    fn limit(&self) -> u32 {
        self.guard.as_ref().map_or(u32::MAX, Guard::limit)
    }

    /// Goes on for so long, and forgets what callers saw before.
    fn run(&mut self, us: u64) -> Seen {
        self.seen = vec![Seen::default(); self.callers.len()];
        let until = self.now_us + us;
        while let Some(Reverse((time, ..))) = self.events.peek() {
            if *time > until {
                break;
            }
            let Some(Reverse((time, _, what))) = self.events.pop() else {
                break;
            };
            self.now_us = time;
            match what {
                Ok(caller) => self.ask(caller),
                Err(call) => self.done(call),
            }
        }
        self.now_us = until;
        let mut all = Seen::default();
        for seen in &self.seen {
            all.answered += seen.answered;
            all.good += seen.good;
            all.shed += seen.shed;
            all.latencies.extend(&seen.latencies);
        }
        all
    }

    fn ask(&mut self, caller: usize) {
        let (who, now) = (self.callers[caller].who, self.now_us);
        let place = match self.guard.as_mut().map(|guard| guard.enter(who, now)) {
            None => None,
            Some(Ok(place)) => Some(place),
            Some(Err(_)) => {
                self.seen[caller].shed += 1;
                let waits = self.callers[caller].waits_us;
                let waits = waits + self.dice.below(waits);
                self.at(now + waits, Ok(caller));
                return;
            }
        };
        if let Some(guard) = &self.guard {
            assert!(guard.in_flight() <= guard.limit(), "more than there may be");
            self.most_in_flight = self.most_in_flight.max(guard.in_flight());
        }
        self.running.push(Some(Running {
            caller,
            began_us: now,
            place,
        }));
        self.queue.push_back(self.running.len() - 1);
        self.work();
    }

    fn work(&mut self) {
        while self.busy < self.workers {
            let Some(call) = self.queue.pop_front() else {
                return;
            };
            self.busy += 1;
            let here = self.busy + self.queue.len() as u64;
            let slower = self.thrashes_from.map_or(1, |from| here.div_ceil(from));
            let takes = self.takes_us * slower.max(1);
            let takes = takes * 3 / 4 + self.dice.below(takes / 2);
            self.at(self.now_us + takes, Err(call));
        }
    }

    fn done(&mut self, call: usize) {
        let running = self.running[call].take().expect("it runs");
        let took = self.now_us - running.began_us;
        if let (Some(guard), Some(place)) = (&mut self.guard, running.place) {
            guard.leave(place, Outcome::Answered(took), self.now_us);
        }
        let seen = &mut self.seen[running.caller];
        seen.answered += 1;
        seen.good += u64::from(took <= self.deadline_us);
        seen.latencies.push(took);
        self.busy -= 1;
        let next = self.now_us + self.callers[running.caller].thinks_us;
        self.at(next, Ok(running.caller));
        self.work();
    }
}

fn flood(callers: usize, who: Who) -> Vec<Caller> {
    vec![Caller::of(who); callers]
}

/// What the workers can do in this time, calls.
fn capacity(workers: u64, takes_us: u64, us: u64) -> f64 {
    workers as f64 * us as f64 / takes_us as f64
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(12) })]

    #[test]
    fn the_limit_finds_what_the_upstream_can_do_and_keeps_it_busy(
        // A worker or two, with as many callers from the first moment on as the limit begins with,
        // are never seen with little to do.
        workers in 8_u64..60,
        takes_ms in 10_u64..200,
        more in 3_usize..10,
    ) {
        let callers = usize::try_from(workers).unwrap() * more + 20;
        let takes_us = takes_ms * 1000;
        let mut sim = Sim::guarded(workers, takes_us, flood(callers, Who::App(1)));
        // However badly it began, it has been measured twice by then.
        sim.run(8 * SECOND + 150 * takes_us);
        let time = 5 * SECOND + 50 * takes_us;
        let seen = sim.run(time);
        let done = seen.answered as f64 / capacity(workers, takes_us, time);
        prop_assert!(done > 0.85, "{done} of the capacity, limit {}", sim.limit());
        // Twice as many as there are workers, and room for a queue.
        let most = 2.6 * workers as f64 + 4.0 * (workers as f64).sqrt() + 6.0;
        prop_assert!(f64::from(sim.limit()) <= most, "{} for {workers}", sim.limit());
        let longest = takes_us as f64 * most / workers as f64;
        prop_assert!((seen.median() as f64) < longest * 1.2, "{} of {longest}", seen.median());
    }

    #[test]
    fn nobody_is_shed_where_there_is_room_for_all(
        workers in 10_u64..100,
        takes_ms in 5_u64..200,
    ) {
        let callers = usize::try_from(workers).unwrap();
        let mut sim = Sim::guarded(workers, takes_ms * 1000, flood(callers, Who::App(1)));
        sim.run(2 * SECOND + 40_000 * takes_ms);
        let seen = sim.run(10 * SECOND);
        prop_assert_eq!(seen.shed, 0, "limit {}", sim.limit());
    }

    #[test]
    fn equal_floods_get_equal_parts(apps in 2_usize..8, workers in 8_u64..40) {
        let mut callers = Vec::new();
        for app in 0..apps {
            callers.extend(flood(60, Who::App(app as u128)));
        }
        let mut sim = Sim::guarded(workers, 20_000, callers);
        sim.run(3 * SECOND);
        let all = sim.run(8 * SECOND).answered as f64;
        for app in 0..apps {
            let its: u64 = sim.seen[app * 60..(app + 1) * 60].iter().map(|s| s.answered).sum();
            let part = its as f64 * apps as f64 / all;
            prop_assert!((0.6..1.4).contains(&part), "app {app} of {apps}: {part}");
        }
    }

    #[test]
    fn an_app_below_its_share_does_not_notice_a_flood(
        workers in 8_u64..64,
        takes_ms in 5_u64..100,
        flooding in 50_usize..300,
    ) {
        let mut callers = flood(flooding, Who::App(1));
        callers.push(Caller { thinks_us: 5_000, ..Caller::of(Who::App(2)) });
        let mut sim = Sim::guarded(workers, takes_ms * 1000, callers);
        sim.run(4 * SECOND);
        sim.run(12 * SECOND);
        let quiet = &sim.seen[flooding];
        prop_assert!(quiet.answered > 20, "{}", quiet.answered);
        prop_assert!(quiet.shed_part() < 0.02, "{} of {}", quiet.shed, quiet.answered);
    }

    #[test]
    fn what_is_taken_comes_back_and_never_more(
        ops in prop::collection::vec((0_u8..4, 0_u128..6, any::<prop::sample::Index>()), 1..400),
    ) {
        let mut guard = Guard::new(bounds());
        let mut held: Vec<Place> = Vec::new();
        for (n, (op, app, which)) in ops.into_iter().enumerate() {
            let now = n as u64 * 7_000;
            let who = if app == 0 { Who::Stranger } else { Who::App(app) };
            match op {
                0 => held.extend(guard.enter(who, now)),
                1 => { let _ = guard.may_enter(who, now); }
                2 => held.push(guard.force(who, now)),
                _ if held.is_empty() => {}
                _ => {
                    let place = held.swap_remove(which.index(held.len()));
                    let outcome = [
                        Outcome::Answered(n as u64), Outcome::Overloaded,
                        Outcome::GivenUp(n as u64), Outcome::Unknown,
                    ][n % 4];
                    guard.leave(place, outcome, now);
                }
            }
            prop_assert_eq!(guard.in_flight() as usize, held.len());
            prop_assert!(guard.limit() >= 1 && guard.limit() <= 1000);
        }
        for place in held {
            guard.leave(place, Outcome::Unknown, 10 * SECOND);
        }
        prop_assert_eq!(guard.in_flight(), 0);
        // All are forgotten, and only the one that asks is known.
        prop_assert!(guard.enter(Who::App(1), 20 * SECOND).is_ok());
        prop_assert_eq!(guard.apps(), 1);
    }
}

#[test]
fn other_bounds_keep_what_was_learnt_and_the_calls_that_run() {
    let mut guard = Guard::new(bounds());
    let held: Vec<Place> = (0..3).map(|_| guard.force(Who::App(1), 0)).collect();
    let learnt = guard.limit();
    let wider = Bounds {
        most: bounds().most * 2,
        ..bounds()
    };
    guard.set_bounds(wider);
    assert_eq!((guard.limit(), guard.in_flight()), (learnt, 3));
    let tight = Bounds {
        least: 1,
        most: 2,
        ..bounds()
    };
    guard.set_bounds(tight);
    assert_eq!((guard.limit(), guard.in_flight()), (2, 3));
    assert!(guard.enter(Who::App(1), 1).is_err());
    for place in held {
        guard.leave(place, Outcome::Unknown, 2);
    }
    assert_eq!(guard.in_flight(), 0);
}

#[test]
fn an_upstream_that_thrashes_does_its_work_in_time_behind_a_guard() {
    let run = |guard: Option<Guard>| {
        let mut sim = Sim::new(8, 20_000, flood(300, Who::App(1)), guard);
        sim.thrashes_from = Some(16);
        sim.deadline_us = 200_000;
        sim.run(10 * SECOND);
        sim.run(20 * SECOND)
    };
    let (without, with) = (run(None), run(Some(Guard::new(bounds()))));
    let most = capacity(8, 20_000, 20 * SECOND);
    assert!(with.good as f64 > 0.6 * most, "{} of {most}", with.good);
    assert!((without.good as f64) < 0.05 * most, "{}", without.good);
    assert!(with.median() * 10 < without.median());
}

#[test]
fn an_upstream_that_becomes_slower_for_good_is_believed() {
    let mut sim = Sim::guarded(16, 20_000, flood(200, Who::App(1)));
    sim.run(10 * SECOND);
    sim.takes_us = 200_000;
    sim.run(40 * SECOND);
    let seen = sim.run(20 * SECOND);
    let part = seen.answered as f64 / capacity(16, 200_000, 20 * SECOND);
    assert!(part > 0.85, "{part}, limit {}", sim.limit());
}

#[test]
fn an_upstream_that_loses_most_of_its_workers_gets_fewer_calls_at_once() {
    let mut sim = Sim::guarded(64, 20_000, flood(400, Who::App(1)));
    sim.run(20 * SECOND);
    let before = sim.limit();
    sim.workers = 8;
    sim.run(30 * SECOND);
    assert!(
        before > 60 && sim.limit() < 40,
        "{before}, then {}",
        sim.limit()
    );
    sim.workers = 64;
    sim.run(30 * SECOND);
    assert!(sim.limit() > 60, "{}", sim.limit());
}

#[test]
fn what_was_learnt_in_an_overload_is_measured_again() {
    // Ten calls for each worker from the first moment on: the first measure is ten times too long.
    let mut sim = Sim::guarded(2, 50_000, flood(100, Who::App(1)));
    sim.run(60 * SECOND);
    let seen = sim.run(30 * SECOND);
    assert!(sim.limit() <= 12, "{}", sim.limit());
    assert!(seen.median() < 350_000, "{}", seen.median());
}

#[test]
fn calls_that_are_too_much_or_given_up_shrink_the_limit() {
    for outcome in [Outcome::Overloaded, Outcome::GivenUp(900_000)] {
        let mut guard = Guard::new(bounds());
        let mut now = 0;
        let mut round = |guard: &mut Guard, outcome| {
            let places: Vec<Place> = (0..18).map(|_| guard.force(Who::Stranger, now)).collect();
            now += 200_000;
            for place in places {
                guard.leave(place, outcome, now);
            }
        };
        for _ in 0..3 {
            round(&mut guard, Outcome::Answered(10_000));
        }
        let before = guard.limit();
        for _ in 0..4 {
            round(&mut guard, outcome);
        }
        assert!(guard.limit() < before / 2, "{before}, {}", guard.limit());
        // What says nothing changes nothing.
        let before = guard.limit();
        for _ in 0..4 {
            round(&mut guard, Outcome::Unknown);
        }
        assert_eq!(guard.limit(), before);
    }
}

#[test]
fn while_the_upstream_is_stuck_no_more_calls_go_there_than_it_could_answer() {
    let mut guard = Guard::new(bounds());
    let mut held = Vec::new();
    for n in 0..10_000 {
        held.extend(guard.enter(Who::App(n % 3), u64::try_from(n).unwrap() * 1_000));
    }
    assert_eq!(held.len(), 20);
    assert_eq!(
        guard.enter(Who::App(1), 10 * SECOND).err(),
        Some(Full::Share)
    );
    for place in held {
        guard.leave(place, Outcome::Overloaded, 60 * SECOND);
    }
    assert!(guard.limit() < 20 && guard.enter(Who::App(1), 61 * SECOND).is_ok());
}

#[test]
fn made_up_names_take_one_apps_share_together_and_little_memory() {
    let mut callers = flood(300, Who::Stranger);
    callers.extend(flood(30, Who::App(7)));
    let mut sim = Sim::guarded(16, 20_000, callers);
    sim.run(10 * SECOND);
    let all = sim.run(20 * SECOND).answered as f64;
    let its: u64 = sim.seen[300..].iter().map(|seen| seen.answered).sum();
    assert!(its as f64 > 0.35 * all, "{its} of {all}");
    let mut shares = Shares::default();
    for app in 0..100_000 {
        let _ = shares.look(Who::App(app), 10, 10, 0, 5 * SECOND);
        let _ = shares.take(Who::App(app), 5 * SECOND);
    }
    assert_eq!(shares.apps(), 1024);
}

#[test]
fn measuring_ends_though_calls_never_do() {
    let mut guard = Guard::new(Bounds {
        measure_us: SECOND,
        ..bounds()
    });
    let hanging: Vec<Place> = (0..19).map(|_| guard.force(Who::App(1), 0)).collect();
    // The last place is used all the time, and there is not room for all.
    let mut answered = 0;
    for n in 1..30_000_u64 {
        let now = n * 1_000;
        if let Ok(place) = guard.enter(Who::App(2), now) {
            answered += u64::from(guard.enter(Who::App(2), now).is_err());
            guard.leave(place, Outcome::Answered(10_000), now + 1);
        }
    }
    assert!(answered > 10_000, "{answered}");
    drop(hanging);
}
