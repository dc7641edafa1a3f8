"""PyTorch Lightning: what a report carries, and when it is made, whatever the strides of steps, epochs and validations are."""

from __future__ import annotations

import importlib.util
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import holdfast as train
from holdfast import CheckpointConfig, ConfigurationError
from support.lightning_steps import BATCHES, LostError, fit_steps

if importlib.util.find_spec("lightning") is None:
    pytest.skip("Lightning is not installed: pip install holdfast[lightning]", allow_module_level=True)

# In the test's own process Lightning's advice would be errors.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "FutureWarning")]


def shuffled(data: Any) -> Any:
    """Each epoch in another order."""
    from torch.utils.data import DistributedSampler

    return DistributedSampler(data, num_replicas=1, rank=0)


def reports_of(name: str, tmp_path: Path) -> list[tuple[int, Any, bool]]:
    """Of each report its step, the step of the validation that it tells of, and whether it has a checkpoint."""
    return [
        (report["metrics"]["step"], report["metrics"].get("validated"), report["checkpoint"] is not None)
        for report in train.Run(tmp_path / "runs" / name).reports()
    ]


def states_of(name: str, tmp_path: Path) -> list[dict[str, Any]]:
    import torch

    states = []
    for entry in train.Run(tmp_path / "runs" / name).checkpoints:
        with entry.checkpoint.open("checkpoint.ckpt") as file:
            states.append(torch.load(file, weights_only=False))
    return states


STRIDES = {
    "steps between validations": (
        {"every_n_train_steps": 2},
        {"val_check_interval": 3},
        [
            *[(2, None, True), (3, 3, False), (4, None, True), (6, 6, True)],
            *[(8, None, True), (9, 9, False), (10, None, True), (12, 12, True)],
        ],
    ),
    "steps where validations are": (
        {"every_n_train_steps": 3},
        {"val_check_interval": 3},
        [(3, 3, True), (6, 6, True), (9, 9, True), (12, 12, True)],
    ),
    "steps and batches across epochs": (
        {"every_n_train_steps": 4},
        {"val_check_interval": 4, "check_val_every_n_epoch": None},
        [(4, 4, True), (6, None, False), (8, 8, True), (12, 12, True)],
    ),
    "epochs without a validation": (
        {},
        {"check_val_every_n_epoch": 2, "max_epochs": 3},
        [(6, None, True), (12, 12, True), (18, None, True)],
    ),
    "a validation in the middle of epochs": (
        {"every_n_epochs": 2},
        {"val_check_interval": 5},
        [(5, 5, False), (6, None, False), (11, 11, False), (12, None, True)],
    ),
    "steps and accumulated gradients": (
        {"every_n_train_steps": 2},
        {"accumulate_grad_batches": 2, "val_check_interval": 4},
        [(2, 2, True), (3, None, False), (4, None, True), (5, 5, False), (6, None, True)],
    ),
    # After every batch, but a rank does not know that of the others.
    "validations by the clock": (
        {"every_n_train_steps": 3},
        {"val_check_interval": timedelta(microseconds=1)},
        [(3, None, True), (6, 6, True), (9, None, True), (12, 12, True)],
    ),
}


@pytest.mark.parametrize("case", STRIDES)
def test_a_report_has_no_metrics_of_other_weights(case: str, tmp_path: Path) -> None:
    callback, trainer, expected = STRIDES[case]
    fit_steps(tmp_path, "run", callback=callback, trainer=trainer)
    assert reports_of("run", tmp_path) == expected
    for report in train.Run(tmp_path / "runs" / "run").reports():
        metrics = report["metrics"]
        # The mean over an epoch, and what the model logs at its end, belong to its end.
        at_end = metrics["step"] % (3 if "accumulated" in case else BATCHES) == 0
        assert ("mean" in metrics, metrics.get("ended")) == ((True, metrics["step"]) if at_end else (False, None))
        # Set at every batch to the same value; at an epoch's first one alone; behind a report of the same batch.
        assert metrics["always"] == 1
        assert "first" not in metrics
        assert metrics.get("after", metrics["step"]) == metrics["step"]


