"""Checksums that servers send along with a file, to hold against them what came.

    Repr-Digest, Digest, x-goog-hash                  of the whole file, even where a part of it is sent
    Content-Digest, Content-MD5, x-amz-checksum-...   of what is sent

Facts: RFC 9530, RFC 3230, RFC 1864; the manuals of Google Cloud Storage and of S3. What is malformed is passed over.
So is `ETag`: it may be an MD5, and does not say so.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import google_crc32c

_STRONGEST_FIRST: dict[str, tuple[int, Callable[[bytes], bytes]]] = {  # name: bytes of a checksum, how it is computed
    "sha-512": (64, lambda data: hashlib.sha512(data).digest()),
    "sha-256": (32, lambda data: hashlib.sha256(data).digest()),
    "md5": (16, lambda data: hashlib.md5(data, usedforsecurity=False).digest()),
    "crc32c": (4, lambda data: google_crc32c.value(data).to_bytes(4, "big")),
}
_RFC_9530 = re.compile(r"(sha-512|sha-256)=:([^:]*):(?:;.*)?")
_RFC_3230 = re.compile(r"(sha-512|sha-256|md5)=(.*)", re.IGNORECASE)
_GOOGLE = re.compile(r"(md5|crc32c)=(.*)")


@dataclass(frozen=True)
class Checksum:
    """What a server says the checksum of a file is; `algorithm` as RFC 9530 names it."""

    algorithm: str
    value: bytes

    def fits(self, data: bytes) -> bool:
        """Whether it is the one of these bytes."""
        _, compute = _STRONGEST_FIRST[self.algorithm]
        return compute(data) == self.value


def of_whole_file(headers: Mapping[str, str], *, part: bool) -> Checksum | None:
    """The strongest checksum that an answer states of the whole file; None where it states none.

    Args:
        headers: of the answer, whatever the case of their names.
        part: whether it is of a part of the file (206).
    """
    stated = [*_of_file(headers), *(() if part else _of_what_is_sent(headers))]
    found = {name: value for name, text in stated if (value := _decoded(text, _STRONGEST_FIRST[name][0]))}
    return next((Checksum(name, found[name]) for name in _STRONGEST_FIRST if name in found), None)


def _of_file(headers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    yield from _items(headers.get("repr-digest", ""), _RFC_9530)
    yield from _items(headers.get("digest", ""), _RFC_3230)
    stored_as = headers.get("x-goog-stored-content-encoding", "identity")
    if stored_as == headers.get("content-encoding", "identity"):  # or it was unpacked on its way
        yield from _items(headers.get("x-goog-hash", ""), _GOOGLE)


def _of_what_is_sent(headers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    yield from _items(headers.get("content-digest", ""), _RFC_9530)
    yield "md5", headers.get("content-md5", "")
    yield "sha-256", headers.get("x-amz-checksum-sha256", "")
    yield "crc32c", headers.get("x-amz-checksum-crc32c", "")


def _items(text: str, form: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """Algorithm and checksum, in base64, of each that has this form."""
    matches = (form.fullmatch(item.strip()) for item in text.split(","))
    return ((match[1].lower(), match[2]) for match in matches if match)


def _decoded(text: str, length: int) -> bytes | None:
    """None where it is no base64 of so many bytes, as `...=-3`, the checksum of three checksums."""
    try:
        value = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return value if len(value) == length else None
