"""TensorBoard: an event file below a directory."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.controller.callbacks import RunContext
from holdfast.errors import ConfigurationError
from holdfast.tracking.callback import TrackerCallback
from holdfast.tracking.entry import Entry, Scalar
from holdfast.tracking.tracker import Ending, Tracker, import_library


class TensorBoardCallback(TrackerCallback):
    """Writes event files for TensorBoard: `tensorboard --logdir LOG_DIR`.

    Each run has a directory there, its name with the first letters of its id, so that a resumed run goes on in it. Where an attempt begins
    again at an earlier step, what lies at that step and after it is replaced. A checkpoint's path is a text under `checkpoint`, and the
    `train_loop_config` is on the HParams page.
    """

    name = "TensorBoard"

    def __init__(
        self,
        log_dir: str | os.PathLike[str] = "tensorboard",
        *,
        step: str | None = None,
        flush_timeout_s: float = 10.0,
    ) -> None:
        """Needs `pip install holdfast[tensorboard]`, and neither torch nor TensorFlow.

        Args:
            log_dir: Where the runs' directories lie, on this machine.
            step: As for `TrackerCallback`.
            flush_timeout_s: As for `TrackerCallback`.

        Raises:
            ConfigurationError: An argument cannot work.
            ImportError: TensorBoard is not installed.
        """
        super().__init__(step=step, flush_timeout_s=flush_timeout_s)
        if not isinstance(log_dir, str | os.PathLike) or "://" in str(log_dir):
            raise ConfigurationError(f"TensorBoardCallback: log_dir must be a local directory, not {log_dir!r}")
        for module in ("tensorboard.summary.writer.record_writer", "tensorboard.plugins.hparams.metadata"):
            import_library(module, "TensorBoardCallback", "tensorboard")
        self._log_dir = Path(log_dir).absolute()

    def open_tracker(self, run_context: RunContext, parameters: Mapping[str, Scalar]) -> Tracker:
        """Begins a new event file in the run's directory."""
        directory = self._log_dir / f"{run_context.name}-{run_context.run_id[:8]}"
        directory.mkdir(parents=True, exist_ok=True)
        return _EventFile(directory, parameters)


class _EventFile(Tracker):
    """Records of `tensorboard.compat.proto.event_pb2`, written here: the library's own writer imports TensorFlow where there is one,
    has a thread of its own, and its errors come out somewhere else.
    """

    def __init__(self, directory: Path, parameters: Mapping[str, Scalar]) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.hparams import metadata, plugin_data_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = event_pb2.Event
        self._session_start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._summary = summary_pb2.Summary
        self._metadata = summary_pb2.SummaryMetadata
        self._attempt: int | None = None
        self._records = io.BytesIO()
        self._writer = RecordWriter(self._records)
        self._write(self._event(wall_time=time.time(), file_version="brain.Event:2"))
        start = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
        for key, value in parameters.items():
            if isinstance(value, bool):
                start.hparams[key].bool_value = value
            elif isinstance(value, str):
                start.hparams[key].string_value = value
            else:
                start.hparams[key].number_value = value
        self._write(
            self._event_of(
                time.time(),
                0,
                tag=metadata.SESSION_START_INFO_TAG,
                metadata=metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_start_info=start)),
                tensor=metadata.NULL_TENSOR,
            )
        )
        # TensorBoard reads what has this in its name, in the order of the names.
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(directory / name, "xb", buffering=0)  # noqa: SIM115 - `finish` closes it, or what goes wrong
        self._flush()

    def log(self, entries: Sequence[Entry]) -> None:
        """Writes them.

        The first of an attempt begins a session: TensorBoard forgets what it has at its step and later ones, of all tags. Within an attempt
        a step that comes twice is no sign of that; two metrics may be reported by themselves there.
        """
        for entry in entries:
            if entry.attempt != self._attempt:
                self._attempt = entry.attempt
                self._write(self._event(wall_time=entry.time_s, step=entry.step, session_log=self._session_start))
            for name, number in entry.numbers.items():
                self._write(self._event_of(entry.time_s, entry.step, tag=name, simple_value=number))
            texts = {name: text for name, text in entry.metrics.items() if isinstance(text, str)}
            if entry.checkpoint is not None:
                texts["checkpoint"] = entry.checkpoint
            for name, text in texts.items():
                self._write(self._text(entry, name, text))
        self._flush()

    def finish(self, ending: Ending) -> None:
        """Closes the file."""
        self._file.close()

    def _text(self, entry: Entry, name: str, text: str) -> Any:
        from tensorboard.compat.proto import tensor_pb2, types_pb2

        plugin = self._metadata.PluginData(plugin_name="text")
        tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[text.encode()])
        return self._event_of(
            entry.time_s, entry.step, tag=name, metadata=self._metadata(plugin_data=plugin), tensor=tensor
        )

    def _event_of(self, time_s: float, step: int, **value: Any) -> Any:
        return self._event(wall_time=time_s, step=step, summary=self._summary(value=[self._summary.Value(**value)]))

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())

    def _flush(self) -> None:
        """Puts the records into the file.

        A full disk may leave a part of one there, behind which nobody reads: the file is closed, and what is opened anew is another, whose
        first session replaces what this one has of it.
        """
        try:
            rest = self._records.getvalue()
            while rest:
                rest = rest[self._file.write(rest) :]
        except BaseException:
            self._file.close()
            raise
        self._records.seek(0)
        self._records.truncate()
