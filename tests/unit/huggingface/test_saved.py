"""Who reports which file: together the ranks report each file once, and leave none out."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.huggingface.transformers.saved import Place, Trace, share_of, traces

ANY: Trace = (1, 1, 1)


def listed(*names: str) -> dict[str, Trace]:
    return dict.fromkeys(names, ANY)


def shares(nodes: list[dict[str, Trace]], *, on_node: int) -> dict[int, list[str]]:
    return {
        rank: share_of(Place(rank, rank // on_node * on_node, on_node), nodes[rank // on_node], nodes[0])
        for rank in range(len(nodes) * on_node)
    }


PLAIN = listed("model.safetensors", "optimizer.pt", "rng_state_0.pth", "rng_state_1.pth", "trainer_state.json")


def test_one_rank_reports_what_is_not_sharded() -> None:
    assert shares([PLAIN], on_node=2) == {0: sorted(PLAIN), 1: []}


@pytest.mark.parametrize(
    "shard",
    [
        "pytorch_model_fsdp_0/__{}_0.distcp",
        "pytorch_model_fsdp_rank{}.bin",
        "global_step4/zero_pp_rank_{}_mp_rank_00_optim_states.pt",
        "global_step4/bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt",
    ],
)
def test_each_rank_reports_its_shards(shard: str) -> None:
    files = PLAIN | listed(*(shard.format(rank) for rank in range(3)))
    found = shares([files], on_node=2)
    assert found[1] == sorted([shard.format(1), "rng_state_1.pth"])
    # That of a rank that is not here is reported all the same.
    assert found[0] == sorted(files.keys() - set(found[1]))


def test_nodes_with_directories_of_their_own_report_what_the_first_lacks() -> None:
    second = listed("rng_state_2.pth", "rng_state_3.pth", "trainer_state.json")
    assert shares([PLAIN, second], on_node=2) == {
        0: sorted(PLAIN),
        1: [],
        2: ["rng_state_2.pth", "rng_state_3.pth"],
        3: [],
    }
    shards = [{**node, **listed(f"fsdp/__{2 * rank + 1}_0.distcp")} for rank, node in enumerate([PLAIN, second])]
    found = shares(shards, on_node=2)
    assert found[3] == ["fsdp/__3_0.distcp", "rng_state_3.pth"]
    assert sorted(path for share in found.values() for path in share) == sorted(shards[0].keys() | shards[1].keys())


def test_nodes_that_see_one_directory_report_each_file_once() -> None:
    files = PLAIN | listed("rng_state_2.pth", "rng_state_3.pth", *(f"fsdp/__{rank}_0.distcp" for rank in range(4)))
    found = shares([files, files], on_node=2)
    assert sorted(path for share in found.values() for path in share) == sorted(files)


def test_a_file_that_was_written_again_has_another_trace(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "same").write_bytes(b"old")
    (tmp_path / "changed").write_bytes(b"old")
    before = traces(str(tmp_path))
    (tmp_path / "changed").write_bytes(b"newer")
    after = traces(str(tmp_path))
    assert {path for path, trace in after.items() if before[path] != trace} == {"changed"}
    assert set(after) == {"changed", "below/same"}
    assert traces(str(tmp_path / "none")) == {}
