"""A Flax model on handwritten digits, saved with Orbax; killed in the middle, it goes on where it was, bit for bit.

Run it: python examples/jax_orbax.py [--storage DIR]
"""

# What JAX and its companions are typed with is not looked at.
# mypy: disable-error-code="import-not-found, import-untyped, misc, untyped-decorator"

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import holdfast as train

EPOCHS = 6
BATCH = 64


def train_func(config: dict[str, Any]) -> None:
    # Here, in the worker: JAX starts threads of its own, which a process that is to be forked must not have.
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    import orbax.checkpoint as ocp
    from flax import nnx
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = jnp.asarray(digits.data / 16, jnp.float32), jnp.asarray(digits.target)

    class Classifier(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.hidden = nnx.Linear(64, 32, rngs=rngs)
            self.drop = nnx.Dropout(0.2, rngs=rngs)
            self.out = nnx.Linear(32, 10, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.out(self.drop(nnx.relu(self.hidden(x))))

    model = Classifier(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
        def loss_of(model: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        loss, gradients = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, gradients)
        return loss

    # Weights, the optimizer's state and the random numbers of the dropout: one tree of arrays.
    def state(epoch: int) -> dict[str, Any]:
        return {"model": nnx.state(model), "optimizer": nnx.state(optimizer), "epoch": epoch}

    checkpointer = ocp.StandardCheckpointer()
    first = 0
    if checkpoint := train.get_checkpoint():
        with checkpoint.as_directory() as directory:
            saved = checkpointer.restore(Path(directory).absolute() / "state", state(0))
        nnx.update(model, saved["model"])
        nnx.update(optimizer, saved["optimizer"])
        first = saved["epoch"] + 1

    for epoch in range(first, EPOCHS):
        order = np.random.default_rng(epoch).permutation(len(images))
        losses = [
            step(model, optimizer, images[order[at : at + BATCH]], labels[order[at : at + BATCH]])
            for at in range(0, len(order), BATCH)
        ]
        if epoch == config["killed_at"] and checkpoint is None:
            os.kill(os.getpid(), signal.SIGKILL)
        with train.staging_directory() as directory:  # on the run's own file system, so nothing is copied
            checkpointer.save(Path(directory).absolute() / "state", state(epoch))
            checkpointer.wait_until_finished()  # Orbax writes in the background
            train.report(
                {"epoch": epoch, "loss": jnp.stack(losses).mean(), "jax": jax.__version__},
                checkpoint=train.Checkpoint.from_directory(directory),
            )


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--storage", help="where runs lie (default: ~/holdfast_results)")
options = parser.parse_args()


def fit(name: str, killed_at: int | None) -> train.Result:
    return train.DataParallelTrainer(
        train_func,
        train_loop_config={"killed_at": killed_at},
        run_config=train.RunConfig(
            name=name,
            storage_path=options.storage,
            failure_config=train.FailureConfig(max_failures=1),
            checkpoint_config=train.CheckpointConfig(num_to_keep=1),
        ),
    ).fit()


killed, undisturbed = fit("killed", killed_at=3), fit("undisturbed", killed_at=None)

print("epoch  killed    undisturbed")
for ours, theirs in zip(train.Run(killed.path).reports(), train.Run(undisturbed.path).reports(), strict=True):
    here, there = ours["metrics"], theirs["metrics"]
    print(f"{here['epoch']:5}  {here['loss']:.6f}  {there['loss']:.6f}  (attempt {ours['attempt']})")
    assert here == there
print("the same, bit for bit")
