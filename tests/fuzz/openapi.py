"""What the OpenAPI document says may be sent, and what it says may not, by schemathesis."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode

from fuzz.rules import of_status

KIND = "openapi"
_SILENCE_S = 30.0


class Found(Exception):
    """An answer that is wrong; the smallest request that gets it."""


class Enough(BaseException):
    """Raised by who counts the cases, when no more are wanted. Hypothesis looks at exceptions only."""


def _models(value: Any, r: random.Random) -> Any:
    """A body with a model that there is: of others the proxy says only that there is none."""
    if isinstance(value, dict) and isinstance(value.get("model"), str) and r.random() < 0.95:
        return value | {"model": r.choice(("sim1", "sim1", "demo"))}
    return value


def operations(url: str) -> list[tuple[str, Any]]:
    """The operations that the running program describes, by name."""
    schema = schemathesis.openapi.from_dict(requests.get(f"{url}/openapi.json", timeout=_SILENCE_S).json())
    return [(o.ok().label, o.ok()) for o in schema.get_all_operations()]


def try_operation(url: str, operation: Any, seed: int, examples: int, on_case: Callable[[], None]) -> str:
    """Send so many requests of one operation; the first complaint, with the smallest request for it, or nothing."""
    session = requests.Session()
    session.trust_env = False
    r = random.Random(seed)

    def send(case: Any) -> None:
        on_case()
        case.body = _models(case.body, r)
        if "model" in (case.path_parameters or {}):
            case.path_parameters["model"] = "sim1"
        try:
            response = case.call(base_url=url, session=session, timeout=_SILENCE_S, stream=False)
        except requests.exceptions.InvalidHeader:
            hypothesis.reject()  # requests does not send it
        except (requests.RequestException, OSError) as e:
            raise Found(f"no answer: {e}\n{case.as_curl_command(base_url=url)}") from None
        if wrong := of_status(response.status_code, response.text):
            raise Found(f"{wrong}\n{case.as_curl_command(base_url=url)}\n{response.text[:500]}")

    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        try:
            strategy = operation.as_strategy(generation_mode=mode)
            test = hypothesis.settings(
                max_examples=max(1, examples // 2), deadline=None, database=None, print_blob=False, derandomize=False,
                suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
            )(hypothesis.seed(seed)(hypothesis.given(strategy)(send)))  # fmt: skip
            test()
        except Found as e:
            return str(e)
        except Enough:
            break
        except hypothesis.errors.Unsatisfiable:
            continue  # nothing can be sent against the rules of an operation that has none
    return ""
