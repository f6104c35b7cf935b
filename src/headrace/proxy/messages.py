"""The messages of a conversation, as OpenAI has them, and as the replica's chat template gets them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema, model_validator
from pydantic_core import to_json

from headrace.core.streams import ChatPrompt
from headrace.proxy.fields import Content, Only, Unsupported
from headrace.proxy.strict import Rejected, Strict
from headrace.proxy.tools import MAX_TOOLS


def _spoken(value: Any) -> str:
    """The arguments of a call in a history, whatever the model or a client has made of them: history is data."""
    return value if isinstance(value, str) else "" if value is None else to_json(value).decode()


class CalledFunction(Strict):
    name: str = Field(max_length=256)
    arguments: Annotated[
        str,
        PlainValidator(_spoken),
        WithJsonSchema({"type": ["string", "object", "null"], "description": "JSON; also if it is cut short."}),
    ] = ""


class MessageToolCall(Strict):
    id: str = Field(min_length=1, max_length=128)
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = Field(None, description="Accepted; no effect.")


_NOT_IN_NAMES = re.compile(r"[\s<|\\/>]")


def _name(value: str) -> str:
    if not 1 <= len(value) <= 64 or _NOT_IN_NAMES.search(value):
        raise Rejected("must be 1 to 64 characters without spaces and any of < | \\ / >")
    return value


Name = Annotated[str, AfterValidator(_name), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 64})]


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = Field(None, description="May be null or absent for an assistant.")
    name: Name | None = None
    tool_calls: list[MessageToolCall] | None = Field(
        None, max_length=MAX_TOOLS, fail_fast=True, description="Of an assistant."
    )
    tool_call_id: str | None = Field(
        None, min_length=1, max_length=128, description="Of a tool: which call it answers."
    )
    reasoning: str | None = Field(None, description="Of an assistant; the chat template gets it.")
    reasoning_content: str | None = Field(None, description="The same by its other name.")
    refusal: Unsupported = None
    annotations: Annotated[Any, Only(([],))] = None
    audio: Unsupported = None
    function_call: Unsupported = None

    @model_validator(mode="after")
    def _fits_role(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise Rejected("is required", ".content")
        if self.role == "tool" and self.tool_call_id is None:
            raise Rejected("is required for the role 'tool'", ".tool_call_id")
        owners = {"tool_call_id": "tool", "tool_calls": "assistant", "reasoning": "assistant"}
        for field, role in (owners | {"reasoning_content": "assistant"}).items():
            if getattr(self, field) is not None and self.role != role:
                raise Rejected(f"belongs to the role '{role}' only", f".{field}")
        return self

    def plain(self) -> dict[str, Any]:
        """As chat templates know messages."""
        # OpenAI's newer name for the system's role; chat templates know the older one.
        out: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": self.content}
        if self.name:
            out["name"] = self.name
        if self.tool_calls:
            out["tool_calls"] = [
                {
                    "id": c.id,
                    "type": "function",
                    "function": {"name": c.function.name, "arguments": c.function.arguments},
                }
                for c in self.tool_calls
            ]
        if self.tool_call_id:
            out["tool_call_id"] = self.tool_call_id
        if reasoning := self.reasoning or self.reasoning_content:
            out["reasoning_content"] = reasoning
        return out


def chat_prompt(messages: Sequence[Message]) -> ChatPrompt:
    return ChatPrompt(to_json([m.plain() for m in messages]))


def user_prompt(text: str) -> ChatPrompt:
    """One message of a user."""
    return ChatPrompt(to_json([{"role": "user", "content": text}]))
