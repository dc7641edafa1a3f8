"""Scripts written against Ray Train's checkpointing guide run after nothing but replacing its name.

Here are those that need torch alone; those about frameworks run in `tests/frameworks/`.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from support import guide
from support.guide import BLOCKS, moved, replaced
from support.s3_server import KEYS, S3Server


def run(script: str, tmp_path: Path, **environment: str) -> str:
    """What a script prints that runs to its end without a warning."""
    done = guide.run(script, tmp_path, PYTHONWARNINGS="error", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_native_pytorch_save(tmp_path: Path) -> None:
    end = """
import json
print(json.dumps({"kept": len(result.best_checkpoints), "files": [f.path for f in result.checkpoint.files()],
                  "metrics": sorted(result.metrics)}))
"""
    told = json.loads(run(moved("native_save.py") + end, tmp_path).splitlines()[-1])
    assert told == {"kept": 5, "files": ["model.pt"], "metrics": ["loss"]}


def test_native_pytorch_restore_goes_on_where_it_failed(tmp_path: Path) -> None:
    end = """
import json
reports = train.Run(result.path).reports()
print(json.dumps({"attempts": [r["attempt"] for r in reports],
                  "epoch": torch.load(os.path.join(result.checkpoint.path, "extra_state.pt"))["epoch"]}))
"""
    told = json.loads(run(moved("native_restore.py") + end, tmp_path).splitlines()[-1])
    # Five reports of five epochs: the two before the error, and the three that were left.
    assert told == {"attempts": [1, 1, 2, 2, 2], "epoch": 4}


def test_only_rank_zero_saves(tmp_path: Path) -> None:
    end = """
from holdfast.torch import TorchTrainer
result = TorchTrainer(train_fn, train_loop_config={}, scaling_config=train.ScalingConfig(num_workers=2)).fit()
print([(f.path, f.rank) for f in result.checkpoint.files()])
"""
    assert run(moved("rank_zero_saves.py") + end, tmp_path).splitlines()[-1] == "[('model.pt', 0)]"


def test_every_rank_saves_its_shard_in_a_bucket(tmp_path: Path, server: S3Server) -> None:
    server.make_bucket("bucket")
    environment = {**KEYS, "AWS_ENDPOINT_URL": server.endpoint, "AWS_ALLOW_HTTP": "true"}
    end = """