def test_a_metric_counts_as_set_by_what_was_done_to_it() -> None:
    import torch

    from holdfast.lightning.metrics import CurrentMetrics

    place, logged = SimpleNamespace(total_batch_idx=0), {"kept": torch.tensor(1.0), "added to": torch.tensor(1.0)}
    logged["anew"] = torch.tensor(1.0)
    with torch.inference_mode():
        logged["validated"] = torch.tensor(1.0)
    current = CurrentMetrics()

    def look() -> set[str]:
        # Lightning hands out each value as a new object at every look.
        seen: Any = {name: value.detach() for name, value in logged.items()}
        return set(current.look(SimpleNamespace(fit_loop=place, callback_metrics=seen)))

    assert look() == look() == {"kept", "added to", "anew", "validated"}
    place.total_batch_idx = 1
    assert look() == set()
    logged["added to"] += 1
    logged["anew"] = torch.tensor(1.0)
    assert look() == look() == {"added to", "anew"}


def test_the_best_of_a_validation_is_kept(tmp_path: Path) -> None:
    kept = CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="score")
    trainer = {"val_check_interval": 3, "max_epochs": 3}
    result = fit_steps(tmp_path, "run", kept, callback={"every_n_train_steps": 1}, trainer=trainer)
    assert {metrics["step"] for _, metrics in result.best_checkpoints} == {6, 18}  # the best, and the latest


@pytest.mark.parametrize(("stride", "lost_at"), [(1, 3), (1, 6), (2, 2), (2, 5), (3, 5), (3, 8)])
def test_a_resumed_epoch_leaves_no_validation_out(stride: int, lost_at: int, tmp_path: Path) -> None:
    config: dict[str, Any] = {"callback": {"every_n_train_steps": stride}, "trainer": {"val_check_interval": 3}}
    fit_steps(tmp_path, "calm", **config)
    with pytest.raises((train.TrainingFailedError, LostError)):
        fit_steps(tmp_path, "hit", **config, lost_at=lost_at)
    latest = train.Run(tmp_path / "runs" / "hit").latest
    step = 0 if latest is None else latest.metrics["step"]
    validated = fit_steps(tmp_path, "hit", **config).return_value
    assert validated == [number for number in (3, 6, 9, 12) if number > step]
    assert reports_of("hit", tmp_path) == reports_of("calm", tmp_path)


@pytest.mark.parametrize(
    ("callback", "lost_at", "validates"),
    [({}, 7, True), ({}, 9, False), ({"every_n_train_steps": 2}, 7, False), ({"every_n_train_steps": 2}, 9, True)],
)
def test_training_by_steps_goes_on(callback: dict[str, Any], lost_at: int, validates: bool, tmp_path: Path) -> None:
    config: dict[str, Any] = {"callback": callback, "validates": validates, "returns": "seen", "sampler": shuffled}
    config["trainer"] = {"max_steps": 14, "max_epochs": -1}
    calm = fit_steps(tmp_path, "calm", **config).return_value
    with pytest.raises((train.TrainingFailedError, LostError)):
        fit_steps(tmp_path, "hit", **config, lost_at=lost_at)
    latest = train.Run(tmp_path / "runs" / "hit").latest
    assert latest is not None
    hit = fit_steps(tmp_path, "hit", **config).return_value
    assert hit == calm[latest.metrics["step"] :]
    assert reports_of("hit", tmp_path) == reports_of("calm", tmp_path)


def test_more_steps_go_on_within_the_epoch(tmp_path: Path) -> None:
    config: dict[str, Any] = {"returns": "seen", "sampler": shuffled}
    calm = fit_steps(tmp_path, "calm", **config, trainer={"max_steps": 14, "max_epochs": -1}).return_value
    first = fit_steps(tmp_path, "more", **config, trainer={"max_steps": 8, "max_epochs": -1}).return_value
    second = fit_steps(tmp_path, "more", **config, trainer={"max_steps": 14, "max_epochs": -1}).return_value
    assert first + second == calm
    assert reports_of("more", tmp_path) == [
        *reports_of("calm", tmp_path)[:1],
        (8, None, True),
        *reports_of("calm", tmp_path)[1:],
    ]


