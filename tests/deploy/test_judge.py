"""What is wrong with a whole deployment would be found."""

import copy
import unittest

from judge import OF_DAY, OF_WINDOW, VERBS, WINDOW, Call, Killed, Record, grown

APP = "o/a"
# One more each time, so that nothing is at the same time.
STEP = 0.01


def call(number, route, status, sent, at="one"):
    return Call(f"{at}-{number}", APP, route, sent, sent + STEP / 2, status, at)


def good():
    """Twenty windows, each used up at its beginning: all was well, but for a gateway and a master that
    were killed when nobody called."""
    calls = [
        call(window * 1000 + number, "t-window", 200 if number < OF_WINDOW else 429, 1.01 * WINDOW * window + STEP * number)
        for window in range(20)
        for number in range(OF_WINDOW + 5)
    ]
    calls += [
        call(100_000 + number, "t-day", 200 if number < OF_DAY else 429, STEP * number / 2) for number in range(OF_DAY + 5)
    ]
    told = {}
    for one in calls:
        key = ("one", one.route, VERBS[one.status])
        told[key] = told.get(key, 0) + 1
    return Record(
        calls=calls,
        came=[(one.id, one.sent + STEP / 4) for one in calls if one.status == 200],
        phases=[("all", 0), ("the end", 1000)],
        gateway=Killed("two", 48, 48.1, 49),
        master=Killed("redis", 68, 68.1, 69),
        victims={APP},
        min_gateways=31,
        gateways=3,
        most_gateways=6,
        # Not near a midnight.
        epoch=86400 * 20_000 + 1000,
        told=told,
        restarted=["two"],
        scrapes=[46, 47, 47.5],
        alone=[],
    )


class Judged(unittest.TestCase):
    def setUp(self):
        self.record = good()

    def found(self, why):
        with self.assertRaisesRegex(AssertionError, why):
            self.record.judge()

    def admitted(self, sent, route="t-window"):
        """One more that is admitted, as all of them have it."""
        one = call(f"more-{sent}", route, 200, sent)
        self.record.calls.append(one)
        self.record.came.append((one.id, sent + STEP / 4))
        self.record.told["one", route, "admit"] += 1

    def lost(self, sent, status=502):
        one = call(1, "t-window", status, sent, at="two")
        self.record.calls.append(one)
        return one

    def test_what_is_good_is_found_good(self):
        self.record.judge()

    def test_one_call_too_many(self):
        self.admitted(2)
        self.found(f"{OF_WINDOW + 1} within {WINDOW} s")

    def test_one_call_too_many_a_day(self):
        self.admitted(40, "t-day")
        self.found(f"{OF_DAY + 1}.* of {OF_DAY} a day")

    def test_shares_are_given_while_the_master_is_away_and_no_more(self):
        window = next(one.sent for one in self.record.calls if one.sent > 60 and one.status == 200)
        self.record.master = Killed("redis", window + 3, window + 3.1, window + 4)
        # What three gateways of 31 have.
        for number in range(3 * (OF_WINDOW // 31)):
            self.admitted(window + 3.5 + STEP * number)
        self.record.judge()
        more = copy.deepcopy(self.record)
        self.admitted(window + 4)
        self.found("within")
        # Its counters were elsewhere.
        self.record = more
        self.record.victims = set()
        self.found("within")

    def test_a_call_that_failed_elsewhere_or_later(self):
        one = self.lost(48.05)
        self.record.judge()
        for elsewhere in ["one", None]:
            one.pod = elsewhere
            self.found("status=502")
        one.pod, one.sent = "two", 48.2
        self.found("status=502")

    def test_a_call_that_had_no_answer_before(self):
        one = self.lost(48.05, status=0)
        one.pod = None
        self.record.judge()
        one.answered = 47.9
        self.found("status=0")

    def test_a_call_that_came_twice_or_not_or_though_it_was_denied(self):
        came = list(self.record.came)
        for wrong in [came + came[:1], came[1:], came + [(self.record.calls[OF_WINDOW + 1].id, 3)]]:
            self.record.came = wrong
            self.found("one-")

    def test_one_call_that_prometheus_lacks_or_has_too_many(self):
        for more in [1, -1]:
            self.record = good()
            self.record.told["one", "t-window", "deny"] += more
            self.found("told")

    def test_what_the_killed_process_had_before_its_last_scrape_but_one(self):
        one = self.lost(47.1, status=429)
        self.record.judge()
        one.sent, one.answered = 46.8, 46.9
        self.found("0 told, 1 had, 0 late")
        self.record.told["two", "t-window", "deny"] = 1
        self.record.judge()

    def test_an_app_that_gets_nothing(self):
        for one in self.record.calls:
            one.app = "o/b" if one.route == "t-day" and one.status == 429 else APP
        self.found("all: o/b")

    def test_a_killed_pod_counted_twice_from_nothing(self):
        samples = [(1, 3), (2, 5), (4, 6), (5, 7)]
        self.assertEqual(grown(samples), 7)
        self.assertEqual(grown(samples, killed=3), 5 + 7)
