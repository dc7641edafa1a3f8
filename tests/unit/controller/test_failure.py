from __future__ import annotations

import traceback

import cloudpickle
import pytest

from holdfast.controller.failure import WorkerError, by_cause, from_failed, in_full, mistakes_in, summarise
from holdfast.errors import (
    ConfigurationError,
    MetricsError,
    StateError,
    StorageAccessError,
    StorageError,
    WorkerDiedError,
    WorkerStartError,
)
from holdfast.worker import protocol


def _failed(error: Exception, *, travels: bool = True) -> protocol.Failed:
    try:
        raise error
    except Exception as raised:
        text = traceback.format_exc()
        summary = "".join(traceback.format_exception_only(raised)).strip()
        data = cloudpickle.dumps(raised.with_traceback(None)) if travels else None
    return protocol.Failed(data, summary, text, False)


def test_an_error_says_what_it_says_once_and_where_it_was_raised() -> None:
    error = ValueError("no such luck\nat all")
    error.add_note("a hint")
    told = in_full(from_failed(1, _failed(error)))
    assert told.startswith("ValueError: no such luck\nat all\na hint\non rank 1:\nTraceback (most recent call last):\n")
    assert told.count("no such luck") == 1
    assert "in _failed" in told


def test_the_causes_of_an_error_are_told_too() -> None:
    try:
        try:
            raise KeyError("the cause")
        except KeyError as cause:
            raise ValueError("the effect") from cause
    except ValueError as error:
        told = in_full(from_failed(0, _failed(error)))
    assert told.count("the effect") == 2  # once as a line of the source
    assert "KeyError: 'the cause'" in told


def test_a_group_of_errors_is_told_whole() -> None:
    told = in_full(from_failed(0, _failed(ExceptionGroup("several", [ValueError("one"), ValueError("two")]))))
    assert "ValueError: one" in told
    assert "ValueError: two" in told


def test_an_error_that_cannot_travel_is_told_by_its_text() -> None:
    error = from_failed(0, _failed(ValueError("it holds a lock"), travels=False))
    assert isinstance(error, WorkerError)
    assert str(error) == "ValueError: it holds a lock"
    assert "in _failed" in in_full(error)


def test_what_ranks_say_alike_is_said_once() -> None:
    failures = {0: ValueError("same"), 1: KeyError("other"), 3: ValueError("same"), 2: WorkerDiedError("rank 2 died")}
    assert summarise(failures) == "ranks 0 and 3: ValueError: same; rank 1: KeyError: 'other'; rank 2 died"
    first = dict(reversed(failures.items()))
    assert summarise(first) == "rank 2 died; ranks 0 and 3: ValueError: same; rank 1: KeyError: 'other'"
    long = "x" * 300
    assert summarise({0: ValueError(long), 1: ValueError(long)}) == f"ranks 0 and 1: ValueError: {long}"
    assert len(summarise({0: ValueError("short"), 1: ValueError(long)})) < 200


def test_where_the_first_line_only_shows_a_value_the_last_says_what_is_wrong_with_it() -> None:
    shown = ValueError("Attempt to convert a value (PerReplica:{\n  0: [[0.5]]\n}) with an unsupported type")
    assert summarise({0: shown}).endswith("a value (PerReplica:{ … }) with an unsupported type")
    assert summarise({0: ValueError("whole\nmore of it")}) == "rank 0: ValueError: whole"


GLOO = "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] "


def test_a_connection_that_was_lost_is_told_after_what_it_was_lost_by() -> None:
    lost = RuntimeError(f"{GLOO}Read error [127.0.0.1]:1234: Connection reset by peer\nmore")
    also = RuntimeError(f"{GLOO}Connection closed by peer [127.0.0.1]:5678")
    killed = WorkerDiedError("rank 2 was killed by SIGKILL")
    assert summarise({0: lost, 2: killed}) == (
        "rank 2 was killed by SIGKILL; rank 0 then lost its connection "
        "(RuntimeError: Read error [127.0.0.1]:1234: Connection reset by peer)"
    )
    assert summarise({0: also, 1: lost, 2: ValueError("no luck")}) == (
        "rank 2: ValueError: no luck; ranks 0 and 1 then lost their connections "
        "(RuntimeError: Connection closed by peer [127.0.0.1]:5678)"
    )
    assert by_cause({0: lost, 2: killed, 1: ValueError("no luck")}) == [2, 1, 0]
    # By then the attempt was ending: a watchdog of its collectives, say.
    assert by_cause({0: lost, 1: ValueError("no luck"), 2: killed}) == [1, 0, 2]
    # The cause itself was not seen.
    assert summarise({0: also}) == "rank 0: RuntimeError: Connection closed by peer [127.0.0.1]:5678"
    assert summarise({0: RuntimeError("[rank 3] is late")}) == "rank 0: RuntimeError: [rank 3] is late"


