"""Checksums that servers state, against examples from the standards that define them."""

import base64
import hashlib

import httpx
import pytest

from shardgen.checksums import Checksum, of_whole_file

DATA = b'{"hello": "world"}\n'
SHA_256 = "RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg="  # RFC 9530, appendix B.1
SHA_512 = "YMAam51Jz/jOATT6/zvHrLVgOYTGFy1d6GJiOHTohq4yP+pgk4vf2aCsyRZOtw8MjkM7iw7yZ/WkppmM44T3qg=="  # B.2
MD5 = base64.b64encode(hashlib.md5(DATA).digest()).decode()
ZEROS, CRC32C = bytes(32), base64.b64encode(bytes.fromhex("8a9136aa")).decode()  # RFC 3720, appendix B.4


def stated(name: str, value: str, part: bool = False) -> Checksum | None:
    return of_whole_file(httpx.Headers([(name, value)]), part=part)


@pytest.mark.parametrize(
    ("name", "value", "algorithm", "data"),
    [
        ("Repr-Digest", f"sha-256=:{SHA_256}:", "sha-256", DATA),
        ("Repr-Digest", f"sha-256=:{SHA_256}:, sha-512=:{SHA_512}:", "sha-512", DATA),
        ("Content-Digest", f"unixsum=:1234:, sha-256=:{SHA_256}:;a=1", "sha-256", DATA),
        ("Digest", f"SHA-256={SHA_256}", "sha-256", DATA),
        ("Digest", f"adler32=03da0195,md5={MD5}", "md5", DATA),
        ("Content-MD5", MD5, "md5", DATA),
        ("x-goog-hash", f"crc32c={CRC32C}", "crc32c", ZEROS),
        ("X-Goog-Hash", f"crc32c=AAAAAA==, md5={MD5}", "md5", DATA),
        ("x-amz-checksum-sha256", SHA_256, "sha-256", DATA),
        ("x-amz-checksum-crc32c", CRC32C, "crc32c", ZEROS),
    ],
)
def test_the_strongest_checksum_of_each_field_fits_its_file_and_no_other(
    name: str, value: str, algorithm: str, data: bytes
) -> None:
    found = stated(name, value)
    assert found
    assert found.algorithm == algorithm
    assert found.fits(data)
    assert not found.fits(data[:-1])


def test_the_strongest_of_all_fields_is_taken() -> None:
    headers = {"content-md5": MD5, "x-goog-hash": f"crc32c={CRC32C}", "repr-digest": f"sha-256=:{SHA_256}:"}
    assert of_whole_file(headers, part=False) == Checksum("sha-256", base64.b64decode(SHA_256))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Repr-Digest", ""), ("Repr-Digest", SHA_256), ("Repr-Digest", f"sha-256={SHA_256}"),
        ("Repr-Digest", f"sha-256=:{SHA_256[:-4]}:"), ("Repr-Digest", f"sha-256=:{MD5}:"),
        ("Repr-Digest", "sha-256=:é:"), ("Repr-Digest", f"SHA-256=:{SHA_256}:"),
        ("Repr-Digest", f"crc32c=:{CRC32C}:"), ("Digest", "md5"), ("Digest", "crc32c=8a9136aa"),
        ("Content-MD5", hashlib.md5(DATA).hexdigest()), ("Content-MD5", "\x80"),
        ("x-goog-hash", "md5=, crc32c=AA=="), ("x-amz-checksum-sha256", f"{SHA_256}-3"), ("ETag", f'"{MD5}"'),
        ("x-amz-checksum-crc32c", "AAAAAA==-2"),
    ],
)  # fmt: skip
def test_what_is_malformed_or_of_parts_or_no_checksum_is_passed_over(name: str, value: str) -> None:
    assert of_whole_file({name.lower(): value}, part=False) is None


def test_with_a_part_only_those_of_the_whole_file_count() -> None:
    for name, value in (
        ("Repr-Digest", f"sha-256=:{SHA_256}:"),
        ("Digest", f"md5={MD5}"),
        ("x-goog-hash", f"md5={MD5}"),
    ):
        assert stated(name, value, part=True)
    for name, value in (
        ("Content-Digest", f"sha-256=:{SHA_256}:"), ("Content-MD5", MD5), ("x-amz-checksum-sha256", SHA_256),
    ):  # fmt: skip
        assert stated(name, value, part=True) is None


def test_what_google_unpacked_on_its_way_has_not_the_checksum_of_what_it_stores() -> None:
    headers = {"x-goog-hash": f"md5={MD5}", "x-goog-stored-content-encoding": "gzip"}
    assert of_whole_file(headers, part=False) is None
    assert of_whole_file(headers | {"content-encoding": "gzip"}, part=False)
    assert of_whole_file(headers | {"x-goog-stored-content-encoding": "identity"}, part=False)
