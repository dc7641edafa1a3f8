"""A script's names in a process that does not run it."""

from __future__ import annotations

import pickle
import sys
from types import ModuleType

import cloudpickle
import pytest

from holdfast.secrecy import private_channel
from holdfast.worker import script
from holdfast.worker.backend import BackendConfig
from holdfast.worker.shipping import pack


@pytest.fixture
def run(monkeypatch):
    """Runs a text as `__main__`, and gives its names."""

    def run(text):
        main = ModuleType("__main__")
        monkeypatch.setitem(sys.modules, "__main__", main)
        exec(compile(text, "<script>", "exec", dont_inherit=True), vars(main))
        return vars(main)

    return run


def test_what_the_function_reaches_has_its_place(run):
    names = run("class A: pass\nclass B: pass\nclass C: pass\ndef loop(config): return A\n")
    packed = pack(names["loop"], {"b": names["B"]()}, BackendConfig())
    script.stand_for(packed)
    function, config, _ = cloudpickle.loads(packed)
    main = sys.modules["__main__"]
    assert vars(main) is not names
    assert function.__globals__ is vars(main)
    assert (main.loop, main.A, main.B) == (function, function({}), type(config["b"]))
    assert not hasattr(main, "C")
    assert type(pickle.loads(pickle.dumps(config["b"]))) is names["B"]


def test_what_generic_classes_and_functions_are_generic_over_travels(run):
    names = run("""
from typing import Callable, Generic, ParamSpec, TypeVarTuple, Unpack
P = ParamSpec("P", covariant=True)
Ts = TypeVarTuple("Ts")
class Calls(Generic[P]): pass
class Rows(Generic[Unpack[Ts]]): pass
def loop(config, *args: P.args, **kwargs: P.kwargs) -> Callable[P, Rows[Unpack[Ts]]]: return Calls, Rows
""")
    packed = pack(names["loop"], None, BackendConfig())
    script.stand_for(packed)
    function, _, _ = cloudpickle.loads(packed)
    main, (calls, rows) = sys.modules["__main__"], function({})
    assert (calls.__parameters__, rows.__parameters__) == ((main.P,), (main.Ts,))
    assert function.__annotations__["args"].__origin__ is main.P
    assert main.P is not names["P"]
    assert (main.P.__name__, main.P.__module__, main.P.__covariant__) == ("P", "__main__", True)
    # As a worker's returned value does.
    assert pickle.loads(cloudpickle.dumps(calls[int])).__origin__.__parameters__ == (main.P,)


def test_a_class_that_another_has_taken_the_place_of_gets_none(run):
    names = run("class A: old = True\nfirst = A()\nclass A: old = False\ndef loop(config): return A.old\n")
    packed = pack(names["loop"], {"first": names["first"]}, BackendConfig())
    script.stand_for(packed)
    function, config, _ = cloudpickle.loads(packed)
    assert (function({}), config["first"].old) == (False, True)
    assert sys.modules["__main__"].A.old is False


def test_a_name_that_is_not_reached_is_told_of(run):
    names = run("def loop(): return None\n")
    script.stand_for(pack(names["loop"], None, BackendConfig()))
    with pytest.raises(
        AttributeError, match=r"'Missing' on <the script's __main__, as far as the training function reaches it>"
    ):
        pickle.loads(b"\x80\x04c__main__\nMissing\n.")


def test_a_process_that_is_started_afresh_rebuilds_the_names_when_it_is_asked(run):
    names = run("class A: pass\ndef loop(): return A\n")
    packed = pack(names["loop"], None, BackendConfig())
    script.stand_for(packed)
    with private_channel():  # as multiprocessing does, which tells so
        sent = pickle.dumps(sys.modules["__main__"].__spec__.name)
    script.stand_for(b"")
    assert pickle.loads(sent) == "holdfast.worker.stand_in"
    with pytest.raises(AttributeError):
        script.find("__path__")
    assert "A" not in vars(sys.modules["__main__"])
    assert script.find("A").__name__ == "A"
    with pytest.raises(AttributeError, match="reaches no 'B' of the script"):
        script.find("B")


def test_what_may_hold_secrets_goes_to_processes_alone(run):
    names = run("def loop(): return 'secret'\n")
    packed = pack(names["loop"], None, BackendConfig())
    script.stand_for(packed)
    assert b"secret" in packed
    assert b"secret" not in pickle.dumps(sys.modules["__main__"].__spec__.name)


def test_the_stand_in_is_imported_by_nobody():
    # Python warns where a module is run that is imported already.
    assert "holdfast.worker.stand_in" not in sys.modules
