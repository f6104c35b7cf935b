"""The route table: what the head last sent of it, change by change. It outlives the head."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable

import grpc
import structlog

from headrace.core.route_delta import NOTHING, RouteDelta, apply, diff, follows
from headrace.core.types import RouteTable
from headrace.errors import Forbidden, HeadraceError, InvalidRequest, TlsFailed
from headrace.proxy.changed import Changed
from headrace.rpc import convert_head
from headrace.rpc.channel import Connection, from_rpc
from headrace.rpc.v1 import head_pb2
from headrace.rpc.v1.head_pb2_grpc import RouteServiceStub

log = structlog.get_logger()

_ENSURE_S = 10.0
_BACK_OFF_S = (0.1, 1.0)


class Routes:
    """Watches the head's routes, forever. `table` is None until the first one has come; `changed` tells of news.

    `on_change` is called with what each table that is taken changes of the one before it, before anyone is woken.
    """

    def __init__(
        self,
        head: Connection,
        proxy_id: str,
        on_change: Callable[[RouteDelta], None] = lambda change: None,
        least_epoch: int = 0,
    ) -> None:
        """`least_epoch`: that of the head that started this proxy, which is the highest seen at first."""
        self.table: RouteTable | None = None
        self.connected = False
        self.changed = Changed()
        self._head = head
        self.head_address = head.address
        self._told = ""  # of not getting in, the last reason that was logged
        self._proxy_id = proxy_id
        self._highest_epoch = least_epoch
        self.on_change = on_change
        self._ensuring: dict[str, asyncio.Future[None]] = {}

    async def run(self) -> None:
        """Keep the table fresh until cancelled; with the head away, keep the last one."""
        delay = _BACK_OFF_S[0]
        while True:
            try:
                call = RouteServiceStub(self._head.channel()).Watch(
                    head_pb2.WatchRoutesRequest(proxy_id=self._proxy_id, pid=os.getpid())
                )
                async for message in call:
                    delay = _BACK_OFF_S[0]
                    if not self.accept(convert_head.route_delta_from_pb(message)):
                        call.cancel()  # ask again: for all of the table, or for that of the leader
                        break
            except grpc.RpcError as e:
                self._tell(self._error(e))
            except Exception:
                log.exception("routes_watch_failed")
            if self.connected:
                log.warning("head_away", head=self._head.address)
                self.connected = False
                self.changed.notify()
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, _BACK_OFF_S[1])

    def _tell(self, error: HeadraceError) -> None:
        """A head that is away is no news; one that does not let us in is, once."""
        if isinstance(error, TlsFailed | Forbidden | InvalidRequest) and error.message != self._told:
            self._told = error.message
            log.error("head_refuses", error=error.message)
        else:
            log.debug("routes_watch_ended", error=error.message)

    def _error(self, e: grpc.RpcError) -> HeadraceError:
        return from_rpc(e, f"the head at {self._head.address}", self._head.expected)

    def accept(self, delta: RouteDelta) -> bool:
        """Take what the head sent, unless its epoch is below the highest seen or it builds upon another table."""
        if delta.epoch < self._highest_epoch:
            log.warning(
                "stale_routes_refused",
                epoch=delta.epoch,
                seen=self._highest_epoch,
                hint="an older leader, or a head whose state was deleted: then start this proxy again",
            )
            return False
        before = self.table or NOTHING
        if not follows(delta, before):
            log.warning("routes_gap", epoch=delta.epoch, base=delta.base, have=(before.epoch, before.version))
            return False
        self._highest_epoch = delta.epoch
        if not self.connected:
            log.info("routes_connected", head=self._head.address, epoch=delta.epoch, version=delta.version)
        self.connected = True
        self.table = apply(delta, before)
        self.on_change(delta if delta.base else diff(before, self.table))
        self.changed.notify()
        return True

    async def ensure(self, model: str) -> None:
        """Have the head deploy a catalogued model. However many callers at once, one call is made."""
        running = self._ensuring.get(model)
        if running is not None:
            await asyncio.shield(running)
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ensuring[model] = mine
        try:
            await RouteServiceStub(self._head.channel()).Ensure(head_pb2.EnsureRequest(model=model), timeout=_ENSURE_S)
            mine.set_result(None)
        except grpc.RpcError as e:
            error = self._error(e)
            mine.set_exception(error)
            raise error from e
        except asyncio.CancelledError:
            # The caller left; those who wait with it try for themselves.
            mine.set_exception(HeadraceError("The request that asked for this model was cancelled."))
            raise
        finally:
            del self._ensuring[model]
            if mine.done() and not mine.cancelled():
                mine.exception()  # seen, even when nobody waited with us