@pytest.mark.parametrize(("interval", "callback"), [(1.0, {}), (3, {"every_n_train_steps": 3})])
def test_a_checkpoint_has_the_states_of_what_monitors(
    interval: float, callback: dict[str, Any], tmp_path: Path
) -> None:
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

    stops = EarlyStopping("validated", mode="max", patience=3)
    keeps = ModelCheckpoint(tmp_path / "kept", monitor="validated", mode="max")
    trainer = {"val_check_interval": interval}
    fit_steps(tmp_path, "run", callback=callback, callbacks=[stops, keeps], trainer=trainer)
    states = states_of("run", tmp_path)
    assert len(states) == 2 * BATCHES // (3 if callback else BATCHES)
    for state in states:
        found = [each for key, each in state["callbacks"].items() if "validated" in key]
        assert [each.get("best_score", each.get("best_model_score")) for each in found] == [state["global_step"]] * 2


@pytest.mark.parametrize("optimizer_steps", [0, 1, 2])
def test_manual_optimization_is_saved_at_every_epoch(optimizer_steps: int, tmp_path: Path) -> None:
    fit_steps(tmp_path, "run", manual=optimizer_steps, trainer={"max_epochs": 3})
    ends = [BATCHES * optimizer_steps * epoch for epoch in (1, 2, 3)]
    assert [(step, saved) for step, _, saved in reports_of("run", tmp_path)] == [(step, True) for step in ends]


