"""Saves a state of tensors that goes on changing, each library in its own way and without waiting for the disk.

Of each saver `run` is the directory that it writes below. All keep the newest checkpoint alone; Holdfast deletes the one before by
itself, behind the commit.
"""

import os
import shutil
import tempfile
import warnings
from pathlib import Path

LIBRARIES = ("holdfast", "holdfast_strict", "dcp", "dcp_unsynced", "orbax")


def run_loop(library, loop, config):
    """Runs the function where the library has it run: Holdfast in a worker, the others in this process."""
    if not library.startswith("holdfast"):
        loop(config)
        return
    import holdfast
    from holdfast.torch import TorchTrainer

    TorchTrainer(
        loop,
        train_loop_config=config,
        scaling_config=holdfast.ScalingConfig(num_workers=1),
        run_config=holdfast.RunConfig(
            name="state",
            storage_path=str(Path(config["directory"], "runs")),
            checkpoint_config=holdfast.CheckpointConfig(num_to_keep=1),
            durability="strict" if library == "holdfast_strict" else "background",
        ),
    ).fit()


def saver_of(library, tensors, directory):
    """The saver of a library."""
    if library.startswith("holdfast"):
        return Holdfast(tensors, directory)
    if library.startswith("dcp"):
        return Dcp(tensors, directory, sync=library == "dcp")
    if library == "orbax":
        return Orbax(tensors, directory)
    raise ValueError(f"{library!r} is none of {LIBRARIES}")


class Holdfast:
    """`save_state` and a report in ASYNC mode."""

    def __init__(self, tensors, directory):
        self.run = Path(directory, "runs/state")
        self._state = {"model": tensors}

    def save(self, step):
        """Begins a checkpoint; when it returns the state may change."""
        import holdfast
        from holdfast.torch import save_state

        with tempfile.TemporaryDirectory() as directory:
            save_state(self._state, directory)
            self._pending = holdfast.report(
                {"step": step},
                checkpoint=holdfast.Checkpoint.from_directory(directory),
                checkpoint_upload_mode=holdfast.CheckpointUploadMode.ASYNC,
            )

    def done(self):
        """Whether the checkpoint is committed."""
        return self._pending.done()

    def result(self):
        """Waits until it is."""
        self._pending.result()

    def tidy(self):
        """Deletes the checkpoint before it."""


class Dcp:
    """`torch.distributed.checkpoint.async_save`, with a stager that is kept: its memory is used again."""

    def __init__(self, tensors, directory, sync):
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        warnings.filterwarnings("ignore", category=UserWarning)
        self.run = Path(directory, "dcp")
        self.run.mkdir()
        self._state = {"model": tensors}
        self._sync = sync
        # As `async_save` makes one for each call where none is given: the other options need a GPU.
        self._stager = DefaultStager(StagingOptions(False, False, False, False))
        self._newest = None

    def save(self, step):
        """Begins a checkpoint; when it returns the state may change."""
        from torch.distributed.checkpoint import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import async_save

        self._older, self._newest = self._newest, self.run / f"{step:06d}"
        self._future = async_save(
            self._state,
            storage_writer=FileSystemWriter(self._newest, sync_files=self._sync),
            async_stager=self._stager,
            no_dist=True,
        )

    def done(self):
        """Whether the checkpoint is committed."""
        return self._future.done()

    def result(self):
        """Waits until it is."""
        self._future.result()

    def tidy(self):
        """Deletes the checkpoint before it."""
        if self._older is not None:
            shutil.rmtree(self._older)


class Orbax:
    """A `CheckpointManager`, asynchronous as it is by default, on the arrays that the tensors are."""

    def __init__(self, tensors, directory):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import orbax.checkpoint as ocp

        self.run = Path(directory, "orbax")
        self._state = {"model": {name: tensor.numpy() for name, tensor in tensors.items()}}
        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self.run, options=options)

    def save(self, step):
        """Begins a checkpoint; when it returns the state may change."""
        import orbax.checkpoint as ocp

        self._manager.save(step, args=ocp.args.StandardSave(self._state))

    def done(self):
        """Whether the checkpoint is committed."""
        return not self._manager.is_saving_in_progress()

    def result(self):
        """Waits until it is."""
        self._manager.wait_until_finished()

    def tidy(self):
        """Deletes the checkpoint before it."""
        for step in self._manager.all_steps()[:-1]:
            self._manager.delete(step)
