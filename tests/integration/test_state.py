"""`save_state` and `load_state` among real workers: shards, other numbers of ranks, memory that is handed over."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

import holdfast as train
from holdfast import Checkpoint, CheckpointConfig, CheckpointUploadMode, FailureConfig, RunConfig, ScalingConfig
from holdfast.errors import WorkerGroupError
from holdfast.torch import TorchTrainer, load_state, prepare_model, save_state


def run(function, tmp_path, workers, name="run", failures=0, **config):
    return TorchTrainer(
        function,
        train_loop_config={"base": str(tmp_path), **config},
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(
            name=name, storage_path=tmp_path, progress="quiet", failure_config=FailureConfig(max_failures=failures)
        ),
    ).fit()


def make(kind):
    torch.manual_seed(0)
    # 7 rows over 2 or 4 ranks: uneven shards.
    model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 1))
    if kind == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (train.get_context().get_world_size(),))
        for layer in (model[0], model[2]):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    elif kind == "ddp":
        model = prepare_model(model)
    elif kind == "fsdp1":
        model = prepare_model(model, parallel_strategy="fsdp", parallel_strategy_kwargs={"use_orig_params": True})
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


def steps(config):
    """Trains on a batch that depends on the step alone, whatever the number of ranks; gives the losses."""
    context = train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    model, optimizer = make(config["kind"])
    state = {"model": model, "optimizer": optimizer, "step": 0, "losses": [], f"rank {rank}": rank}
    if (checkpoint := train.get_checkpoint()) is not None:
        wanted = {key: value for key, value in state.items() if not key.startswith("rank")}
        load_state(wanted, checkpoint)
        state |= wanted
    for step in range(state["step"], config["steps"]):
        batch = torch.randn(12, 6, generator=torch.Generator().manual_seed(step))
        mine = batch[rank::size]
        optimizer.zero_grad()
        loss = ((model(mine) - mine.sum(1, keepdim=True)) ** 2).mean()
        loss.backward()
        optimizer.step()
        whole = loss.detach().clone()
        torch.distributed.all_reduce(whole)
        state |= {"step": step + 1, "losses": [*state["losses"], whole.item() / size]}
        with tempfile.TemporaryDirectory() as directory:
            save_state(state, directory)
            train.report(
                {"step": step},
                Checkpoint.from_directory(directory),
                checkpoint_upload_mode=CheckpointUploadMode(config.get("mode", "ASYNC")),
            )
    return state["losses"]


@pytest.mark.parametrize(("kind", "first", "then"), [("fsdp2", 4, 2), ("fsdp2", 2, 4), ("ddp", 2, 3), ("fsdp1", 2, 2)])
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path, kind, first, then):
    run(steps, tmp_path, first, kind=kind, steps=4)
    resumed = run(steps, tmp_path, then, kind=kind, steps=8)
    undisturbed = run(steps, tmp_path, first, "other", kind=kind, steps=8)
    assert len(resumed.return_value) == 8
    # Sums of another number of parts round differently.
    assert resumed.return_value == pytest.approx(undisturbed.return_value, rel=1e-5)
    assert resumed.checkpoint.verify() == []


def test_each_rank_writes_its_own_shards_only_and_keys_of_one_rank_are_kept(tmp_path):
    result = run(steps, tmp_path, 4, kind="fsdp2", steps=1)
    sizes = {file.path: file.size_bytes for file in result.checkpoint.files()}
    shards = [f"state/rank-{rank:05d}.safetensors" for rank in range(4)]
    assert set(sizes) == {*shards, "state/values.json"}
    state = {f"rank {rank}": None for rank in range(4)}
    load_state(state, result.checkpoint)
    assert state == {f"rank {rank}": rank for rank in range(4)}
    # Outside any group, in this process, the whole of it.
    model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 1))
    load_state({"model": model}, result.checkpoint)


def test_what_all_ranks_have_alike_is_written_once(tmp_path):
    result = run(steps, tmp_path, 2, kind="ddp", steps=1)
    model = 6 * 7 + 7 + 7 + 1
    total = sum(file.size_bytes for file in result.checkpoint.files() if file.path.endswith("safetensors"))
    assert total < 1.5 * 4 * 3 * model + 2 * 4096  # parameters and Adam's two moments, with headers


@pytest.mark.parametrize("mode", ["SYNC", "ASYNC"])
def test_memory_is_used_again_only_when_nobody_reads_it(tmp_path, mode):
    """Every save is another one; if a buffer were filled again too early, a checkpoint would hold a later one's bytes."""

    def loop(config):
        tensor = torch.zeros(4_000_000)
        for step in range(6):
            tensor.fill_(step)
            with tempfile.TemporaryDirectory() as directory:
                save_state({"tensor": tensor, "step": step}, directory)
                link = os.readlink(Path(directory, "state", "rank-00000.safetensors"))
                assert link.startswith(f"/proc/{os.getpid()}/fd/")
                pending = train.report(
                    {},
                    Checkpoint.from_directory(directory),
                    checkpoint_upload_mode=CheckpointUploadMode(config["mode"]),
                )
        assert pending.result(60) is not None

    result = run(loop, tmp_path, 1, mode=mode)
    for reported in train.Run(result.path).checkpoints:
        assert reported.checkpoint.verify() == []
        state = {"tensor": torch.zeros(4_000_000), "step": -1}
        load_state(state, reported.checkpoint)
        assert torch.equal(state["tensor"], torch.full((4_000_000,), float(state["step"])))
    assert len(train.Run(result.path).checkpoints) == 6


