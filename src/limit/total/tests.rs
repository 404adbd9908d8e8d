use super::*;

fn checked(count: u64) -> Total {
    let mut total = Total::default();
    total.apply(Change::Set { count, now_s: 100 });
    total
}

/// A deletion that began just now.
fn lower(total: &mut Total, units: u32) {
    let basis = total.basis();
    total.apply(Change::Lower { units, basis });
}

fn charge(figure: u64, units: u32) -> TotalCharge {
    TotalCharge {
        kind: Kind::Users,
        key: CounterKey(1),
        figure,
        units,
        report: false,
        since_s: 100,
        whose: None,
        is_new: false,
        taken: None,
        over: false,
    }
}

#[test]
fn the_figure_itself_is_allowed() {
    assert!(charge(100, 60).fits(40));
    assert!(!charge(100, 60).fits(41));
    assert!(charge(100, 0).fits(99), "a look takes nothing");
    assert!(!charge(100, 0).fits(100));
    assert!(charge(u64::MAX, 1).fits(MOST));
}

#[test]
fn a_total_refuses_only_while_it_was_checked_lately() {
    let charge = charge(1, 1);
    assert!(charge.is_enforced(100));
    assert!(!charge.is_enforced(99));
    assert!(
        !TotalCharge {
            report: true,
            ..charge
        }
        .is_enforced(100)
    );
}

#[test]
fn nothing_fits_a_figure_of_none_whatever_is_known() {
    assert!(charge(0, 1).can_never_fit());
    assert!(charge(0, 0).can_never_fit());
    assert!(!charge(1, 2).can_never_fit(), "the store says that");
    let new = |units| TotalCharge {
        is_new: true,
        ..charge(3, units)
    };
    assert!(!new(3).can_never_fit());
    assert!(new(4).can_never_fit());
    assert!(
        !TotalCharge {
            report: true,
            ..new(4)
        }
        .can_never_fit()
    );
}

#[test]
fn what_was_not_made_goes_back_and_no_total_is_below_0() {
    let mut total = checked(10);
    let round = total.take(5);
    assert_eq!(total.count, 15);
    total.apply(Change::GiveBack { units: 2, round });
    assert_eq!(total.count, 13);
    lower(&mut total, 20);
    assert_eq!(total.count, 0);
    total.apply(Change::GiveBack { units: 3, round });
    assert_eq!(total.count, 0);
}

#[test]
fn a_listing_counts_what_came_while_it_went_on() {
    let mut total = checked(10);
    let before = total.take(4);
    total.apply(Change::Begin { now_s: 150 });
    let round = total.round();
    // Taken before: the listing says whether it was made.
    total.apply(Change::GiveBack {
        units: 4,
        round: before,
    });
    assert_eq!(total.count, 10);
    let during = total.take(3);
    total.apply(Change::GiveBack {
        units: 1,
        round: during,
    });
    lower(&mut total, 1);
    assert_eq!(total.count, 11);
    total.apply(Change::End {
        round,
        listed: 50,
        now_s: 200,
    });
    // Nobody knows whether what was deleted meanwhile was listed.
    assert_eq!((total.count, total.checked_s), (52, 200));
    assert!(total.approximate && total.goes_by(round));
    // Units of the listing's own time are in the count; earlier ones are not.
    total.apply(Change::GiveBack {
        units: 1,
        round: during,
    });
    assert_eq!(total.count, 51);
    total.apply(Change::GiveBack {
        units: 1,
        round: before,
    });
    assert_eq!(total.count, 51);
}

#[test]
fn what_the_backend_said_before_an_import_does_not_override_it() {
    let mut total = checked(10);
    let (count, round) = (100, Some(total.round()));
    let mut at_once = total;
    at_once.apply(Change::AtLeast { count, round });
    assert_eq!(at_once.count, 100);
    total.apply(Change::Set {
        count: 60,
        now_s: 200,
    });
    total.apply(Change::AtLeast { count, round });
    assert_eq!(total.count, 60);
    let round = None;
    total.apply(Change::AtLeast { count, round });
    assert_eq!(total.count, 100);
}

/// A listing with this many.
fn list(total: &mut Total, listed: u64, now_s: u64) {
    total.apply(Change::Begin { now_s });
    let round = total.round();
    total.apply(Change::End {
        round,
        listed,
        now_s,
    });
}

#[test]
fn a_call_under_way_across_a_listing_counts_on_top_of_it_and_marks_the_total() {
    let mut total = checked(10);
    let round = total.take(5);
    list(&mut total, 10, 200);
    assert_eq!((total.count, total.approximate), (15, true));
    let mut failed = total;
    total.apply(Change::Keep { units: 5, round });
    assert_eq!((total.count, total.approximate), (15, true));
    failed.apply(Change::GiveBack { units: 5, round });
    assert_eq!((failed.count, failed.approximate), (10, true));
    // The next one knows of nothing under way.
    list(&mut total, 15, 300);
    assert_eq!((total.count, total.approximate), (15, false));
}

