"""The copy out of the model's memory: the same bytes whatever the sizes and the number of threads."""

from __future__ import annotations

import threading

import pytest
import torch

from holdfast.torch.state import copying
from holdfast.torch.state.copying import PlainCopy, copy_all, is_plain


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("sizes", [[], [1], [0, 5, 0], [3, 9 * 1024 * 1024 + 1, 17, 8 * 1024 * 1024]])
def test_every_byte_is_copied_and_none_beside(sizes, threads, monkeypatch):
    monkeypatch.setattr(copying.torch, "get_num_threads", lambda: threads)
    sources = [torch.randint(0, 255, (size,), dtype=torch.uint8) for size in sizes]
    targets = [torch.full((size + 2,), 255, dtype=torch.uint8) for size in sizes]
    before = set(threading.enumerate())
    copy_all(
        PlainCopy(target.data_ptr() + 1, source.data_ptr(), len(source))
        for source, target in zip(sources, targets, strict=True)
    )
    assert set(threading.enumerate()) <= before
    for source, target in zip(sources, targets, strict=True):
        assert torch.equal(target[1:-1], source)
        assert (target[0], target[-1]) == (255, 255)


def test_what_lies_otherwise_in_memory_is_left_to_torch():
    class Other(torch.Tensor):
        pass

    tensor = torch.zeros(4, 6)
    assert is_plain(tensor)
    assert is_plain(torch.nn.Parameter(tensor))
    assert is_plain(tensor[1])
    assert not is_plain(tensor.T)
    assert not is_plain(tensor[:, 1:])
    assert not is_plain(tensor.as_subclass(Other))
    assert not is_plain(torch.zeros(3, device="meta"))
