"""What we ask of S3: a listing, heads, and ranges of objects. Its errors as sentences."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from headrace.core.causes import Cause, of_status
from headrace.errors import Unavailable, UserError

_CHUNK = 1024 * 1024

_FORBIDDEN = {
    "403", "AccessDenied", "AllAccessDisabled", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch",
    "ExpiredToken", "InvalidToken", "TokenRefreshRequired",
}  # fmt: skip
_LATER = {"SlowDown", "RequestTimeout", "RequestTimeTooSkewed"}  # S3 tells some of these with a 4xx
_CHANGED = {"404", "NoSuchKey", "412", "PreconditionFailed", "416", "InvalidRange"}


class Changed(Exception):
    """An object is not, or no longer, what the listing told."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a file: `name` is relative to the source."""

    name: str
    key: str
    etag: str
    size: int


class Bucket:
    """The bucket and prefix that `source` (s3://BUCKET/PREFIX) names. UserError if the client is not installed."""

    def __init__(self, source: str) -> None:
        if find_spec("boto3") is None:
            raise UserError("Weights from s3:// need: pip install 'headrace[s3]'")
        from boto3.session import Session  # 0.3 s, and most replicas do not need it
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        self._source = source
        self.name, _, prefix = source.removeprefix("s3://").partition("/")
        self._prefix = prefix.rstrip("/") + "/" if prefix else ""
        config = Config(
            retries={"mode": "standard", "max_attempts": 4},
            connect_timeout=10,
            read_timeout=60,
            max_pool_connections=16,
        )
        try:
            self._client: Any = Session().client("s3", config=config)
        except (BotoCoreError, ValueError) as e:
            raise UserError(f"Cannot use S3 as the AWS_* variables and files say: {_brief(e)}.") from e
        self.endpoint: str = self._client.meta.endpoint_url

    def files(self) -> list[Listed]:
        """Everything below the prefix."""
        found: list[Listed] = []
        with self._sentences():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=self._prefix)
            for item in (o for page in pages for o in page.get("Contents", ())):
                name = item["Key"][len(self._prefix) :]
                if _is_file(name):
                    found.append(Listed(name, item["Key"], item["ETag"].strip('"'), item["Size"]))
        if not found:
            raise UserError(f"There is nothing at {self._source}/ on {self.endpoint}.")
        return found

    def head(self, f: Listed) -> dict[str, Any]:
        """What S3 knows of an object, with its checksums. Changed, if it is another one by now."""
        with self._sentences():
            return self._client.head_object(Bucket=self.name, Key=f.key, IfMatch=f'"{f.etag}"', ChecksumMode="ENABLED")

    def read(self, f: Listed, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` up to `end`, in pieces. Changed, if it is another object now."""
        with self._sentences():
            answer = self._client.get_object(
                Bucket=self.name, Key=f.key, Range=f"bytes={start}-{end - 1}", IfMatch=f'"{f.etag}"'
            )
            with contextlib.closing(answer["Body"]) as body:
                if answer["ContentLength"] != end - start:
                    text = f"{self.endpoint} answers with another part of {f.key} than it was asked for."
                    raise Unavailable(text, code=Cause.REMOTE)
                yield from iter(lambda: body.read(_CHUNK), b"")

    @contextlib.contextmanager
    def _sentences(self) -> Iterator[None]:
        from botocore import exceptions as e
        from urllib3.exceptions import HTTPError

        try:
            yield
        except e.ClientError as error:
            raise self._told(error) from error
        except (e.NoCredentialsError, e.PartialCredentialsError, e.ProfileNotFound) as error:
            raise UserError(
                f"There are no credentials for {self._source}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or"
                " AWS_PROFILE, where the scheduler is started.",
                code=Cause.REFUSED,
            ) from error
        except (e.ParamValidationError, e.InvalidRegionError) as error:
            raise UserError(f"{self._source} cannot be asked for: {_brief(error)}.") from error
        except (e.BotoCoreError, HTTPError) as error:
            raise Unavailable(
                f"Cannot read {self._source} from {self.endpoint} ({type(error).__name__}); check the network. What has"
                " come is kept.",
                code=Cause.NETWORK,
            ) from error

    def _told(self, error: Any) -> Exception:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code == "NoSuchBucket":
            return UserError(f"There is no bucket {self.name} on {self.endpoint}.", code=Cause.REFUSED)
        if code in _FORBIDDEN or status in (401, 403):
            return UserError(
                f"{self.endpoint} refuses access to {self._source} ({code}): check the AWS_* variables where the"
                " scheduler is started, and the bucket's policy (s3:ListBucket, s3:GetObject).",
                code=Cause.REFUSED,
            )
        if code in _CHANGED and error.operation_name != "ListObjectsV2":
            return Changed(code)
        if of_status(status) is Cause.REMOTE or code in _LATER:
            text = f"{self.endpoint} cannot answer for {self._source} now ({code}). What has come is kept."
            return Unavailable(text, code=Cause.REMOTE)
        return UserError(f"{self.endpoint} refuses {self._source}: {_brief(error)}.", code=Cause.REFUSED)


def _is_file(name: str) -> bool:
    """False for what stands for a folder, and for what would be outside of ours."""
    return "\\" not in name and "\0" not in name and all(p not in ("", ".", "..", ".parts") for p in name.split("/"))


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