result = trainer.fit()
print([(f.path, f.rank) for f in result.checkpoint.files()])
"""
    told = run(moved("distributed.py") + end, tmp_path, **environment).splitlines()[-1]
    assert told == "[('model-rank=0.pt', 0), ('model-rank=1.pt', 1)]"


@pytest.mark.parametrize("name", ["configure.py", "after_training.py"])
def test_blocks_that_train_nothing(name: str, tmp_path: Path) -> None:
    run(moved(name).replace("/tmp/test-checkpoint", str(tmp_path / "test-checkpoint")), tmp_path)


def by_the_command(script: str, tmp_path: Path, *, in_one_line: bool = False) -> str:
    """A script after the command of docs/coming-from-ray.md, the long one unless said."""
    page = (Path(__file__).parents[2] / "docs" / "coming-from-ray.md").read_text()
    one_line, command = re.findall("```bash\n(.*?)\n```", page, re.DOTALL)
    assert "\n" not in one_line
    command = one_line if in_one_line else command
    assert command.startswith("sed ")
    (tmp_path / "script.py").write_text(script)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert (tmp_path / "script.py.bak").read_text() == script
    return (tmp_path / "script.py").read_text()


@pytest.mark.parametrize("name", sorted(path.name for path in BLOCKS.glob("*.py")))
def test_the_command_moves_the_guides_scripts(name: str, tmp_path: Path) -> None:
    text = (BLOCKS / name).read_text()
    found = by_the_command(text, tmp_path)
    assert by_the_command(text, tmp_path, in_one_line=True) == found
    compile(found, name, "exec")
    assert found == replaced(text)


# What a line becomes, and the names that it then defines.
LINES = {
    "from ray import train": "import holdfast as train",
    "from ray import train  # of Ray": "import holdfast as train  # of Ray",
    "from ray import train as t": "import holdfast as t",
    "    from ray import train": "    import holdfast as train",
    "# from ray import train": "# import holdfast as train",
    "from ray import train, tune": "import holdfast as train; from ray import tune",
    "from ray import tune, train": "import holdfast as train; from ray import tune",
    "from ray import tune, train  # both": "import holdfast as train; from ray import tune  # both",
    "from ray import data, train, tune": "import holdfast as train; from ray import data, tune",
    "from ray import tune": "from ray import tune",
    "import ray.train as train": "import holdfast as train",
    "import ray.train": "import holdfast",
    "    import ray.train.torch": "    import holdfast.torch",
    "# import ray.train.torch": "# import holdfast.torch",
    "from ray.train import Checkpoint, RunConfig": "from holdfast import Checkpoint, RunConfig",
    "from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer": "from holdfast import DataParallelTrainer",
    "from ray.train.data_parallel_trainer import DataParallelTrainer": "from holdfast import DataParallelTrainer",
    "from ray.train.v2.api.config import ScalingConfig": "from holdfast import ScalingConfig",
    "from ray.train.huggingface.transformers import prepare_trainer": "from holdfast.huggingface.transformers import prepare_trainer",
    "import ray": "import holdfast",
    "import ray  # the cluster": "import holdfast  # the cluster",
    "    import ray": "    import holdfast",
    "# import ray": "# import holdfast",
    "import rayon": "import rayon",
    "import ray.data": "import ray.data",
    "print(array.train, x.ray.train)": "print(array.train, x.ray.train)",
    "ray.train.report({'a': ray.train.get_context().get_world_rank()})": "holdfast.report({'a': holdfast.get_context().get_world_rank()})",
    "ray.init()": "pass",
    "    ray.init(address='auto', runtime_env={'env_vars': {'A': '(1)'}})": "    pass",
    "ray.shutdown()  # there": "pass  # there",
    "import ray, os": "import holdfast, os",
    "import os, ray  # and it": "import os, holdfast  # and it",
    "import os, ray, sys": "import os, holdfast, sys",
    "ray.init(runtime_env=f(g(1), 2))": "pass",
    # Where a call ends no sed can tell, so these stay, with all that follows.
    **dict.fromkeys(
        (
            "context = ray.init('auto')",
            "ray.init(); print('more')",
            "ray.init(runtime_env=f(1),  # (a note)\n    num_cpus=2)",
            "ray.init(runtime_env={\n    'env_vars': {'A': '1'},\n})\nEPOCHS = 3",
            "ray.init(num_cpus=2,\n         log_to_driver=False)\nEPOCHS = 3",
            "if x:\n    ray.init(\n        num_cpus=f(4),\n    )\n    print(1)",
        )
    ),
}


def test_the_command_moves_the_forms_that_scripts_have(tmp_path: Path) -> None:
    found = by_the_command("\n".join(LINES) + "\n", tmp_path)
    assert found == "\n".join(new or old for old, new in LINES.items()) + "\n"


@pytest.mark.parametrize(
    "framework", ["", *(pytest.param(n, marks=pytest.mark.slow) for n in ("lightning", "transformers"))]
)
def test_every_import_that_the_command_makes_of_the_guides_is_there(framework: str, tmp_path: Path) -> None:
    if framework:
        pytest.importorskip(framework)
    lines = [line.strip() for path in sorted(BLOCKS.glob("*.py")) for line in path.read_text().splitlines()]
    imports = {line: None for line in lines if line.startswith(("import ray", "from ray"))}
    others = [name for name in ("lightning", "transformers") if name != framework]
    chosen = [line for line in imports if framework in line and not any(name in line for name in others)]
    assert chosen
    code = by_the_command("\n".join(chosen), tmp_path)
    run(f"import warnings; warnings.simplefilter('default')\n{code}", tmp_path)