def test_a_lost_connection_follows_from_what_another_rank_failed_of() -> None:
    lost = RuntimeError(f"{GLOO}Read error [127.0.0.1]:1: Connection reset by peer")
    assert summarise({0: lost, 1: ValueError("\nno")}).startswith(
        "rank 1: ValueError: no; rank 0 then lost its connection"
    )
    # Where all have lost one, nobody's is known to be the cause.
    assert summarise({0: lost, 1: lost}).startswith("ranks 0 and 1: RuntimeError: Read error")


def _error_of(kind: str, text: str) -> Exception:
    module, _, name = kind.rpartition(".")
    error: Exception = type(name, (Exception,), {"__module__": module})(text)
    return error


@pytest.mark.parametrize(
    "lost",
    [
        RuntimeError(f"{GLOO}Connection closed by peer [127.0.0.1]:64153. This is typically caused by a remote worker"),
        ValueError(
            "UNKNOWN: Gloo AllGather failed: [external/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"
        ),
        _error_of("torch.distributed.DistNetworkError", "Failed to recv, got 0 bytes. Connection was likely closed."),
        _error_of(
            "torch.distributed.DistBackendError",
            "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3690, remote process exited or there was a network "
            "error, NCCL version 2.21.5\nncclRemoteError: A call failed possibly due to a network error",
        ),
        _error_of("lightgbm.basic.LightGBMError", "Socket recv error, Connection reset by peer (code: 104)"),
        _error_of(
            "xgboost.core.XGBoostError",
            "[16:59:27] /__w/xgboost/xgboost/src/collective/result.cc:83: [comm_group.cc:125|16:59:27]:\n\n- Failed to connect to the "
            "tracker.\n- [socket.h:348|16:59:21]: Socket error. Connection refused",
        ),
        WorkerStartError(
            "rank 0 of 2 could not join the gloo process group at 127.0.0.1:1 (MASTER_ADDR, MASTER_PORT): Connection was likely closed"
        ),
        WorkerError("torch.distributed.DistNetworkError: sendBytes failed on SocketImpl(fd=5): Broken pipe"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_collectives_say_of_a_lost_connection_is_told_last(lost: Exception) -> None:
    assert by_cause({0: lost, 1: ValueError("no luck")}) == [1, 0]
    assert "; rank 0 then lost its connection (" in summarise({0: lost, 1: ValueError("no luck")})


@pytest.mark.parametrize(
    "own",
    [
        RuntimeError("Socket closed while reading s3://bucket/data"),
        ConnectionRefusedError("connection refused by db:5432"),
        _error_of("asyncpg.exceptions.ConnectionDoesNotExistError", "connection was closed in the middle of operation"),
        _error_of("lightgbm.basic.LightGBMError", "Could not open s3://bucket/data: connection reset"),
        _error_of("xgboost.core.XGBoostError", "[16:56:43] /xgboost/src/data/data.cc:1: Connection reset by hdfs"),
        WorkerError("RuntimeError: broken pipe to the tokenizer"),
        StorageError("Cannot read s3://bucket/data: connection closed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_connection_to_anything_else_is_a_failure_of_the_rank_itself(own: Exception) -> None:
    lost, said = RuntimeError(f"{GLOO}Connection closed by peer [127.0.0.1]:64153"), f"{type(own).__name__}: {own}"
    assert by_cause({0: own, 1: ValueError("no luck")}) == [0, 1]
    assert summarise({0: own, 1: ValueError("no luck")}) == f"rank 0: {said}; rank 1: ValueError: no luck"
    assert summarise({0: lost, 1: own}).startswith(f"rank 1: {said}; rank 0 then lost its connection")


def test_mistakes_in_the_program_are_told_from_all_else() -> None:
    mistakes = ConfigurationError("no such event"), MetricsError("is a set")
    lost = RuntimeError(f"{GLOO}Connection closed by peer")
    assert mistakes_in({0: mistakes[0]}) == {"no such event"}
    assert mistakes_in({0: lost, 1: mistakes[0], 2: mistakes[1]}) == {"no such event", "is a set"}
    assert mistakes_in({0: from_failed(0, _failed(mistakes[1]))}) == {"is a set"}
    assert not mistakes_in({0: lost})
    others = (
        StateError("does not fit"),
        StorageAccessError("no"),
        ValueError("the script's"),
        WorkerDiedError("rank 1 died"),
    )
    for other in others:
        assert not mistakes_in({0: mistakes[0], 1: other})
