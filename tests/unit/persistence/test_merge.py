from __future__ import annotations

import pytest

from holdfast.errors import ShardCollisionError
from holdfast.persistence.merge import merge_metadata, merge_receipts
from holdfast.records import ShardReceipt, StoredFile


def _receipt(rank: int, *files: StoredFile, metadata: str | None = None) -> ShardReceipt:
    return ShardReceipt(rank=rank, files=files, metadata=metadata)


def _file(path: str, rank: int, digest: str | None = "xxh3-128:00", **fields: object) -> StoredFile:
    return StoredFile(path=path, rank=rank, digest=digest, **{"size_bytes": 1, **fields})


def test_equal_content_from_several_ranks_is_listed_once_under_the_lowest() -> None:
    merged = merge_receipts([_receipt(2, _file("f", 2, mode=0o600)), _receipt(1, _file("f", 1, mode=0o644))])
    assert merged == (_file("f", 1, mode=0o644),)


def test_files_of_all_ranks_come_together_sorted() -> None:
    merged = merge_receipts([_receipt(1, _file("a", 1)), _receipt(0, _file("b", 0), _file("a/x".replace("a", "c"), 0))])
    assert [file.path for file in merged] == ["a", "b", "c/x"]


@pytest.mark.parametrize(
    "other",
    [
        _file("f", 3, "xxh3-128:01"),
        _file("f", 3, size_bytes=2),
        StoredFile(path="f", rank=3, kind="directory"),
        StoredFile(path="f", rank=3, kind="symlink", target="g"),
    ],
)
def test_two_ranks_one_name_different_bytes_is_an_error_that_names_file_and_ranks(other: StoredFile) -> None:
    with pytest.raises(ShardCollisionError, match=r"ranks 1 and 3.*'f'"):
        merge_receipts([_receipt(3, other), _receipt(1, _file("f", 1))])


def test_a_file_that_is_another_ranks_directory_is_an_error() -> None:
    for first, second in ((0, 1), (1, 0)):
        with pytest.raises(ShardCollisionError, match=r"'a'.*'a/b/c'"):
            merge_receipts([_receipt(first, _file("a", first)), _receipt(second, _file("a/b/c", second))])


def test_an_empty_directory_that_another_rank_filled_is_not_listed() -> None:
    empty = StoredFile(path="d", kind="directory")
    assert merge_receipts([_receipt(0, empty), _receipt(1, _file("d/x", 1))]) == (_file("d/x", 1),)


def test_files_registered_without_digests_agree_by_size() -> None:
    assert len(merge_receipts([_receipt(0, _file("f", 0, None)), _receipt(1, _file("f", 1, None))])) == 1
    with pytest.raises(ShardCollisionError):
        merge_receipts([_receipt(0, _file("f", 0, None)), _receipt(1, _file("f", 1, None, size_bytes=5))])


def test_metadata_is_that_of_the_lowest_rank_that_has_some() -> None:
    assert merge_metadata([_receipt(2, metadata="{2}"), _receipt(1, metadata="{1}"), _receipt(0)]) == "{1}"
    assert merge_metadata([_receipt(0)]) is None
