"""The server that stands in for Google's is as strict as that one, and stricter."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from support.gcs_server import TOKEN, GoogleServer


def _ask(google: GoogleServer, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b"") -> int:
    everything = {"Authorization": f"Bearer {TOKEN}", **(headers or {})}
    asked = urllib.request.Request(f"{google.endpoint}/{path}", data=body or None, method=method, headers=everything)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.fixture
def bucket(google: GoogleServer) -> str:
    return google.make_bucket()


def test_conditions_are_about_generations(google, bucket):
    condition = "x-goog-if-generation-match"
    assert _ask(google, "PUT", f"{bucket}/a", {condition: "0"}, b"1") == 200
    assert _ask(google, "PUT", f"{bucket}/a", {condition: "0"}, b"2") == 412
    generation = google.buckets[bucket].get("a").generation
    assert _ask(google, "PUT", f"{bucket}/a", {condition: str(generation)}, b"3") == 200
    assert _ask(google, "PUT", f"{bucket}/a", {condition: str(generation)}, b"4") == 412
    assert google.buckets[bucket].get("a").data == b"3"


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("PUT", "a", {"If-None-Match": "*"}),
        ("PUT", "a", {"x-goog-acl": "private"}),
        ("GET", "a?generation=1", {}),
        ("GET", "a", {"If-Match": "x"}),
        ("DELETE", "a", {"x-goog-if-generation-match": "1"}),
        ("GET", "?prefix=a", {}),
        ("GET", "?list-type=2&start-after=a", {}),
        ("PUT", "", {}),
    ],
)
def test_what_it_does_not_know_is_refused(google, bucket, method, path, headers):
    google.buckets[bucket].put("a", b"1", {}, None)
    assert _ask(google, method, f"{bucket}/{path}", headers) == 501


def test_parts_are_checked_as_google_does(google, bucket):
    stored = google.buckets[bucket]
    upload_id = stored.begin_upload("a", {})
    tags = [stored.put_part("a", upload_id, number, b"small") for number in (1, 2)]

    def complete(*named: tuple[int, str]) -> int:
        parts = "".join(f"<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>" for number, tag in named)
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        return _ask(google, "POST", f"{bucket}/a?uploadId={upload_id}", {}, body)

    assert complete((1, tags[0]), (2, tags[1])) == 400  # too small, all but the last
    assert complete((2, tags[1]), (1, tags[0])) == 400
    assert complete((1, '"another"')) == 400
    assert complete((2, tags[1])) == 200
    assert complete((2, tags[1])) == 404
    assert stored.get("a").data == b"small"


def test_who_is_not_known_is_refused(google, bucket):
    assert _ask(google, "GET", f"{bucket}/a", {"Authorization": "Bearer other"}) == 401
    assert _ask(google, "GET", "no-such-bucket/a") == 404