def test_other_batches_go_on_behind_the_same_items(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from torch.utils.data import RandomSampler

    config: dict[str, Any] = {"batches": 24, "returns": "seen", "callback": {"every_n_train_steps": 2}}
    config |= {"sampler": shuffled, "trainer": {"max_epochs": 1}}
    calm = fit_steps(tmp_path, "calm", **config).return_value
    with pytest.raises((train.TrainingFailedError, LostError)):
        fit_steps(tmp_path, "hit", **config, size=3, lost_at=5)  # of the 12 items before that the checkpoint has
    hit = fit_steps(tmp_path, "hit", **config, size=5).return_value
    assert hit == calm[10:]
    assert "at a world size of 1 with batches of 3; now it is a world size of 1 with batches of 5" in caplog.text
    # What is not dealt out may have any order: all of it comes again.
    config["sampler"] = RandomSampler
    with pytest.raises((train.TrainingFailedError, LostError)):
        fit_steps(tmp_path, "anew", **config, size=3, lost_at=5)
    assert sorted(fit_steps(tmp_path, "anew", **config, size=5).return_value) == sorted(calm)
    assert "so the epoch begins anew" in caplog.text


def test_how_far_the_next_workers_are() -> None:
    from holdfast.lightning.shares import batches_done

    def shares(world_size: int, *sizes: int | None, are_dealt: bool = True) -> dict[str, Any]:
        return {"world_size": world_size, "batch_sizes": [*sizes], "are_dealt": are_dealt}

    assert batches_done(6, shares(4, 8), shares(2, 8)) == 12
    assert batches_done(6, shares(4, 8), shares(2, 16)) == 6
    assert batches_done(5, shares(2, 8), shares(4, 8)) == 2  # rounded down
    assert batches_done(6, shares(4, 8, 2), shares(2, 8, 4)) == 6
    assert batches_done(6, shares(4, 8), shares(1, 8, are_dealt=False)) == 0
    assert batches_done(6, shares(4, 8), shares(2, None)) == 0
    assert batches_done(6, shares(4, 8), shares(2, 8, 8)) == 0


def test_only_one_known_order_counts_as_dealt() -> None:
    from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
    from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, Sampler

    from holdfast.lightning.shares import shares_of

    class OwnPart(DistributedSampler[int]):
        """To each rank its part in one piece."""

        def __iter__(self) -> Any:
            part = len(self.dataset) // self.num_replicas  # type: ignore[arg-type]
            return iter(range(self.rank * part, (self.rank + 1) * part))

    class KnowsEpochs(Sampler[int]):
        def set_epoch(self, epoch: int) -> None:
            """Takes it."""

        def __iter__(self) -> Any:
            return iter(range(8))

    def are_dealt(sampler: Any) -> bool:
        loaders = SimpleNamespace(flattened=[DataLoader(data, sampler=sampler)])  # type: ignore[arg-type]
        trainer = SimpleNamespace(world_size=2, fit_loop=SimpleNamespace(_combined_loader=loaders))
        dealt: bool = shares_of(trainer)["are_dealt"]
        return dealt

    data, one_of_two = range(16), {"num_replicas": 2, "rank": 0}
    assert are_dealt(DistributedSampler(data, **one_of_two))  # type: ignore[arg-type]
    assert not are_dealt(OwnPart(data, **one_of_two))  # type: ignore[arg-type]
    assert not are_dealt(KnowsEpochs())
    assert not are_dealt(DistributedSamplerWrapper(RandomSampler(data), **one_of_two))
    assert not are_dealt(None)


def test_what_torch_will_not_load_is_told_with_the_remedy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config: dict[str, Any] = {"save_hyperparameters": True, "trainer": {"max_epochs": 1}}
    fit_steps(tmp_path, "run", **config)
    assert caplog.text.count("to resume: torch does not load the checkpoint") == 1
    config["trainer"] = {"max_epochs": 2}
    with pytest.raises(train.TrainingFailedError) as failed:
        fit_steps(tmp_path, "run", **config)
    assert isinstance(failed.value.worker_failures[0], train.ConfigurationError)
    assert "weights_only=False to trainer.fit" in str(failed.value)
    assert fit_steps(tmp_path, "run", **config, fit={"weights_only": False}).metrics["step"] == 2 * BATCHES


def test_a_strategy_that_starts_processes_of_its_own_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    import lightning.pytorch as pl

    from holdfast.torch import lightning

    kept = dict(pl.accelerators.AcceleratorRegistry)
    try:
        lightning._count_workers(pl, 2)
        workers = pl.accelerators.AcceleratorRegistry.get("cpu")
        monkeypatch.setattr(lightning, "get_spawning_popen", object)
        with pytest.raises(ConfigurationError, match="starts processes of its own"):
            pickle.dumps(workers)
    finally:
        pl.accelerators.AcceleratorRegistry.clear()
        pl.accelerators.AcceleratorRegistry.update(kept)


def test_the_callback_given_twice_is_refused(tmp_path: Path) -> None:
    from holdfast.lightning.reporting import RayTrainReportCallback, _check_alone

    one = RayTrainReportCallback()
    _check_alone(SimpleNamespace(callbacks=[object(), one]))
    with pytest.raises(ConfigurationError, match="more than once"):
        _check_alone(SimpleNamespace(callbacks=[one, RayTrainReportCallback()]))


def test_an_older_lightning_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning.pytorch as pl

    from holdfast.lightning import RayTrainReportCallback

    monkeypatch.setattr(pl, "__version__", "2.5.5")
    with pytest.raises(train.ConfigurationError, match=r"needs lightning.pytorch 2\.6, and 2\.5\.5 is installed"):
        RayTrainReportCallback.of(pl)


def test_a_newer_lightning_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import lightning.pytorch as pl

    from holdfast.lightning import RayTrainReportCallback
    from holdfast.lightning.packages import _warn_of_newer

    _warn_of_newer.cache_clear()
    RayTrainReportCallback.of(pl)
    assert not caplog.records
    monkeypatch.setattr(pl, "__version__", "2.7.0rc1")
    RayTrainReportCallback.of(pl)
    RayTrainReportCallback.of(pl)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "looks into the loops of lightning.pytorch 2.6, and 2.7.0rc1 is installed" in caplog.text


def test_names_are_those_that_users_know() -> None:
    import lightning.pytorch as pl

    from holdfast import lightning

    callback = lightning.RayTrainReportCallback()
    assert repr(callback.on_train_epoch_end).startswith("<bound method RayTrainReportCallback.on_train_epoch_end of ")
    for name in ("RayTrainReportCallback", "RayLightningEnvironment"):
        with pytest.raises(TypeError, match=rf"^{name}\.__init__\(\) got an unexpected"):
            getattr(lightning, name)(every=3)
    for name in lightning.__all__:
        made = getattr(lightning, name)
        if name.startswith("Ray"):
            assert {kind.__name__ for kind in made.of(pl).__mro__[:2]} == {name}
