"""An interrupt in a report: the rank's own count stays the controller's, which counts the reports that it has heard of."""

from __future__ import annotations

import contextlib
import os
import socket
import sys

import pytest

from holdfast import Checkpoint, CheckpointUploadMode, report
from holdfast.worker import channel, context, handover, protocol
from holdfast.worker.channel import Channel
from holdfast.worker.handover import Receiver

INSIDE = {sys.modules[report.__module__].__file__, channel.__file__, handover.__file__}
ASYNC, SYNC = CheckpointUploadMode.ASYNC, CheckpointUploadMode.SYNC


class EndedError(Exception):
    pass


class Controller:
    """The other end of a worker's sockets. It has answered a report before it is made."""

    def __init__(self, stack, mode):
        calls, self.calls, files, self.files = (stack.enter_context(end) for _ in "12" for end in socket.socketpair())
        self.calls.setblocking(False)
        self.files.setblocking(False)
        job = protocol.Job(
            payload=b"",
            environment={},
            search_path=[],
            argv=[],
            directory="",
            rank=0,
            world_size=1,
            local_rank=0,
            local_world_size=1,
            node_rank=0,
            run_name="run",
            storage_url="/nowhere",
            run_url="/nowhere/run",
            attempt=1,
            checkpoint=None,
            first_report=1,
        )
        self.worker = context.WorkerState(job, Channel(calls), files)
        context.enter(self.worker)
        stack.callback(context.leave)
        answers = [protocol.Admission(admitted=True)] if mode is ASYNC else []
        for number, answer in enumerate([*answers, protocol.Proceed()], 1):
            self.calls.send(protocol.answer(number, protocol.body(answer)))

    def reports(self):
        """The reports that it has heard of."""
        data, head = b"", protocol.HEADER.size
        with contextlib.suppress(BlockingIOError):
            data = self.calls.recv(1 << 20)
        while data:
            end = head + protocol.HEADER.unpack_from(data)[0]
            question, data = protocol.question_decoder.decode(data[head:end]), data[end:]
            if isinstance(question, protocol.ReportCall):
                yield question.index

    def handed_over(self):
        """The reports whose files have come, or never will."""
        for message, descriptors in Receiver(self.files).receive():
            for descriptor in descriptors:
                os.close(descriptor)
            yield message.index


def interrupt(number):
    """Raises before the `number`th of Python's instructions in the code of a report, as a signal's handler may."""

    def trace(frame, event, _):
        nonlocal number
        if frame.f_code.co_filename not in INSIDE:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            number -= 1
            if number < 0:
                raise EndedError
        return trace

    return trace


@pytest.mark.parametrize("metrics", [{}, {"text": "x" * (1 << 16)}], ids=["small", "large"])
@pytest.mark.parametrize("mode", [SYNC, ASYNC])
def test_a_report_counts_where_it_was_made_and_its_files_are_told_of(tmp_path, mode, metrics):
    (tmp_path / "model").write_text("weights")
    outcomes, number, before = set(), 0, sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 traces none where none was wanted before
    while "made" not in outcomes:
        with contextlib.ExitStack() as stack:
            controller = Controller(stack, mode)
            sys.settrace(interrupt(number))
            try:
                report(
                    metrics,
                    Checkpoint(tmp_path),
                    checkpoint_upload_mode=mode,
                    delete_local_checkpoint_after_upload=False,
                )
                outcomes.add("made")
            except EndedError:
                pass
            finally:
                sys.settrace(before)
            made = list(controller.reports())
            outcomes.add(len(made))
            assert controller.worker.next_report == 1 + len(made), number
            if mode is ASYNC:
                assert set(controller.handed_over()) == set(made), number
            number += 1
    assert outcomes == {0, 1, "made"}