def test_a_worker_killed_right_after_the_report_loses_nothing(tmp_path):
    def loop(config):
        if (checkpoint := train.get_checkpoint()) is not None:
            state = {"tensor": torch.zeros(20_000_000)}
            load_state(state, checkpoint)
            return bool((state["tensor"] == 7).all())
        with tempfile.TemporaryDirectory() as directory:
            save_state({"tensor": torch.full((20_000_000,), 7.0)}, directory)
            train.report({}, Checkpoint.from_directory(directory), checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    assert run(loop, tmp_path, 1, failures=1).return_value is True


def test_a_part_that_one_rank_keeps_is_an_error_not_a_checkpoint_that_cannot_be_loaded(tmp_path):
    def loop(config):
        rank = train.get_context().get_world_rank()
        with tempfile.TemporaryDirectory() as directory:
            save_state({f"tensor {rank}": torch.ones(3)}, directory)
            train.report({}, Checkpoint.from_directory(directory) if rank == 0 else None)

    with pytest.raises(WorkerGroupError, match="rank 1 saved a part of the state and did not report it"):
        run(loop, tmp_path, 2)
    assert train.Run(tmp_path / "run").checkpoints == []


def test_a_shared_directory_works_too(tmp_path):
    def loop(config):
        rank = train.get_context().get_world_rank()
        directory = Path(config["base"], "shared")
        for step in range(3):
            save_state({f"tensor {rank}": torch.full((3,), float(step)), "step": step}, directory)
            train.report({}, Checkpoint.from_directory(directory))
            train.collective.barrier()

    result = run(loop, tmp_path, 2)
    state = {"tensor 0": torch.zeros(3), "tensor 1": torch.zeros(3), "step": 0}
    load_state(state, result.checkpoint)
    assert state["step"] == 2
    assert torch.equal(state["tensor 1"], torch.full((3,), 2.0))


def test_files_in_the_run_itself_and_on_request(tmp_path):
    def loop(config):
        path = train.get_context().get_storage().build_checkpoint_path_from_name("mine")
        save_state({"tensor": torch.ones(3)}, path)
        assert not Path(path, "state", "rank-00000.safetensors").is_symlink()
        train.report({}, Checkpoint.from_directory(path), checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)
        with train.staging_directory() as directory:
            save_state({"tensor": torch.zeros(3)}, directory, in_memory=False)
            assert not Path(directory, "state", "rank-00000.safetensors").is_symlink()
            train.report({}, Checkpoint.from_directory(directory))
        with train.staging_directory() as directory:
            save_state({"tensor": torch.full((3,), 2.0)}, directory)
            train.report({}, Checkpoint.from_directory(directory))

    result = run(loop, tmp_path, 1)
    found = []
    for reported in train.Run(result.path).checkpoints:
        state = {"tensor": torch.full((3,), 9.0)}
        load_state(state, reported.checkpoint)
        found.append(state["tensor"][0].item())
    assert found == [1.0, 0.0, 2.0]
    assert not list((tmp_path / "run" / ".holdfast").glob("staging/*"))


def test_in_the_users_own_process(tmp_path):
    def loop(config):
        with tempfile.TemporaryDirectory() as directory:
            save_state({"tensor": torch.ones(3)}, directory)
            train.report({}, Checkpoint.from_directory(directory))

    before = set(os.listdir("/proc/self/fd"))
    result = run(loop, tmp_path, 0)
    left = [
        os.readlink(f"/proc/self/fd/{n}")
        for n in set(os.listdir("/proc/self/fd")) - before
        if os.path.lexists(f"/proc/self/fd/{n}")
    ]
    assert not [target for target in left if "holdfast-state" in target]
    state = {"tensor": torch.zeros(3)}
    load_state(state, result.checkpoint)
    assert torch.equal(state["tensor"], torch.ones(3))


def test_a_changed_byte_in_storage_is_found(tmp_path):
    result = run(steps, tmp_path, 2, kind="ddp", steps=1)
    shard = Path(result.checkpoint.path, "state", "rank-00000.safetensors")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(train.DamagedCheckpointError, match="rank-00000"):
        load_state({"step": 0}, Checkpoint(result.checkpoint.path))


def test_retention_and_many_saves(tmp_path):
    def loop(config):
        tensor = torch.zeros(1000)
        for step in range(50):
            tensor.fill_(step)
            with tempfile.TemporaryDirectory() as directory:
                save_state({"tensor": tensor}, directory)
                train.report(
                    {"step": step},
                    Checkpoint.from_directory(directory),
                    checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
                )

    result = TorchTrainer(
        loop,
        train_loop_config={},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name="run", storage_path=tmp_path, progress="quiet", checkpoint_config=CheckpointConfig(num_to_keep=2)
        ),
    ).fit()
    state = {"tensor": torch.zeros(1000)}
    load_state(state, result.checkpoint)
    assert torch.equal(state["tensor"], torch.full((1000,), 49.0))


