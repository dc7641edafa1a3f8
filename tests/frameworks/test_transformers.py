"""Transformers' `Trainer` on two workers: what it saves is reported whole, with its own metrics, and resumed exactly."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import holdfast as train
from holdfast import CheckpointUploadMode

pytest.importorskip("torch", reason="torch is not installed: pip install holdfast[torch]")
pytest.importorskip("transformers", reason="Transformers is not installed: pip install holdfast[transformers]")
pytest.importorskip("accelerate", reason="Accelerate is not installed: pip install holdfast[transformers]")

import transformers.trainer  # noqa: F401 - workers are forked from a process that has what the driver has imported

from support.transformers_job import fit

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

FILES = [
    "config.json",
    "model.safetensors",
    "optimizer.pt",
    "rng_state_0.pth",
    "rng_state_1.pth",
    "scheduler.pt",
    "trainer_state.json",
    "training_args.bin",
]


def assert_whole(result: train.Result) -> None:
    for each in train.Run(result.path).checkpoints:
        assert [file.path for file in each.checkpoint.files()] == [f"checkpoint/{name}" for name in FILES]
        assert each.checkpoint.verify() == []
        with each.checkpoint.as_directory() as directory:
            state = json.loads(Path(directory, "checkpoint", "trainer_state.json").read_text())
        assert state["global_step"] == each.metrics["step"]


def test_metrics_are_those_of_the_saved_step(tmp_path: Path) -> None:
    # An attempt of more ranks, which died in the middle of its save, has left a part of what will be saved again.
    left = tmp_path / "out-strides" / "checkpoint-6"
    left.mkdir(parents=True)
    for name in ("rng_state_3.pth", "optimizer.pt"):
        (left / name).write_bytes(b"of a dead attempt")
    (tmp_path / "out-strides" / "_holdfast-dead").mkdir()
    arguments = {"max_steps": 9, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 3, "save_steps": 3}
    arguments |= {"save_strategy": "steps", "save_total_limit": 2}
    result = fit(tmp_path, "strides", arguments=arguments)
    history = {}
    for entry in result.return_value["history"]:
        history.setdefault(entry["step"], {}).update(entry)
    reported = [each.metrics for each in train.Run(result.path).checkpoints]
    assert [metrics["step"] for metrics in reported] == [3, 6, 9]
    for metrics in reported:
        # At steps 3 and 9 nothing was logged but the evaluation, and what was one before is of other weights.
        assert ("loss" in metrics) == (metrics["step"] == 6)
        assert {name: metrics[name] for name in history[metrics["step"]]} == history[metrics["step"]]
    assert_whole(result)
    # Its own directory stays Transformers' own, which keeps the newest two.
    assert result.return_value["left"] == ["checkpoint-6", "checkpoint-9"]
    assert (left / "rng_state_3.pth").exists()


def test_an_evaluation_without_a_save_is_a_report_of_its_own(tmp_path: Path) -> None:
    arguments = {
        "max_steps": 4,
        "logging_steps": 4,
        "eval_strategy": "epoch",
        "save_strategy": "steps",
        "save_steps": 3,
    }
    arguments |= {"eval_on_start": True}
    callback = {"delete_local_checkpoint_after_upload": True}
    # Rank 0 gives away what rank 1 still looks at.
    result = fit(tmp_path, "older", arguments=arguments, callback=callback, slow_rank=1)
    reported = [each.metrics for each in train.Run(result.path).checkpoints]
    # At the end of an epoch Transformers saves first, by the step, and evaluates after that, by the epoch.
    assert [metrics["step"] for metrics in reported] == [3, 4]
    assert not any("eval_loss" in metrics for metrics in reported)
    evaluated = [each["metrics"]["step"] for each in train.Run(result.path).reports() if "eval_loss" in each["metrics"]]
    assert evaluated == [0, 4]
    assert_whole(result)
    # Given away: nothing is left, and on one file system nothing was copied.
    assert result.return_value["left"] == []
    stored = train.Run(result.path).checkpoints
    for each in stored:
        inode = Path(each.checkpoint.path, "checkpoint", "scheduler.pt").stat().st_ino
        assert inode == result.return_value["inodes"][each.metrics["step"]]


def test_an_evaluation_of_several_data_sets_is_one_report_and_none_where_a_save_reports_it() -> None:
    from transformers import TrainerControl, TrainerState

    from holdfast.huggingface.transformers import callback as module

    reports: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "report", lambda metrics, *_, **__: reports.append(metrics))
        callback = module.ReportCallback()
        state, control, nothing = TrainerState(epoch=0.5, global_step=4), TrainerControl(), SimpleNamespace()
        for name in ("one", "two"):
            state.log_history.append({"step": 4, f"eval_{name}_loss": 1.0})
            callback.on_evaluate(nothing, state, control)
        for _ in range(2):
            callback.on_step_begin(nothing, state, control)
        assert reports == [{"step": 4, "epoch": 0.5, "eval_two_loss": 1.0, "eval_one_loss": 1.0}]
        callback.on_evaluate(nothing, state, control)
        callback._owes_evaluation = False  # as after a save
        callback.on_step_begin(nothing, state, control)
        assert len(reports) == 1


def test_the_best_model_is_loaded_and_the_rest_is_rotated_while_reports_are_stored(tmp_path: Path) -> None:
    arguments = {"num_train_epochs": 3, "logging_strategy": "epoch", "eval_strategy": "epoch", "save_strategy": "epoch"}
    # The greatest loss is the first, so that the best model is not the last.
    arguments |= {"save_total_limit": 1, "load_best_model_at_end": True, "greater_is_better": True}
    callback = {"checkpoint_upload_mode": CheckpointUploadMode.ASYNC}
    result = fit(tmp_path, "best", arguments=arguments, callback=callback)
    assert_whole(result)
    reported = [each.metrics for each in train.Run(result.path).checkpoints]
    assert [(metrics["step"], metrics["epoch"]) for metrics in reported] == [(4, 1), (8, 2), (12, 3)]
    best = train.Run(result.path).best("eval_loss", "max")
    assert result.return_value["best"].endswith(f"checkpoint-{best.metrics['step']}")
    assert result.return_value["left"] == [f"checkpoint-{best.metrics['step']}"]
    from transformers import ViTForImageClassification

    with best.checkpoint.as_directory() as directory:
        model = ViTForImageClassification.from_pretrained(f"{directory}/checkpoint")
    assert {name: weight.tolist() for name, weight in model.state_dict().items()} == result.return_value["weights"]


STEPS = {
    "max_steps": 8,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 4,
}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> train.Result:
    return fit(tmp_path_factory.mktemp("calm"), "calm", arguments=STEPS)


@pytest.mark.parametrize("mode", ["SYNC", pytest.param("ASYNC", marks=pytest.mark.slow)])
def test_a_rank_killed_in_mid_epoch_changes_nothing(mode: str, calm: train.Result, tmp_path: Path) -> None:
    callback = {"checkpoint_upload_mode": CheckpointUploadMode[mode]}
    hit = fit(tmp_path, "hit", arguments=STEPS, callback=callback, killed_at=5)
    reports = train.Run(hit.path).reports()
    assert [(report["attempt"], report["metrics"]["step"]) for report in reports] == [
        *[(1, 3), (1, 4)],
        *[(2, 4), (2, 6), (2, 8)],
    ]
    # Model, optimizer, schedule, random states and the order of the data: every number of every step is the same.
    assert hit.return_value["history"] == calm.return_value["history"]
    assert hit.return_value["weights"] == calm.return_value["weights"]
    assert_whole(hit)


@pytest.mark.slow
def test_a_run_in_a_bucket_goes_on(calm: train.Result, url: str, tmp_path: Path) -> None:
    hit = fit(tmp_path, "hit", storage_path=url, arguments=STEPS, killed_at=5)
    assert hit.return_value["history"] == calm.return_value["history"]
    assert hit.return_value["weights"] == calm.return_value["weights"]
    assert [file.path for file in hit.checkpoint.files()] == [f"checkpoint/{name}" for name in FILES]


@pytest.mark.skipif(int(version("transformers").split(".")[0]) < 5, reason="Transformers 4 looks for a GPU at once")
def test_ranks_report_their_shards(tmp_path: Path) -> None:
    arguments = {**STEPS, "eval_strategy": "no", "fsdp": True}
    arguments["fsdp_config"] = {
        "version": 2,
        "state_dict_type": "SHARDED_STATE_DICT",
        "cpu_ram_efficient_loading": False,
    }
    calm = fit(tmp_path, "calm", arguments=arguments)
    hit = fit(tmp_path, "hit", arguments=arguments, killed_at=5)
    assert hit.return_value["history"] == calm.return_value["history"]
    assert hit.return_value["weights"] == calm.return_value["weights"]
    for each in train.Run(hit.path).checkpoints:
        assert each.checkpoint.verify() == []
        ranks = {file.path.removeprefix("checkpoint/"): file.rank for file in each.checkpoint.files()}
        assert ranks == {
            **{
                f"{part}/__{rank}_0.distcp": rank for part in ("optimizer_0", "pytorch_model_fsdp_0") for rank in (0, 1)
            },
            **{f"{part}/.metadata": 0 for part in ("optimizer_0", "pytorch_model_fsdp_0")},
            **{f"rng_state_{rank}.pth": rank for rank in (0, 1)},
            "scheduler.pt": 0,
            "trainer_state.json": 0,
        }
