"""The request limiter, on a clock of its own."""

from __future__ import annotations

import pytest

from ctgpu.sources.hub.quota import LONGEST_WAIT_S, RequestQuota, stated_wait_s


class Clock:
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@pytest.mark.slow
@pytest.mark.parametrize("part_count", [1, 3])
def test_no_window_ever_sees_more_than_the_quota(part_count: int) -> None:
    clock = Clock()
    quota = RequestQuota(500, 300.0, part_count, clock)
    sent = []
    for _ in range(2000):
        quota.acquire(clock.wait)
        sent.append(clock.now)
    share = 500 / part_count
    assert max(sum(t <= s < t + 300 for s in sent) for t in sent) <= share + 1
    # And the quota is used, not wasted.
    assert 2000 / (sent[-1] - sent[0]) > 0.85 * share / 300


def test_a_burst_is_free_and_comes_back_when_idle() -> None:
    clock = Clock()
    quota = RequestQuota(1000, 300.0, clock=clock)
    for _ in range(2):
        began = clock.now
        for _ in range(100):
            quota.acquire(clock.wait)
        assert clock.now == began
        quota.acquire(clock.wait)
        assert clock.now > began
        clock.now += 10_000


def test_unknown_quotas_do_not_wait_until_an_answer_states_them() -> None:
    clock = Clock()
    quota = RequestQuota(None, clock=clock)
    for _ in range(5000):
        quota.acquire(clock.wait)
    assert clock.now == 1000.0
    quota.learn({"RateLimit-Policy": '"fixed window";"resolvers";q=300;w=300'})
    for _ in range(100):
        quota.acquire(clock.wait)
    assert clock.now == pytest.approx(1000 + 100 / 0.9, rel=0.4)


def test_nothing_left_pauses_everyone_until_the_window_ends() -> None:
    clock = Clock()
    quota = RequestQuota(None, clock=clock)
    quota.learn({"RateLimit": '"api";r=3;t=55'})
    quota.acquire(clock.wait)
    assert clock.now == 1000.0
    quota.learn({"RateLimit": '"api";r=0;t=55'})
    quota.acquire(clock.wait)
    assert clock.now == 1056.0
    quota.learn({"RateLimit": "rubbish", "RateLimit-Policy": "q=0;w=0"})
    quota.acquire(clock.wait)
    assert clock.now == 1056.0


@pytest.mark.parametrize(
    "headers",
    [
        {"RateLimit": '"api";r=0;t=999999999'},
        {"RateLimit": f'"api";r=0;t={"9" * 400}'},
        {"RateLimit-Policy": "q=1;w=999999999"},
        {"RateLimit-Policy": f"q=1;w={'9' * 400}"},
        {"RateLimit-Policy": "q=1;w=999999999", "RateLimit": "r=0;t=999999999"},
    ],
)
def test_no_request_waits_longer_than_the_longest_wait(headers: dict[str, str]) -> None:
    clock = Clock()
    quota = RequestQuota(None, clock=clock)
    for _ in range(5):
        quota.learn(headers)
        before = clock.now
        quota.acquire(clock.wait)
        assert clock.now - before <= LONGEST_WAIT_S
    assert clock.now > 1000 + 2 * LONGEST_WAIT_S
    # And a policy that makes sense again is kept again.
    quota.learn({"RateLimit-Policy": "q=3000;w=300"})
    clock.now += LONGEST_WAIT_S
    for _ in range(10):
        before = clock.now
        quota.acquire(clock.wait)
    assert clock.now - before < 1


@pytest.mark.parametrize(
    "policy", ["q=0;w=300", "q=5;w=0", "q=-1;w=300", "q=nan;w=inf", f"q={'9' * 400};w=1", "q=1e9"]
)
def test_a_policy_that_makes_no_sense_holds_nobody(policy: str) -> None:
    clock = Clock()
    quota = RequestQuota(None, clock=clock)
    quota.learn({"RateLimit-Policy": policy})
    for _ in range(100):
        quota.acquire(clock.wait)
    assert clock.now == pytest.approx(1000.0)


@pytest.mark.parametrize(
    ("stated", "wait_s"),
    [
        ("7", 7),
        ("0", 0),
        ("600", 600),
        ("864000", 600),
        ("9" * 400, 600),
        ("9" * 5000, None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 600),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None),
        ("nan", None),
        ("inf", None),
        ("-5", None),
        ("", None),
    ],
)
def test_what_a_server_asks_to_wait(stated: str, wait_s: float | None) -> None:
    assert stated_wait_s({"Retry-After": stated}) == wait_s
    assert stated_wait_s({"Retry-After": stated, "RateLimit": '"api";r=0;t=55'}) == (
        55 if wait_s is None else wait_s
    )
    assert stated_wait_s({"RateLimit": '"api";r=0;t=999999999'}) == LONGEST_WAIT_S


def test_a_pause_holds_those_who_already_wait() -> None:
    clock = Clock()
    quota = RequestQuota(10, 10.0, clock=clock)

    def wait_and_be_paused(seconds: float) -> None:
        if clock.now < 1050:
            quota.pause(100)
        clock.wait(seconds)

    for _ in range(2):  # the burst
        quota.acquire(clock.wait)
    quota.acquire(wait_and_be_paused)
    assert clock.now >= 1100


def test_waiting_can_be_given_up() -> None:
    quota = RequestQuota(10, clock=Clock())
    quota.pause(1)

    def give_up(seconds: float) -> None:
        raise RuntimeError("closed")

    with pytest.raises(RuntimeError, match="closed"):
        quota.acquire(give_up)