def test_a_directory_that_was_moved_or_saved_again_is_never_mistaken(tmp_path):
    """A link that was left from an earlier save must not show what a later one put into the same memory."""

    def loop(config):
        base = Path(tempfile.mkdtemp())
        save_state({"tensor": torch.full((1000,), 1.0), "step": 1}, base / "a")
        os.rename(base / "a", base / "best")
        save_state({"tensor": torch.full((1000,), 2.0), "step": 2}, base / "a")
        with pytest.raises(train.ShardModifiedError, match="uses for something else"):
            train.report({}, Checkpoint.from_directory(base / "best"))
        with pytest.raises(train.HoldfastError):
            load_state({"step": 0}, base / "best")
        train.report({}, Checkpoint.from_directory(base / "a"))

    result = run(loop, tmp_path, 1)
    state = {"tensor": torch.zeros(1000), "step": 0}
    load_state(state, result.checkpoint)
    assert state["step"] == 2
    assert torch.equal(state["tensor"], torch.full((1000,), 2.0))


def test_files_of_ranks_that_are_no_more_are_not_read(tmp_path):
    directory = tmp_path / "shared"

    def loop(config):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor

        size = train.get_context().get_world_size()
        mesh = init_device_mesh("cpu", (size,))
        whole = torch.full((12,), float(size))
        save_state({"tensor": distribute_tensor(whole, mesh, [Shard(0)])}, directory, in_memory=False)
        train.report({}, Checkpoint.from_directory(directory))

    run(loop, tmp_path, 4)
    result = run(loop, tmp_path, 3)
    state = {"tensor": torch.zeros(12)}
    load_state(state, result.checkpoint)
    assert torch.equal(state["tensor"], torch.full((12,), 3.0))


