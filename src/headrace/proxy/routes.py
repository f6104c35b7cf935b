"""The route table, as the head last sent it. It outlives the head."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable

import grpc
import structlog

from headrace.core.types import RouteTable
from headrace.errors import HeadraceError
from headrace.proxy.changed import Changed
from headrace.rpc import convert
from headrace.rpc.channel import from_rpc
from headrace.rpc.v1 import head_pb2
from headrace.rpc.v1.head_pb2_grpc import RouteServiceStub

log = structlog.get_logger()

_ENSURE_S = 10.0
_BACK_OFF_S = (0.1, 1.0)


class Routes:
    """Watches the head's routes, forever. `table` is None until the first one has come; `changed` tells of news.

    `on_table` is called with every table that is taken, before anyone is woken.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        head_address: str,
        proxy_id: str,
        on_table: Callable[[RouteTable], None] = lambda table: None,
        least_epoch: int = 0,
    ) -> None:
        """`least_epoch`: that of the head that started this proxy, which is the highest seen at first."""
        self.table: RouteTable | None = None
        self.connected = False
        self.changed = Changed()
        self.head_address = head_address
        self._stub = RouteServiceStub(channel)
        self._proxy_id = proxy_id
        self._highest_epoch = least_epoch
        self.on_table = on_table
        self._ensuring: dict[str, asyncio.Future[None]] = {}

    async def run(self) -> None:
        """Keep the table fresh until cancelled; with the head away, keep the last one."""
        delay = _BACK_OFF_S[0]
        while True:
            try:
                call = self._stub.Watch(head_pb2.WatchRoutesRequest(proxy_id=self._proxy_id, pid=os.getpid()))
                async for message in call:
                    delay = _BACK_OFF_S[0]
                    if not self.accept(convert.route_table_from_pb(message)):
                        call.cancel()  # a head that lost its leadership; ask again, the leader may answer
                        break
            except grpc.RpcError as e:
                log.debug("routes_watch_ended", error=str(from_rpc(e, f"the head at {self.head_address}")))
            except Exception:
                log.exception("routes_watch_failed")
            if self.connected:
                log.warning("head_away", head=self.head_address)
                self.connected = False
                self.changed.notify()
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, _BACK_OFF_S[1])

    def accept(self, table: RouteTable) -> bool:
        """Take a table that the head sent, unless its epoch is below the highest seen."""
        if table.epoch < self._highest_epoch:
            log.warning(
                "stale_routes_refused",
                epoch=table.epoch,
                seen=self._highest_epoch,
                hint="an older leader, or a head whose state was deleted: then start this proxy again",
            )
            return False
        self._highest_epoch = table.epoch
        if not self.connected:
            log.info("routes_connected", head=self.head_address, epoch=table.epoch, version=table.version)
        self.connected = True
        self.table = table
        self.on_table(table)
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
            await self._stub.Ensure(head_pb2.EnsureRequest(model=model), timeout=_ENSURE_S)
            mine.set_result(None)
        except grpc.RpcError as e:
            error = from_rpc(e, f"the head at {self.head_address}")
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