#[test]
fn a_call_answered_during_the_listing_counts_on_top_of_it_too() {
    let mut total = checked(10);
    let round = total.take(5);
    total.apply(Change::Begin { now_s: 200 });
    total.apply(Change::Keep { units: 2, round });
    total.apply(Change::GiveBack { units: 3, round });
    total.apply(Change::End {
        round: total.round(),
        listed: 10,
        now_s: 210,
    });
    assert_eq!((total.count, total.approximate), (12, true));
}

#[test]
fn a_call_under_way_counts_on_top_of_an_import_and_of_listings_in_a_row() {
    let mut total = checked(0);
    let round = total.take(5);
    for now_s in [200, 201, 202] {
        list(&mut total, 10, now_s);
        assert_eq!(total.count, 15);
    }
    total.apply(Change::Set {
        count: 10,
        now_s: 203,
    });
    assert_eq!((total.count, total.approximate), (15, true));
    total.apply(Change::GiveBack { units: 5, round });
    assert_eq!(total.count, 10);
}

#[test]
fn what_a_lost_gateway_had_under_way_is_forgotten_by_a_later_listing() {
    let mut total = checked(0);
    let lost = total.take(5);
    list(&mut total, 10, 200);
    list(&mut total, 10, 200 + LONGEST_S);
    assert_eq!(total.count, 15, "it may be under way still");
    list(&mut total, 10, 201 + LONGEST_S);
    assert_eq!((total.count, total.approximate), (10, false));
    let mut answered = total;
    total.apply(Change::GiveBack {
        units: 5,
        round: lost,
    });
    assert_eq!(total.count, 10, "they are in no count");
    answered.apply(Change::Keep {
        units: 5,
        round: lost,
    });
    assert_eq!((answered.count, answered.approximate), (15, true));
}

#[test]
fn a_quiet_listing_is_the_truth() {
    let mut total = checked(10);
    total.apply(Change::Doubt);
    assert!(total.approximate);
    total.apply(Change::Begin { now_s: 150 });
    let round = total.round();
    assert_eq!(
        (total.count, total.checked_s),
        (10, 100),
        "the old one holds meanwhile"
    );
    total.apply(Change::End {
        round,
        listed: 7,
        now_s: 300,
    });
    assert_eq!((total.count, total.approximate), (7, false));
}

#[test]
fn a_listing_that_another_has_overtaken_changes_nothing() {
    let mut total = checked(10);
    total.apply(Change::Begin { now_s: 150 });
    let first = total.round();
    total.apply(Change::Begin { now_s: 150 });
    let second = total.round();
    total.apply(Change::End {
        round: first,
        listed: 1,
        now_s: 200,
    });
    assert_eq!(total.count, 10);
    assert!(!total.goes_by(first));
    total.apply(Change::Set {
        count: 5,
        now_s: 200,
    });
    total.apply(Change::End {
        round: second,
        listed: 1,
        now_s: 300,
    });
    assert_eq!((total.count, total.checked_s), (5, 200));
    let last = total.round();
    total.apply(Change::End {
        round: last,
        listed: 1,
        now_s: 300,
    });
    assert_eq!(total.count, 5, "an import is no listing");
}

#[test]
fn what_a_deletion_under_way_has_deleted_is_not_taken_off_a_listing_that_came_since() {
    let set = |count| Change::Set { count, now_s: 200 };
    // An import.
    let mut total = checked(150);
    let basis = total.basis();
    total.apply(set(50));
    total.apply(Change::Lower { units: 100, basis });
    assert_eq!((total.count, total.approximate), (50, true));
    // A listing that began after it, and one in which it began; ended before it or not.
    for (begins_in_it, ends_in_it) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut total = checked(150);
        let before = total.basis();
        total.apply(Change::Begin { now_s: 150 });
        let round = total.round();
        let basis = if begins_in_it { total.basis() } else { before };
        let lower = Change::Lower { units: 100, basis };
        let end = Change::End {
            round,
            listed: 50,
            now_s: 200,
        };
        let changes = if ends_in_it {
            [lower, end]
        } else {
            [end, lower]
        };
        changes.into_iter().for_each(|change| total.apply(change));
        assert_eq!((total.count, total.approximate), (50, true));
    }
    // What begins after it goes down.
    let mut total = checked(150);
    total.apply(set(50));
    lower(&mut total, 10);
    assert_eq!((total.count, total.approximate), (40, false));
}

#[test]
fn a_total_is_read_as_it_was_written() {
    let mut total = checked(10);
    total.apply(Change::Begin { now_s: 150 });
    lower(&mut total, 3);
    total.apply(Change::Doubt);
    let mut asked = total;
    asked.take(5);
    for total in [Total::default(), checked(u64::MAX), total, asked] {
        assert_eq!(Total::of_text(&total.to_text()), Some(total));
    }
    assert_eq!(asked.at_rest().to_text().split(' ').count(), 7);
    for text in [
        "",
        "1",
        "1 2 3 4 5 6 7",
        "-1 0 0 0 0 0 0",
        "1 0 0 0 0 0 0 0",
        "1 0 0 0 0 0 x",
        "1 0 0 0 0 0 0 1 0",
        "1 0 0 0 0 0 0 1 0 0 0",
    ] {
        assert_eq!(Total::of_text(text), None, "{text}");
    }
}

