"""What a script defines itself, in its workers: nobody runs the script again there, and no `__main__` guard keeps one from it."""

from __future__ import annotations

import pytest

from support.drivers import Driver
from support.waiting import LIMIT_S

CLASSES = """
import dataclasses, functools, multiprocessing, pickle, sys, tempfile, typing
from pathlib import Path
import torch
import holdfast as train

base, starts = Path(sys.argv[1]), sys.argv[2:]

@dataclasses.dataclass
class Config:
    width: int
    class Inner:
        pass

class Net(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.layer = torch.nn.Linear(config.width, 1)

def double(value):
    return 2 * value

class Data(torch.utils.data.Dataset):
    def __init__(self, config):
        self.config = config
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return double(index) + self.config.width

calls = 0

def loop(config):
    import __main__
    global calls
    calls += 1
    checkpoint = train.get_checkpoint()
    if checkpoint is None:
        with tempfile.TemporaryDirectory() as directory:
            torch.save(Net(config["own"]), Path(directory, "model.pt"))
            Path(directory, "rest").write_bytes(pickle.dumps((config["own"], Config.Inner(), double, loop)))
            train.report({}, train.Checkpoint(directory))
        raise RuntimeError("after the report")
    net, (own, inner, function, itself) = read(checkpoint)
    assert type(net) is Net and type(own) is Config and type(inner) is Config.Inner
    assert function is double and itself is loop and __main__.calls == calls == 1
    assert globals().get("__file__") == config["file"] == getattr(__main__, "__file__", None)
    told = []
    for start in starts:
        loader = torch.utils.data.DataLoader(Data(own), num_workers=1, batch_size=4, multiprocessing_context=start)
        told.append([batch.tolist() for batch in loader])
    return told, net

def read(checkpoint):
    with checkpoint.as_directory() as directory:
        net = torch.load(Path(directory, "model.pt"), weights_only=False)
        return net, pickle.loads(Path(directory, "rest").read_bytes())

result = train.DataParallelTrainer(
    loop,
    train_loop_config={"own": Config(3), "file": globals().get("__file__")},
    run_config=train.RunConfig(
        name="run", storage_path=base, progress="quiet", failure_config=train.FailureConfig(max_failures=1)
    ),
).fit()
told, net = result.return_value
assert told == [[[3, 5, 7, 9]]] * len(starts), told
found, (own, inner, function, itself) = read(result.checkpoint)
assert type(found) is type(net) is Net and own == net.config == Config(3) and type(inner) is Config.Inner
assert function is double and itself is loop and calls == 0
print("whole")
"""


@pytest.mark.parametrize(
    ("is_file", "starts"), [(True, ["spawn"]), pytest.param(False, ["fork", "forkserver"], marks=pytest.mark.slow)]
)
def test_what_a_script_defines_is_pickled_and_read_in_workers_their_children_and_the_script(tmp_path, is_file, starts):
    (tmp_path / "script.py").write_text(CLASSES)
    with Driver(tmp_path / "script.py" if is_file else CLASSES, tmp_path, *starts) as driver:
        out, _ = driver.communicate(timeout=LIMIT_S)
    assert out == "whole\n"


CACHED = """
import functools, sys, typing
import holdfast as train

Step = typing.NewType("Step", int)

@functools.lru_cache(maxsize=5)
def fibonacci(n: Step):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

class Table:
    @functools.cache
    def value(self):
        return fibonacci(Step(30))

def loop():
    found = Table().value()
    return found, fibonacci.cache_info().misses, fibonacci.cache_parameters()

print(train.DataParallelTrainer(
    loop, run_config=train.RunConfig(name="run", storage_path=sys.argv[1], progress="quiet")).fit().return_value)
"""


def test_a_scripts_functions_with_a_cache_travel(tmp_path):
    with Driver(CACHED, tmp_path) as driver:
        out, _ = driver.communicate(timeout=LIMIT_S)
    assert out == "(832040, 31, {'maxsize': 5, 'typed': False})\n"


VALIDATED = """
import multiprocessing, pickle, sys, tempfile
from pathlib import Path
import holdfast as train

class Score:
    def __init__(self, value):
        self.value = value

def measured(score, queue):
    queue.put(pickle.dumps(Score(score.value + 1)))

def validate(checkpoint):
    with checkpoint.as_directory() as directory:
        score = pickle.loads(Path(directory, "score").read_bytes())
    assert type(score) is Score
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    context.Process(target=measured, args=(score, queue)).start()
    return {"score": pickle.loads(queue.get()).value}

def loop():
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "score").write_bytes(pickle.dumps(Score(4)))
        train.report({}, train.Checkpoint(directory), validation=True)

result = train.DataParallelTrainer(
    loop, scaling_config=train.ScalingConfig(num_workers=0), validation_config=train.ValidationConfig(fn=validate),
    run_config=train.RunConfig(name="run", storage_path=sys.argv[1], progress="quiet")).fit()
print(result.best_checkpoints[0][1])
"""


def test_a_validation_knows_the_scripts_classes_too(tmp_path):
    with Driver(VALIDATED, tmp_path) as driver:
        out, _ = driver.communicate(timeout=LIMIT_S)
    assert out == "{'score': 5}\n"


RETURNED = """
import sys
import holdfast as train

class Registry:
    names = ["at first"]
    class Inner:
        number = 1

class Lost(Exception):
    seen = []

class Watch(train.UserCallback):
    def after_report(self, run_context, metrics, checkpoint):
        Registry.names.append("here")
        Registry.Inner.number = Lost.seen = 2

def loop(config):
    Registry.names.append("there")
    train.report({})
    train.report({})
    if config["fails"]:
        raise Lost("as it does")
    return Registry(), Registry.Inner

def fit(name, fails):
    config = train.RunConfig(name=name, storage_path=sys.argv[1], callbacks=[Watch()], progress="quiet")
    return train.DataParallelTrainer(loop, train_loop_config={"fails": fails}, run_config=config).fit().return_value

value, inner = fit("returns", False)
assert type(value) is Registry and inner is Registry.Inner
try:
    fit("raises", True)
except train.WorkerGroupError as error:
    assert type(error.worker_failures[0]) is Lost
assert Registry.names == ["at first", *["here"] * 4] and Registry.Inner.number == Lost.seen == 2
print("whole")
"""


def test_what_comes_back_changes_no_class_of_the_script(tmp_path):
    with Driver(RETURNED, tmp_path) as driver:
        out, _ = driver.communicate(timeout=LIMIT_S)
    assert out == "whole\n"
