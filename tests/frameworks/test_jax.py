"""JAX in workers, saved with Orbax: the example, and arrays that are divided among two processes."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import holdfast as train

for library in ("jax", "flax", "optax", "orbax", "sklearn"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed", allow_module_level=True)

EXAMPLE = Path(__file__).parents[2] / "examples" / "jax_orbax.py"
EPOCHS = 5


@pytest.mark.slow  # the page's example and the job below show the same in less time
def test_the_example(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--storage", str(tmp_path / "storage")],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(attempt 2)" in done.stdout
    assert "the same, bit for bit" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["storage"]


def divided(config):
    """One process a worker; rows of the weights on each."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import orbax.checkpoint as ocp

    rank, size = train.get_context().get_world_rank(), train.get_context().get_world_size()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    jax.distributed.initialize(address, size, rank, coordinator_bind_address=address)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    start = np.ones((8, 4), np.float32)
    weights = jax.make_array_from_callback(start.shape, rows, lambda index: start[index])

    checkpointer = ocp.StandardCheckpointer()
    first, checkpoint = 0, train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            like = jax.tree.map(ocp.utils.to_shape_dtype_struct, {"weights": weights, "epoch": 0})
            saved = checkpointer.restore(Path(directory).absolute() / "state", like)
        weights, first = saved["weights"], saved["epoch"] + 1

    @jax.jit
    def step(weights, inputs):
        loss, gradient = jax.value_and_grad(lambda weights: jnp.mean((inputs @ weights.T) ** 2))(weights)
        return weights - 0.1 * gradient, loss

    for epoch in range(first, config["epochs"]):
        weights, loss = step(weights, np.random.default_rng(epoch).normal(size=(16, 4)).astype(np.float32))
        loss = float(loss)
        if epoch == config.get("killed_at") and rank == 1 and checkpoint is None:
            os.kill(os.getpid(), signal.SIGKILL)
        with train.staging_directory() if rank == 0 else contextlib.nullcontext() as directory:
            directory = train.collective.broadcast_from_rank_zero(directory)
            checkpointer.save(Path(directory).absolute() / "state", {"weights": weights, "epoch": epoch})
            checkpointer.wait_until_finished()
            mine = train.Checkpoint.from_directory(directory) if rank == 0 else None
            train.report({"epoch": epoch, "loss": loss, "processes": jax.process_count()}, mine)


def fit(tmp_path, workers, **config):
    return train.DataParallelTrainer(
        divided,
        train_loop_config=config,
        scaling_config=train.ScalingConfig(num_workers=workers),
        run_config=train.RunConfig(
            name="divided", storage_path=tmp_path, failure_config=train.FailureConfig(max_failures=1)
        ),
    ).fit()


def undisturbed(epochs):
    """The same in NumPy."""
    import numpy as np

    weights, losses = np.ones((8, 4)), []
    for epoch in range(epochs):
        inputs = np.random.default_rng(epoch).normal(size=(16, 4)).astype(np.float32)
        outputs = inputs @ weights.T
        losses.append((outputs**2).mean())
        weights = weights - 0.1 * 2 * outputs.T @ inputs / outputs.size
    return losses


def test_arrays_that_two_processes_share_come_back_after_a_kill_and_in_one_process(tmp_path):
    fit(tmp_path, workers=2, epochs=EPOCHS, killed_at=2)
    result = fit(tmp_path, workers=1, epochs=EPOCHS + 2)
    reports = [report["metrics"] for report in train.Run(result.path).reports()]
    assert [report["epoch"] for report in reports] == list(range(EPOCHS + 2))
    assert [report["loss"] for report in reports] == pytest.approx(undisturbed(EPOCHS + 2), rel=1e-4)
    assert [report["processes"] for report in reports] == [2] * EPOCHS + [1] * 2
