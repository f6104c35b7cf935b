"""What to do after a replica has failed: start it again after a pause, or give up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """The pause doubles from `first_delay_s` to `max_delay_s`; `steady_s` of READY make up for all failures before."""

    first_delay_s: float = 0.5
    max_delay_s: float = 30.0
    steady_s: float = 60.0
    max_failures: int = 3


DEFAULT_POLICY = RestartPolicy()


@dataclass(frozen=True, slots=True)
class Restart:
    """Start again after `delay_s`. `failures`: how many there were in a row, this one included."""

    delay_s: float
    failures: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not start again; `reason` is for people."""

    reason: str


def after_failure(
    failures: int,
    ready_since: float | None,
    now: float,
    jitter: float,
    reason: str,
    *,
    permanent: bool = False,
    policy: RestartPolicy = DEFAULT_POLICY,
) -> Restart | GiveUp:
    """Decide after a failure at `now`.

    failures: how many came before it in a row. ready_since: when the run that failed became READY; None: it never did.
    jitter: 0 ≤ jitter < 1, so that those that fell together do not rise together. permanent: trying again cannot help.
    """
    if permanent:
        return GiveUp(reason)
    steady = ready_since is not None and now - ready_since >= policy.steady_s
    in_a_row = 1 if steady else failures + 1
    if in_a_row >= policy.max_failures:
        return GiveUp(f"gave up after {in_a_row} failures in a row: {reason}")
    doubled = policy.first_delay_s * 2.0 ** min(in_a_row - 1, 32)
    return Restart(min(policy.max_delay_s, doubled * (1.0 + jitter)), in_a_row)
