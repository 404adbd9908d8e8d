"""What must hold of a whole deployment, by what callers, backend, balancer and Prometheus noted of it."""

import collections
from dataclasses import dataclass, field

# Limits of the routes that are called: units within so many seconds, and in a day.
WINDOW, OF_WINDOW, OF_DAY = 5, 124, 155
# Full accuracy is back so long after the store (README).
SEEDING = 2
# How late units of a lease may still be used.
LEASE, LEASE_OF_DAY = WINDOW / 50, 1
# Prometheus asks so often.
SCRAPE = 1
DAY = 86400
VERBS = {200: "admit", 429: "deny"}


@dataclass
class Call:
    """A call as its caller saw it; all times here are of the monotonic clock."""

    id: str
    app: str
    route: str
    sent: float = 0
    answered: float = 0
    # 0: no answer.
    status: int = 0
    # Where it went, as the balancer says.
    pod: str | None = None


@dataclass
class Killed:
    """A process that was killed at some time within these two; until when that may be felt."""

    what: str
    begun: float
    dead: float
    ended: float = 0

    def meets(self, begin, end):
        return begin <= self.ended and self.begun <= end


@dataclass
class Record:
    """What was noted."""

    calls: list
    # When each call came to the backend: its ID, the time.
    came: list
    # What happened, and from when on.
    phases: list
    gateway: Killed
    master: Killed
    # Whose counters were on the master that died.
    victims: set
    min_gateways: int
    # How many gateways there were then, and the most there were.
    gateways: int
    most_gateways: int
    # Unix time at 0.
    epoch: float
    # By how much the counters grew, by pod, route and verb.
    told: dict
    # Pods of which Prometheus saw that they began anew.
    restarted: list
    # When Prometheus scraped the pod that was killed.
    scrapes: list
    # Between which scrapes a gateway decided without the store.
    alone: list
    # What is worth to be said.
    notes: list = field(default_factory=list)

    def judge(self):
        self.all_are_answered()
        self.backend_has_what_was_admitted()
        self.prometheus_has_the_same()
        self.none_is_over()

    def pod(self, call):
        """The pod that got a call. HAProxy says nothing of the second call of a connection if it gets no
        answer, and closes it. Of another pod, Prometheus would tell of more than its callers had."""
        return call.pod or (self.gateway.what if call.status == 0 else None)

    def is_lost(self, call):
        """Whether a call was on a socket of the gateway that was killed."""
        was_there = call.sent <= self.gateway.dead and call.answered >= self.gateway.begun
        return was_there and self.pod(call) == self.gateway.what

    def all_are_answered(self):
        for call in self.calls:
            assert call.status in VERBS or self.is_lost(call), str(call)
        for (what, begin), (_, end) in zip(self.phases, self.phases[1:]):
            for app in {call.app for call in self.calls}:
                its = [call.status for call in self.calls if call.app == app and begin <= call.sent < end]
                assert {200, 429} <= set(its), f"{what}: {app}: {collections.Counter(its)}"

    def backend_has_what_was_admitted(self):
        """Once, and nothing else."""
        came = collections.Counter(call for call, _ in self.came)
        twice = [call for call, times in came.items() if times > 1]
        assert not twice, twice
        unsure = {call.id for call in self.calls if call.status not in VERBS}
        wrong = (came.keys() - unsure) ^ {call.id for call in self.calls if call.status == 200}
        assert not wrong, wrong

    def prometheus_has_the_same(self):
        """To the unit. Of the process that was killed, what it had before its last scrape but one at
        least: a call is counted when its answer is on its way, and the last scrape may have
        been first."""
        scrapes = [at for at in self.scrapes if at < self.gateway.begun]
        had, late = collections.Counter(), collections.Counter()
        for call in self.calls:
            # One without an answer is counted as something, or not.
            verbs = [VERBS[call.status]] if call.status in VERBS else VERBS.values()
            pod = self.pod(call)
            is_late = pod == self.gateway.what and call.answered >= scrapes[-2] and call.sent <= self.gateway.dead
            for verb in verbs:
                had[pod, call.route, verb] += call.status in VERBS or is_late
                late[pod, call.route, verb] += is_late
        for key in had.keys() | self.told.keys():
            told = self.told.get(key, 0)
            assert had[key] - late[key] <= told <= had[key], f"{key}: {told} told, {had[key]} had, {late[key]} late"
        assert self.restarted == [self.gateway.what], self.restarted
        for verb in VERBS.values():
            of_callers, of_prometheus, may_lack = (
                sum(value for key, value in of.items() if key[2] == verb) for of in (had, self.told, late)
            )
            self.notes.append(
                f"{verb}: {of_callers} by the callers, {of_prometheus:.0f} by Prometheus, which may lack {may_lack}"
            )

    def none_is_over(self):
        came = dict(self.came)
        of_app = collections.defaultdict(list)
        for call in self.calls:
            if call.id in came:
                of_app[call.app, call.route].append((call.sent, came[call.id]))
        for (app, route), admitted in sorted(of_app.items()):
            if route == "t-day":
                self.not_in_a_day(app, admitted)
            else:
                self.not_in_a_window(app, admitted)

    def beyond(self, app, admitted, begin, end, quota, lease):
        """How much more an outage of the store may give: a share for each gateway, and what the dead
        master may not have told its replica (README): units that were still to be used then."""
        planned, gateways, untold = self.master, 0, 0
        for from_, to in self.alone:
            # The store was too slow, on a machine with other work.
            is_planned = planned.begun - SCRAPE <= from_ and to <= planned.ended + SCRAPE
            if not is_planned and from_ <= end and begin <= to:
                gateways = self.most_gateways
        if app in self.victims and planned.meets(begin, end):
            gateways = max(gateways, self.gateways)
            untold = sum(sent <= planned.dead + lease and came >= planned.begun for sent, came in admitted)
        return gateways * (quota // self.min_gateways) + untold

    def not_in_a_window(self, app, admitted):
        calm, most, strict, windows = 0, 0, 0, 0
        for units, begin, end in most_at_once(admitted, WINDOW):
            beyond = self.beyond(app, admitted, begin, end, OF_WINDOW, LEASE)
            assert units <= OF_WINDOW + beyond, f"{app}: {units} within {WINDOW} s from {begin - self.phases[0][1]:.3f}"
            most = max(most, units)
            calm = calm if beyond else max(calm, units)
            strict, windows = strict + (beyond == 0), windows + 1
        # Nothing is over where next to nothing is let in.
        assert calm > OF_WINDOW * 0.8, f"{app}: {calm} of {OF_WINDOW} at most"
        self.notes.append(
            f"{app}: at most {most} of {OF_WINDOW} within {WINDOW} s, {calm} in the {strict} of {windows} that had to be exact"
        )

    def not_in_a_day(self, app, admitted):
        begin, end = self.phases[0][1], self.phases[-1][1]
        before = [(sent, came) for sent, came in admitted if came < self.master.begun]
        for some, until in [(before, before[-1][1]), (admitted, end)]:
            days = collections.Counter()
            for sent, came in some:
                first, last = ((at + self.epoch) // DAY for at in (sent, came))
                days[first] += first == last
            most = OF_DAY + self.beyond(app, admitted, begin, until, OF_DAY, LEASE_OF_DAY)
            assert max(days.values()) <= most, f"{app}: {days} of {most} a day"
        assert sum(days.values()) > OF_DAY * 0.8, f"{app}: {days} of {OF_DAY} a day"
        since = [f"{came - self.master.begun:.3f}" for _, came in admitted if came >= self.master.begun]
        self.notes.append(f"{app}: {max(days.values())} of {OF_DAY} in a day; seconds after the master died: {since}")


def most_at_once(admitted, seconds):
    """For each call, how many were certainly admitted within this time from then on: each was charged
    after it was sent, and before it came to the backend."""
    admitted = sorted(admitted)
    for at, (begin, _) in enumerate(admitted):
        end, units = begin + seconds, 0
        for sent, came in admitted[at:]:
            if sent >= end:
                break
            units += came < end
        yield units, begin, end


def grown(samples, killed=None):
    """What the processes of a pod counted: each its last value. A small counter of a second one may
    be above the first one's last when it is first seen."""
    before = [value for at, value in samples if killed and at < killed]
    after = [value for at, value in samples if not (killed and at < killed)]
    return sum(values[-1] for values in (before, after) if values)
