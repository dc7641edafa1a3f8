from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import FormatError
from holdfast.persistence import layout
from holdfast.persistence.manifest import (
    committed_of,
    decode_committed,
    decode_manifest,
    encode_manifest,
    read_manifest,
)
from holdfast.records import FORMAT_VERSION, Manifest, StoredFile
from holdfast.stores import open_store

_components = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=8
).filter(lambda part: part not in (".", ".."))
_paths = st.lists(_components, min_size=1, max_size=3).map("/".join).map(layout.encode_path)


def _example(**changes: object) -> Manifest:
    files = (
        StoredFile(path="a/model.pt", size_bytes=3, digest="xxh3-128:0f", rank=1),
        StoredFile(path="a/latest", kind="symlink", target="model.pt"),
        StoredFile(path="empty", kind="directory"),
    )
    manifest = Manifest(id="ab", name="c", report_index=7, epoch=2, metrics=msgspec.Raw(b'{"loss":0.5}'), files=files)
    return msgspec.structs.replace(manifest, **changes)


def _encoded(*files: dict[str, object], **fields: object) -> bytes:
    return json.dumps({"format_version": 1, "files": files, **fields}).encode()


def test_what_is_written_is_what_is_read() -> None:
    assert decode_manifest(encode_manifest(_example()), "here") == _example()
    assert decode_manifest(encode_manifest(Manifest()), "here") == Manifest()


@given(st.lists(_paths, unique=True, max_size=8))
def test_any_names_survive(paths: list[str]) -> None:
    parents = {path.rsplit("/", depth)[0] for path in paths for depth in range(1, path.count("/") + 1)}
    kept = [path for path in paths if path not in parents and path not in (layout.MANIFEST, layout.METADATA)]
    manifest = Manifest(files=tuple(StoredFile(path=path) for path in kept))
    assert decode_manifest(encode_manifest(manifest), "here") == manifest


def test_a_person_can_read_it_one_line_a_file() -> None:
    lines = encode_manifest(_example()).decode().splitlines()
    assert [line for line in lines if '"path"' in line] == lines[1:-1]
    assert len(lines) == 5
    json.loads("".join(lines))


def test_what_a_newer_writer_adds_is_ignored_and_what_an_older_one_lacks_has_defaults() -> None:
    data = _encoded({"path": "f", "owner": "me"}, colour="blue")
    assert decode_manifest(data, "here").files == (StoredFile(path="f"),)


@pytest.mark.parametrize("fields", [{}, {"files": "elsewhere"}, {"files": [{"path": "f", "kind": "device"}]}])
def test_a_newer_format_is_refused_with_the_remedy(fields: dict[str, object]) -> None:
    data = json.dumps({"format_version": FORMAT_VERSION + 1, **fields}).encode()
    with pytest.raises(FormatError, match=r"here.*newer Holdfast.*upgrade"):
        decode_manifest(data, "here")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b'{"files":3}', b"[" * 100_000, b'{"files":[{}]}'])
def test_junk_is_a_format_error_that_says_where(data: bytes) -> None:
    with pytest.raises(FormatError, match="here"):
        decode_manifest(data, "here")
    with pytest.raises(FormatError, match="here"):
        decode_committed(data.replace(b"[{}]", b"3"), "here")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "", "a//b", ".", "a/%2e%2e/x", "a%00b", "%2Fetc"])
def test_a_path_that_leads_out_is_refused(path: str) -> None:
    with pytest.raises(FormatError):
        decode_manifest(_encoded({"path": path}), "here")


@pytest.mark.parametrize(
    "links",
    [
        {"a": ".."},
        {"a": "/etc"},
        {"a": "x/../../y"},
        {"a": "%2e%2e/x"},
        {"a": ""},
        {"a": "x%00"},
        {"e/d": "..", "f": "e/d/.."},  # `e/d/..` is not `e`: `e/d` is the root, so its parent is outside
    ],
)
def test_a_link_that_leads_out_is_refused(links: dict[str, str]) -> None:
    files = [{"path": path, "kind": "symlink", "target": target} for path, target in links.items()]
    with pytest.raises(FormatError, match="leads out"):
        decode_manifest(_encoded(*files), "here")


@pytest.mark.parametrize("links", [{"a/b": "../c"}, {"a": "a"}, {"a": "b", "b": "a"}, {"a": "missing/x"}])
def test_a_link_that_stays_inside_is_kept(links: dict[str, str]) -> None:
    files = [{"path": path, "kind": "symlink", "target": target} for path, target in links.items()]
    assert len(decode_manifest(_encoded(*files), "here").files) == len(links)


@pytest.mark.parametrize(
    "files",
    [
        [{"path": "a"}, {"path": "a"}],
        [{"path": "a"}, {"path": "a/b"}],
        [{"path": "a", "kind": "symlink", "target": "b"}, {"path": "a/b/c"}],
        [{"path": ".manifest.json"}],
        [{"path": "a", "size_bytes": -1}],
    ],
)
def test_a_list_that_no_directory_can_hold_is_refused(files: list[dict[str, object]]) -> None:
    with pytest.raises(FormatError):
        decode_manifest(_encoded(*files), "here")


def test_the_short_reading_agrees_with_the_long_one() -> None:
    manifest = _example()
    assert decode_committed(encode_manifest(manifest), "here") == committed_of(manifest)


def test_a_directory_without_a_manifest_has_none(tmp_path) -> None:
    store = open_store(tmp_path)
    assert read_manifest(store) is None
    store.write(layout.MANIFEST, encode_manifest(_example()))
    assert read_manifest(store) == _example()
    store.write(layout.MANIFEST, b"")
    with pytest.raises(FormatError, match=str(tmp_path)):
        read_manifest(store)
