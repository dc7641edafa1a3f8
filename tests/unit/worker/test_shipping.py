"""Functions on their way to workers."""

from __future__ import annotations

import threading

import cloudpickle
import pytest

from holdfast.errors import SerializationError
from holdfast.worker.backend import BackendConfig
from holdfast.worker.shipping import pack


def test_a_function_travels_with_its_config_and_backend():
    function, config, backend = cloudpickle.loads(pack(lambda config: config["a"] + 1, {"a": 1}, BackendConfig()))
    assert function(config) == 2
    assert backend == BackendConfig()


def test_a_module_of_a_class_of_its_own_travels_by_its_name():
    torch = pytest.importorskip("torch")

    def function(config):
        return torch.ops

    assert cloudpickle.loads(pack(function, None, BackendConfig()))[0](None) is torch.ops


def test_the_variable_of_the_enclosing_function_is_named():
    lock = threading.Lock()
    with pytest.raises(SerializationError, match=r"variable 'lock' of the enclosing function \(_thread.lock\)"):
        pack(lambda: lock, None, BackendConfig())


def test_the_entry_of_the_config_is_named():
    with pytest.raises(SerializationError, match=r"train_loop_config\['b'\]"):
        pack(lambda config: None, {"a": 1, "b": threading.Lock()}, BackendConfig())


def test_a_default_and_an_attribute_are_named():
    def loop(x=threading.Lock()):
        return x

    with pytest.raises(SerializationError, match="default of parameter 'x'"):
        pack(loop, None, BackendConfig())

    class Job:
        def __init__(self):
            self.lock = threading.Lock()

        def loop(self):
            return self.lock

    with pytest.raises(SerializationError, match=r"attribute self\.lock"):
        pack(Job().loop, None, BackendConfig())


def test_a_function_that_travels_by_value_keeps_the_names_of_its_files():
    source = "def outer():\n    def inner():\n        raise ValueError('here')\n    return inner\n"
    names = {"__name__": "__main__"}
    exec(compile(source, "/a/script.py", "exec"), names)
    function, _, _ = cloudpickle.loads(pack(names["outer"], None, BackendConfig()))
    assert function is not names["outer"]
    assert {function.__code__.co_filename, function().__code__.co_filename} == {"/a/script.py"}