def test_what_may_differ_between_ranks_is_of_one_rank(tmp_path):
    def loop(config):
        rank = train.get_context().get_world_rank()
        model = nn.BatchNorm1d(1000)
        model.running_mean.fill_(rank)
        model.running_var.fill_(rank)
        with tempfile.TemporaryDirectory() as directory:
            save_state({"model": model, "mine": torch.full((3,), float(rank))}, directory)
            train.report({}, Checkpoint.from_directory(directory))

    result = run(loop, tmp_path, 2)
    model = nn.BatchNorm1d(1000)
    state = {"model": model, "mine": torch.ones(3)}
    load_state(state, result.checkpoint)
    assert model.running_mean.eq(0).all()
    assert model.running_var.eq(0).all()
    assert state["mine"].eq(0).all()


def test_workers_without_a_process_group_are_told_so(tmp_path):
    def loop(config):
        save_state({"a": 1}, tempfile.mkdtemp())

    with pytest.raises(WorkerGroupError, match="no process group"):
        train.DataParallelTrainer(
            loop,
            train_loop_config={},
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(name="run", storage_path=tmp_path, progress="quiet"),
        ).fit()


def test_a_rank_may_report_a_copy_but_not_nothing(tmp_path):
    def loop(config):
        import shutil

        rank = train.get_context().get_world_rank()
        with tempfile.TemporaryDirectory() as directory:
            save_state({f"tensor {rank}": torch.ones(3)}, f"{directory}/inner")
            train.report({"only": "metrics"})
            shutil.copytree(f"{directory}/inner", f"{directory}/copy")
            train.report({}, Checkpoint.from_directory(f"{directory}/copy"))
            os.chdir(directory)
            save_state({f"tensor {rank}": torch.ones(3)}, ".")
            train.report({}, Checkpoint.from_directory(".") if rank == 0 else None)

    with pytest.raises(WorkerGroupError, match="rank 1 saved a part"):
        run(loop, tmp_path, 2)
    (only,) = train.Run(tmp_path / "run").checkpoints
    load_state({"tensor 0": torch.zeros(3), "tensor 1": torch.zeros(3)}, only.checkpoint)


@pytest.mark.parametrize("mode", ["SYNC", "ASYNC"])
def test_a_directory_that_is_kept_among_temporary_ones_holds_files_in_the_end(tmp_path, mode):
    def loop(config):
        for step in range(3):
            directory = Path(config["base"], "own", f"{step}")
            save_state({"tensor": torch.full((1000,), float(step))}, directory)
            train.report(
                {},
                Checkpoint.from_directory(directory),
                checkpoint_upload_mode=CheckpointUploadMode(config["mode"]),
                delete_local_checkpoint_after_upload=False,
            )

    run(loop, tmp_path, 2, mode=mode)
    for step in range(3):
        state = {"tensor": torch.zeros(1000)}
        load_state(state, tmp_path / "own" / f"{step}")
        assert torch.equal(state["tensor"], torch.full((1000,), float(step)))
        assert not (tmp_path / "own" / f"{step}" / "state" / "rank-00000.safetensors").is_symlink()
    for reported in train.Run(tmp_path / "run").checkpoints:
        assert reported.checkpoint.verify() == []
        load_state({"tensor": torch.zeros(1000)}, reported.checkpoint)
