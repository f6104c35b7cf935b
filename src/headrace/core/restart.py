"""What to do after a replica has failed: start it again after a pause, or give up."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.core.causes import TABLE, Again, Cause


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """The pause doubles from `first_delay_s` to `max_delay_s`; `steady_s` of READY make up for all failures before."""

    first_delay_s: float = 0.5
    max_delay_s: float = 60.0
    steady_s: float = 60.0
    max_failures: int = 3


DEFAULT_POLICY = RestartPolicy()


@dataclass(frozen=True, slots=True)
class Failures:
    """What came in a row: `all`, whatever the cause, and `counted`, those of which too many end it."""

    all: int = 0
    counted: int = 0


NONE = Failures()


@dataclass(frozen=True, slots=True)
class Restart:
    """Start again after `delay_s`. `failures`: with this one."""

    delay_s: float
    failures: Failures


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not start again; `reason` is for people."""

    reason: str


def after_failure(
    before: Failures,
    ready_since: float | None,
    now: float,
    jitter: float,
    reason: str,
    *,
    cause: Cause = Cause.CRASH,
    proven: bool = False,
    policy: RestartPolicy = DEFAULT_POLICY,
) -> Restart | GiveUp:
    """Decide after a failure at `now`.

    ready_since: when the run that failed became READY; None: it never did. jitter: 0 ≤ jitter < 1, so that those that
    fell together do not rise together. proven: its revision has served, so that it is worth trying for ever.
    """
    rule = TABLE[cause]
    if ready_since is not None and now - ready_since >= policy.steady_s:
        before = NONE
    failures = Failures(before.all + 1, before.counted + (rule.again is Again.COUNTED))
    if not proven:
        if rule.again is Again.NEVER:
            return GiveUp(reason)
        if rule.again is Again.COUNTED and failures.counted >= policy.max_failures:
            return GiveUp(f"gave up after {failures.counted} failures in a row: {reason}")
    # Those that have waited for longest are to be apart as well, so the jitter goes below the limit.
    doubled = policy.first_delay_s * 2.0 ** min(before.all, 32)
    longest = max(policy.first_delay_s, min(policy.max_delay_s, rule.longest_s) / 2)
    return Restart(min(doubled, longest) * (1.0 + jitter), failures)
