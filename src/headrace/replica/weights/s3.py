"""s3://bucket/prefix, through boto3: credentials, endpoint and region are its ordinary chain's."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from headrace.errors import Unavailable, UserError
from headrace.replica.weights import Report
from headrace.replica.weights.cache import Cache
from headrace.replica.weights.checksum import Checksum, decoded, usable
from headrace.replica.weights.choice import INDEX, check_safetensors, wanted
from headrace.replica.weights.download import WORKERS, Broken, Changed, RemoteFile, download

log = structlog.get_logger()

_ALGORITHMS = ("CRC64NVME", "CRC32C", "CRC32", "SHA256", "SHA1")
_NO_ACCESS = ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")
_BLOCK = 1024 * 1024


def fetch(source: str, cache: Cache, report: Report, *, with_code: bool = False) -> Path:
    """The folder with the model at `source`; the copy of last time if S3 cannot be reached."""
    report(f"looking up {source}", -1.0)
    ref = f"{source} with code" if with_code else source
    for _ in range(2):
        bucket = _Bucket(source)
        try:
            files = bucket.survey(with_code)
        except Unavailable:
            if folder := cache.remembered(ref):
                log.warning("s3_unreachable", source=source, using=str(folder))
                return folder
            raise
        name = _entry_name(bucket, files)

        def make(partial: Path, files: list[RemoteFile] = files) -> None:
            download(source, files, partial, report)
            check_safetensors(partial)

        try:
            folder = cache.entry(name, source, sum(f.size for f in files), report, make)
        except Changed:
            log.warning("s3_object_changed", source=source)
            continue
        cache.remember(ref, name)
        return folder
    raise Unavailable(f"{source} changes while it is downloaded: deploy it again when it is all there.")


def _entry_name(bucket: _Bucket, files: list[RemoteFile]) -> str:
    seen = [bucket.endpoint, bucket.name, bucket.prefix, sorted((f.name, f.size, f.version) for f in files)]
    last = re.sub(r"[^\w.-]", "_", f"{bucket.name}--{bucket.prefix.rstrip('/').rpartition('/')[2]}")[:120]
    return f"s3--{last}--{hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]}"


class _Bucket:
    """What of one prefix is there, and its bytes."""

    def __init__(self, source: str) -> None:
        try:
            from boto3.session import Session
            from botocore.config import Config
        except ImportError as e:
            raise UserError(f"Reading {source} needs: pip install 'headrace[s3]'") from e
        self._source = source
        self.name, _, prefix = source.removeprefix("s3://").partition("/")
        self.prefix = prefix.rstrip("/") + "/" if prefix.rstrip("/") else ""
        session = Session()
        more: dict[str, Any] = {
            "retries": {"mode": "standard", "max_attempts": 4},
            "max_pool_connections": WORKERS,
            "connect_timeout": 10,
            "read_timeout": 60,
            # Ranges have no checksum of their own; whole files are checked when all of them are there.
            "response_checksum_validation": "when_required",
        }
        with self._sentences():
            client = session.client("s3", config=Config(**more))
            # Other stores than Amazon's seldom answer to BUCKET.HOST.
            if ".amazonaws.com" not in client.meta.endpoint_url:
                client = session.client("s3", config=Config(**more, s3={"addressing_style": "path"}))
        self._client, self.endpoint = client, str(client.meta.endpoint_url)

    def survey(self, with_code: bool) -> list[RemoteFile]:
        with self._sentences():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.name, Prefix=self.prefix, Delimiter="/"
            )
            keys = [str(o["Key"]) for page in pages for o in page.get("Contents", ())]
        names = {k.removeprefix(self.prefix) for k in keys} - {""}
        if not names:
            raise UserError(f"There is nothing at {self._source}: check the bucket and the prefix.")
        index: Any = None
        if INDEX in names:
            with self._sentences(INDEX):
                try:
                    index = json.loads(
                        self._client.get_object(Bucket=self.name, Key=self.prefix + INDEX)["Body"].read()
                    )
                except ValueError as e:
                    raise UserError(f"{self._source}/{INDEX} is not an index of weights.") from e
        return [self._file(n) for n in wanted(self._source, names, index, with_code=with_code)]

    def _file(self, name: str) -> RemoteFile:
        with self._sentences(name):
            head = self._client.head_object(Bucket=self.name, Key=self.prefix + name, ChecksumMode="ENABLED")
            etag = str(head["ETag"])
            return RemoteFile(
                name,
                int(head["ContentLength"]),
                etag,
                lambda start, end: self._read(name, etag, start, end),
                self._checksum(name, head),
            )

    def _checksum(self, name: str, head: dict[str, Any]) -> Checksum | None:
        """The best one that S3 states and we can compute; None if the size must do."""
        found: tuple[str, bytes, bool] | None = None
        for algorithm in _ALGORITHMS:
            text = head.get(f"Checksum{algorithm}")
            if text and usable(algorithm):
                composite = "-" in text or head.get("ChecksumType") == "COMPOSITE"
                found = (algorithm, decoded(text.partition("-")[0]), composite)
                break
        etag = re.fullmatch(r'"([0-9a-f]{32})(-\d+)?"', str(head["ETag"]))
        # With a customer's key, or in a directory bucket, the ETag is no MD5.
        plain = head.get("ServerSideEncryption", "AES256") == "AES256" and not head.get("SSECustomerAlgorithm")
        if not found and etag and plain and not self.name.endswith("--x-s3"):
            found = ("MD5", bytes.fromhex(etag[1]), bool(etag[2]))
        if not found or not found[2]:
            return Checksum(found[0], found[1]) if found else None
        first = self._client.head_object(Bucket=self.name, Key=self.prefix + name, PartNumber=1)
        part, count = int(first["ContentLength"]), int(first.get("PartsCount", 0))
        # Parts may differ in size, and then it cannot be told where they meet.
        if part and count == -(-int(head["ContentLength"]) // part):
            return Checksum(found[0], found[1], part)
        return None

    def _read(self, name: str, etag: str, start: int, end: int) -> Iterator[bytes]:
        from botocore import exceptions as e

        with self._sentences(name):
            try:
                got = self._client.get_object(
                    Bucket=self.name, Key=self.prefix + name, Range=f"bytes={start}-{end - 1}", IfMatch=etag
                )
                if got["ETag"] != etag:
                    raise Changed(name)
                yield from got["Body"].iter_chunks(_BLOCK)
            except (e.HTTPClientError, e.IncompleteReadError, e.ResponseStreamingError) as error:
                raise Broken(type(error).__name__) from error

    @contextmanager
    def _sentences(self, name: str = "") -> Iterator[None]:
        """What the client raises, as ours."""
        from botocore import exceptions as e

        what = f"{self._source}/{name}" if name else self._source
        try:
            yield
        except e.ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            if code == "NoSuchBucket":
                raise UserError(f"There is no bucket {self.name!r} at {self.endpoint}.") from error
            if code in _NO_ACCESS or status in (401, 403):
                raise UserError(
                    f"No access to {what} ({code}): check the AWS credentials of the scheduler, and what they allow."
                ) from error
            if status == 412:
                raise Changed(name) from error
            if status == 404:
                raise UserError(f"{what} does not exist.") from error
            raise Unavailable(f"S3 cannot serve {what} now ({code}).") from error
        except (e.NoCredentialsError, e.PartialCredentialsError, e.ProfileNotFound) as error:
            raise UserError(f"Reading {what} needs AWS credentials in the scheduler's environment: {error}.") from error
        except e.BotoCoreError as error:
            raise Unavailable(
                f"Cannot reach S3 for {what} ({type(error).__name__}): check the network and AWS_ENDPOINT_URL."
            ) from error
