"""Answers the head's questions about requests of this proxy, from its records."""

from __future__ import annotations

import asyncio
import os
import random

import grpc
import structlog

from headrace.proxy.record import Records
from headrace.rpc.channel import Connection
from headrace.rpc.convert_story import story_to_pb
from headrace.rpc.v1 import head_pb2
from headrace.rpc.v1.head_pb2_grpc import RouteServiceStub

log = structlog.get_logger()

_BACK_OFF_S = (0.1, 1.0)
_ANSWER_S = 2.0
_OLD_HEAD_S = 30.0  # one that asks nothing may be replaced


async def answer_questions(head: Connection, proxy_id: str, records: Records) -> None:
    """Keep listening to the head until cancelled."""
    delay = _BACK_OFF_S[0]
    while True:
        try:
            stub = RouteServiceStub(head.channel())
            async for question in stub.Questions(head_pb2.QuestionsRequest(proxy_id=proxy_id, pid=os.getpid())):
                delay = _BACK_OFF_S[0]
                story = records.story(question.request_id)
                answer = head_pb2.AnswerRequest(id=question.id, story=story_to_pb(story) if story else None)
                await stub.Answer(answer, timeout=_ANSWER_S)
        except grpc.aio.AioRpcError as e:
            if e.code() is grpc.StatusCode.UNIMPLEMENTED:
                delay = _OLD_HEAD_S
        except Exception:
            log.exception("questions_failed")
        await asyncio.sleep(delay * random.uniform(0.5, 1.0))
        delay = min(delay * 2, _BACK_OFF_S[1])