#[test]
fn every_kind_is_found_by_its_name() {
    for (index, kind) in Kind::ALL.into_iter().enumerate() {
        assert_eq!(kind.index(), index);
        assert_eq!(Kind::named(kind.as_str()), Some(kind));
        assert_eq!(kind.limit_name(), format!("plan:{}", kind.as_str()));
    }
}

/// What is done to a total and, beside it, to what there is.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A call for so many begins.
    Ask(u32),
    /// The n-th call under way is answered: so many of a hundredth were made.
    Answer(usize, u32),
    /// The n-th call makes such a part, and its answer is lost.
    Lose(usize, u32),
    /// A call that deletes so many begins, and they are gone.
    Delete(u32),
    /// The n-th of these is answered.
    Deleted(usize),
    /// A listing begins.
    Begin,
    /// It reads what there is.
    List,
    /// It ends.
    End,
}

proptest::proptest! {
    /// Only what goes through the gateway counts here: then the total is never below what there
    /// is and may be, calls under way across listings or not, and exact where it is not marked.
    #[test]
    fn a_total_is_what_there_is_and_what_may_be(steps in proptest::collection::vec(step(), 0..200)) {
        let mut total = checked(0);
        let mut there = 0_u64;
        let mut under_way: Vec<(u32, u32)> = Vec::new();
        let mut deletions: Vec<(u32, u32)> = Vec::new();
        let mut clock = 1000;
        // Its round, and what it has read.
        let mut listing: Option<(u32, Option<u64>)> = None;
        for step in steps {
            match (step, &mut listing) {
                (Step::Ask(units), _) => under_way.push((units, total.take(units))),
                (Step::Answer(nth, part) | Step::Lose(nth, part), _) if !under_way.is_empty() => {
                    let (units, round) = under_way.swap_remove(nth % under_way.len());
                    let made = units * part / 100;
                    there += u64::from(made);
                    if let Step::Lose(..) = step {
                        total.apply(Change::Keep { units, round });
                        total.apply(Change::Doubt);
                    } else {
                        total.apply(Change::Keep { units: made, round });
                        total.apply(Change::GiveBack { units: units - made, round });
                    }
                }
                (Step::Delete(units), _) => {
                    let gone = u64::from(units).min(there);
                    there -= gone;
                    deletions.push((u32::try_from(gone).unwrap(), total.basis()));
                }
                (Step::Deleted(nth), _) if !deletions.is_empty() => {
                    let (units, basis) = deletions.swap_remove(nth % deletions.len());
                    total.apply(Change::Lower { units, basis });
                }
                (Step::Begin, None) => {
                    total.apply(Change::Begin { now_s: clock });
                    listing = Some((total.round(), None));
                }
                (Step::List, Some((_, read @ None))) => *read = Some(there),
                (Step::End, Some((round, Some(listed)))) => {
                    clock += 1;
                    total.apply(Change::End { round: *round, listed: *listed, now_s: clock });
                    listing = None;
                }
                _ => (),
            }
            let asked: u64 = under_way.iter().map(|(units, _)| u64::from(*units)).sum();
            proptest::prop_assert!(total.count >= there + asked);
            // What is gone already, and not known to be.
            let gone: u64 = deletions.iter().map(|(units, _)| u64::from(*units)).sum();
            proptest::prop_assert!(total.approximate || total.count <= there + asked + gone);
        }
    }
}

fn step() -> impl proptest::strategy::Strategy<Value = Step> {
    use proptest::prelude::*;
    prop_oneof![
        4 => (1_u32..61).prop_map(Step::Ask),
        4 => (0_usize..8, 0_u32..101).prop_map(|(nth, part)| Step::Answer(nth, part)),
        1 => (0_usize..8, 0_u32..101).prop_map(|(nth, part)| Step::Lose(nth, part)),
        2 => (1_u32..30).prop_map(Step::Delete),
        2 => (0_usize..8).prop_map(Step::Deleted),
        2 => Just(Step::Begin),
        2 => Just(Step::List),
        2 => Just(Step::End),
    ]
}

#[test]
fn what_a_gateway_took_by_itself_is_kept_or_given_back_by_the_round_it_knew() {
    for known in [0, 1] {
        let mut total = Total::default();
        total.apply(Change::Set { count: 5, now_s: 9 });
        let (units, round) = (3, known);
        total.apply(Change::Take { units, round });
        assert_eq!((total.count, total.under_way()), (8, 3));
        total.apply(Change::Keep { units: 2, round });
        total.apply(Change::GiveBack { units: 1, round });
        assert_eq!((total.count, total.under_way()), (7, 0));
        assert!(!total.approximate);
    }
}
