"""Whether a stream may go on at another replica after its first token."""

from __future__ import annotations

from headrace.core.types import Submit, Task


def can_resume(submit: Submit) -> bool:
    """True if prompt and delivered tokens say all there is to know.

    A guide and a parser of tool calls have a state of their own that only the first replica has. What generates nothing
    is simply done again. Of a request with several choices only the caller knows: each choice is a submit.
    """
    return (
        submit.task is Task.GENERATE
        and submit.guide is None
        and submit.prompt_logprobs is None
        and (not submit.tools_json or submit.tool_choice == "none")
    )
