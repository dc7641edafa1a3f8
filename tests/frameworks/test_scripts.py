"""Classes of frameworks that a script derives from."""

from __future__ import annotations

import pytest

from support.drivers import Driver

SCRIPT = """
import dataclasses, pathlib, sys, tempfile
import torch, transformers
import holdfast as train

@dataclasses.dataclass
class Arguments(transformers.TrainingArguments):
    own: int = 3

def loop(config):
    with tempfile.TemporaryDirectory() as directory:
        # As its Trainer saves them with each checkpoint.
        torch.save(Arguments(output_dir=config["base"], own=4), pathlib.Path(directory, "training_args.bin"))
        train.report({}, train.Checkpoint(directory))

result = train.DataParallelTrainer(loop, train_loop_config={"base": sys.argv[1]},
    run_config=train.RunConfig(name="run", storage_path=sys.argv[1], progress="quiet")).fit()
with result.checkpoint.as_directory() as directory:
    arguments = torch.load(pathlib.Path(directory, "training_args.bin"), weights_only=False)
print(type(arguments) is Arguments, arguments.own)
"""


@pytest.mark.slow
def test_training_arguments_of_a_class_of_the_scripts_own_are_saved(tmp_path):
    pytest.importorskip("transformers")
    with Driver(SCRIPT, tmp_path) as driver:
        out, _ = driver.communicate(timeout=280)
    assert out == "True 4\n"
