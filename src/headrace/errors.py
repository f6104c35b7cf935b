"""Errors that may reach a person, each with its HTTP status and OpenAI error type.

    HeadraceError 500
    ├── InvalidRequest 400        bad input; `param` names the field
    │   └── ContextExceeded 400   prompt longer than the model's context
    ├── Unauthorized 401
    ├── Forbidden 403
    ├── NotFound 404
    ├── RequestTimeout 408        the caller's own deadline passed
    ├── Conflict 409
    ├── Gone 410                  what was there is kept no more
    ├── TooLarge 413
    ├── UnsupportedMedia 415      a body in a form, charset or packing that is not taken
    ├── Quarantined 422           two replicas died with this request
    ├── Overloaded 429            shed by policy; `retry_after_s` says when to come back
    ├── Unavailable 503           nothing can serve it now
    │   ├── Draining 503          this replica takes nothing new; another may
    │   ├── NotLoaded 503         this replica lacks the adapter; another may have it
    │   ├── TlsFailed 503         no connection to a part: the certificates do not fit
    │   ├── ReplicaGone 503       the replica died or stopped answering
    │   ├── CannotResume 503      …and no other could go on with exactly the next token
    │   └── NotHere 503           this replica does not keep the stream that is to be taken over
    ├── Fenced 409                a newer leader or scheduler has taken over
    └── UserError                 CLI only: one sentence, exit code 1

The message is the product: one sentence that says what is wrong and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class HeadraceError(Exception):
    """Base of all errors a person may see. `kind` is its name on the wire."""

    kind: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        self.retry_after_s = retry_after_s
        self.told = message  # to clients; `message` may say more, for logs

    def body(self) -> dict[str, dict[str, str | None]]:
        """The HTTP body, in OpenAI's shape."""
        return {
            "error": {
                "message": self.told,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class InvalidRequest(HeadraceError):
    kind, status, type = "invalid_request", 400, "invalid_request_error"


class ContextExceeded(InvalidRequest):
    kind, default_code = "context_exceeded", "context_length_exceeded"


class Unauthorized(HeadraceError):
    kind, status, type, default_code = "unauthorized", 401, "authentication_error", "invalid_api_key"


class Forbidden(HeadraceError):
    kind, status, type = "forbidden", 403, "permission_error"


class NotFound(HeadraceError):
    kind, status, type, default_code = "not_found", 404, "invalid_request_error", "not_found"


class RequestTimeout(HeadraceError):
    kind, status, type, default_code = "timeout", 408, "timeout_error", "timeout"


class Conflict(HeadraceError):
    kind, status, type, default_code = "conflict", 409, "invalid_request_error", "conflict"


class Fenced(HeadraceError):
    kind, status, type, default_code = "fenced", 409, "server_error", "fenced"


class TooLarge(HeadraceError):
    kind, status, type, default_code = "too_large", 413, "invalid_request_error", "request_too_large"


class UnsupportedMedia(HeadraceError):
    kind, status, type, default_code = "unsupported_media", 415, "invalid_request_error", "unsupported_media_type"


class Overloaded(HeadraceError):
    kind, status, type, default_code = "overloaded", 429, "rate_limit_error", "overloaded"


class Unavailable(HeadraceError):
    kind, status, type, default_code = "unavailable", 503, "service_unavailable_error", "unavailable"


class Draining(Unavailable):
    kind = "draining"


class NotLoaded(Unavailable):
    kind = "not_loaded"


class TlsFailed(Unavailable):
    kind = "tls"


class ReplicaGone(Unavailable):
    kind, default_code = "replica_gone", "replica_gone"


class CannotResume(Unavailable):
    kind, default_code = "cannot_resume", "stream_cannot_continue"


class NotHere(Unavailable):
    kind = "not_here"


class Gone(HeadraceError):
    kind, status, type, default_code = "gone", 410, "invalid_request_error", "stream_gone"


class Quarantined(HeadraceError):
    kind, status, type, default_code = "quarantined", 422, "invalid_request_error", "request_quarantined"


class UserError(HeadraceError):
    kind, status = "user", 400


def _tree(cls: type[HeadraceError]) -> dict[str, type[HeadraceError]]:
    return {cls.kind: cls} | {k: c for sub in cls.__subclasses__() for k, c in _tree(sub).items()}


BY_KIND: dict[str, type[HeadraceError]] = _tree(HeadraceError)


def from_kind(
    kind: str,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    retry_after_s: float | None = None,
) -> HeadraceError:
    """The error that `kind` names; an unknown kind is a HeadraceError."""
    cls = BY_KIND.get(kind, HeadraceError)
    return cls(message, param=param, code=code, retry_after_s=retry_after_s)
