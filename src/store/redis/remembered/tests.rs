use super::*;
use crate::limit::total::Kind;

const APP: CounterKey = CounterKey(9 << 100);

fn asking(key: u128, figure: u64, units: u32) -> Plan {
    let charge = TotalCharge {
        kind: Kind::Users,
        key: CounterKey(key),
        figure,
        units,
        report: false,
        since_s: 10,
        whose: None,
        is_new: false,
        taken: None,
        over: false,
    };
    Plan {
        app: Some(APP),
        totals: vec![charge],
        ..Plan::default()
    }
}

fn reading(count: u64) -> Reading {
    Reading {
        count,
        checked_s: 10,
        round: 3,
        basis: 3,
    }
}

fn name(key: u128) -> Name {
    Name::plain(APP, CounterKey(key))
}

/// One of two gateways, and not the one that gets what remains.
fn half(_: &Name, left: u64) -> u64 {
    left / 2
}

/// How many calls for one unit are admitted.
fn fits(remembered: &Remembered, key: u128, figure: u64) -> usize {
    let mut all = (0..1000).map(|_| remembered.take(&mut asking(key, figure, 1), half));
    all.position(|taken| taken.is_err()).unwrap_or(1000)
}

#[test]
fn a_share_of_what_was_left_is_given_and_no_more() {
    let remembered = Remembered::new(100);
    remembered.note(name(1), reading(91), remembered.asked(0, false));
    let mut plan = asking(1, 100, 3);
    assert_eq!(remembered.take(&mut plan, half), Ok(()));
    assert_eq!(
        (plan.totals[0].taken, plan.totals[0].over),
        (Some(3), false)
    );
    assert_eq!(remembered.take(&mut asking(1, 100, 2), half), Err(0));
    assert_eq!(fits(&remembered, 1, 100), 1);
    assert_eq!(remembered.take(&mut asking(1, 100, 0), half), Err(0));
    // More than 32 bits of bytes.
    remembered.note(name(2), reading(5 << 32), remembered.asked(0, false));
    assert_eq!(fits(&remembered, 2, (5 << 32) + 14), 7);
}

#[test]
fn what_comes_back_may_be_taken_again() {
    let remembered = Remembered::new(100);
    remembered.note(name(1), reading(90), remembered.asked(0, false));
    assert_eq!(fits(&remembered, 1, 100), 5);
    let back = Change::GiveBack { units: 2, round: 3 };
    remembered.changed(name(1), back);
    remembered.changed(name(1), Change::Lower { units: 1, basis: 3 });
    // A listing has come since: it lowers nothing.
    remembered.changed(name(1), Change::Lower { units: 1, basis: 2 });
    remembered.changed(name(1), Change::Doubt);
    assert_eq!(fits(&remembered, 1, 100), 3);
}

#[test]
fn nothing_is_taken_of_one_total_where_another_refuses() {
    let remembered = Remembered::new(100);
    for (key, count) in [(1, 90), (2, 100)] {
        remembered.note(name(key), reading(count), remembered.asked(0, false));
    }
    let mut both = asking(1, 100, 1);
    both.totals.extend(asking(2, 100, 1).totals);
    assert_eq!(remembered.take(&mut both, half), Err(1));
    assert_eq!(fits(&remembered, 1, 100), 5);
}

#[test]
fn one_that_is_unknown_or_not_believed_passes_and_is_marked() {
    let remembered = Remembered::new(100);
    let mut unknown = asking(1, 100, 1);
    assert_eq!(remembered.unknown(&unknown), [CounterKey(1)]);
    assert_eq!(remembered.take(&mut unknown, half), Ok(()));
    assert_eq!(
        (unknown.totals[0].taken, unknown.totals[0].over),
        (None, true)
    );
    let old = Reading {
        checked_s: 9,
        ..reading(100)
    };
    remembered.note(name(1), old, remembered.asked(0, false));
    let mut old = asking(1, 100, 1);
    assert_eq!(remembered.unknown(&old), [CounterKey(1)]);
    assert_eq!(remembered.take(&mut old, half), Ok(()));
    assert_eq!((old.totals[0].taken, old.totals[0].over), (Some(3), true));
    // One that only reports, and one without a figure.
    remembered.note(name(1), reading(100), remembered.asked(0, false));
    assert!(remembered.unknown(&asking(1, 100, 1)).is_empty());
    let mut reported = asking(1, 100, 1);
    reported.totals[0].report = true;
    assert_eq!(remembered.take(&mut reported, half), Ok(()));
    assert!(reported.totals[0].over);
    let mut unbounded = asking(1, u64::MAX, 1);
    assert_eq!(remembered.take(&mut unbounded, half), Ok(()));
    assert!(!unbounded.totals[0].over);
}

#[test]
fn a_reading_forgets_only_what_was_taken_before_it_was_asked_for() {
    let remembered = Remembered::new(100);
    remembered.note(name(1), reading(90), remembered.asked(0, false));
    let before = remembered.asked(0, false);
    assert_eq!(remembered.take(&mut asking(1, 100, 4), half), Ok(()));
    remembered.note(name(1), reading(90), before);
    assert_eq!(fits(&remembered, 1, 100), 1);
    remembered.note(name(1), reading(95), remembered.asked(0, false));
    assert_eq!(fits(&remembered, 1, 100), 2);
}

#[test]
fn until_all_have_told_what_they_took_the_shares_of_what_was_left_hold() {
    let remembered = Remembered::new(100);
    remembered.note(name(1), reading(90), remembered.asked(0, false));
    assert_eq!(remembered.take(&mut asking(1, 100, 3), half), Ok(()));
    // The store is back, and has not heard of what another took.
    let plan = asking(1, 100, 2);
    assert_eq!(remembered.lacks(&plan, 1, half), None);
    remembered.took(&plan, 1);
    remembered.note(name(1), reading(95), remembered.asked(1, true));
    assert_eq!(remembered.lacks(&asking(1, 100, 1), 1, half), Some(0));
    remembered.note(name(1), reading(98), remembered.asked(1, false));
    assert_eq!(remembered.lacks(&asking(1, 100, 1), 1, half), None);
}

#[test]
fn what_is_remembered_is_bounded() {
    let remembered = Remembered::new(10);
    for key in 0..1000 {
        remembered.note(name(key), reading(0), remembered.asked(0, false));
        // One that is asked about stays.
        assert_eq!(remembered.take(&mut asking(0, 2000, 0), half), Ok(()));
    }
    let both = remembered.both.lock();
    assert!(both.young.len() + both.old.len() <= 10);
    drop(both);
    let mut kept = asking(0, 2000, 1);
    assert_eq!(remembered.take(&mut kept, half), Ok(()));
    assert!(!kept.totals[0].over);
}
