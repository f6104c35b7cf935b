"""When a certificate is renewed, and how often that is tried."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

import structlog

from headrace.errors import HeadraceError
from headrace.rpc import certificates
from headrace.rpc.credentials import RENEW_AT, Kept

log = structlog.get_logger()

_LOOK_S = 60.0  # a machine may have slept, or its clock have been set
_SHARE = 20  # of a certificate's life lies between two tries


async def until_renewed(kept: Kept, renew: Callable[[], Awaitable[None]]) -> None:
    """Wait until it is time to renew, then do so, again and again until it has worked or somebody else has done it."""
    while True:
        begin, end = certificates.life(kept.current().certificate)
        now = time.time()
        wait_s = begin + RENEW_AT * (end - begin) - now
        if wait_s > 0 and now > begin - certificates.SKEW_S:  # a clock that was set back: it is not valid yet
            await asyncio.sleep(min(wait_s, _LOOK_S))
            continue
        try:
            await renew()
            log.info("certificate_renewed", path=str(kept.path))
            return
        except (HeadraceError, OSError) as e:
            log.warning(
                "certificate_not_renewed", path=str(kept.path), ends_in_s=round(end - time.time()), error=str(e)
            )
        await asyncio.sleep(min(_LOOK_S, (end - begin) / _SHARE) * random.uniform(0.5, 1.0))
