"""What a worker and its controller say to each other.

The controller answers every call of a worker exactly once. Each call has a number, and its answer has the same: an interrupt may leave an
answer that nobody waits for, and some calls are answered sooner than others. Frames are a 4-byte little-endian length, in answers the
4-byte number, and a MessagePack body. Metrics travel as stored JSON that nobody on the way decodes.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from holdfast.records import StagedShard
from holdfast.signatures import Keywords

HEADER: Final = struct.Struct("<I")
ANSWER_HEADER: Final = struct.Struct("<II")
MAX_FRAME_BYTES: Final = 2**32 - 1
_MOST_CALLS: Final = 2**32 - 1


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all messages."""


class Call(Message, frozen=True, kw_only=True):
    """Base of what is answered.

    Attributes:
        number: Of the call, among those of its worker.
    """

    number: int = 0


class ValidationTask(msgspec.Struct, frozen=True, array_like=True):
    """How a checkpoint is to be validated; what is None is as the trainer's `ValidationConfig` says.

    Attributes:
        arguments: cloudpickle of the function's keyword arguments.
        timeout_s: Seconds it may take.
    """

    arguments: bytes | None = None
    timeout_s: float | None = None


class ValidationTerms(msgspec.Struct, frozen=True, array_like=True):
    """What the trainer's `ValidationConfig` takes.

    Attributes:
        keywords: The arguments that its function takes.
        given: The names of those that it is given where the report gives none.
    """

    keywords: Keywords
    given: list[str]


class AdmissionCall(Call, frozen=True):
    """The worker looks at the files of a report that is to return before its checkpoint is stored.

    Answered meanwhile, so that the report need not wait for its own answer. It promises nothing of the worker's: it may never make
    that report.

    Attributes:
        index: Of the report that is to come.
    """

    index: int


class ReportCall(Call, frozen=True):
    """The worker is in `report`.

    Attributes:
        index: The run-wide report index that it counts.
        metrics: Stored JSON.
        shard: What to store, or None for metrics alone.
        name: The checkpoint's directory name where the user chose one.
        in_place: The shard lies at its final place already and is only registered.
        waits: The answer comes once the report is complete and committed; else as soon as the node has room for it.
        brings_state: Of a rank that saved its part of a state of all ranks, whether this shard is it; else None.
        validation: Its checkpoint is to be validated.
        admitted: It was admitted, and returns before its answer has come.
        ignores_checkpoint: The attempt begins with a checkpoint, and the function has neither asked for one nor read one of this run.
    """

    index: int
    metrics: bytes
    shard: StagedShard | None = None
    name: str | None = None
    in_place: bool = False
    waits: bool = True
    brings_state: bool | None = None
    validation: ValidationTask | None = None
    admitted: bool = False
    ignores_checkpoint: bool = False

    @property
    def hands_over(self) -> bool:
        """Whether the shard's files follow, open, on the socket for them."""
        return self.shard is not None and not self.in_place and not self.waits


class Files(Message, frozen=True):
    """Open files of a shard; the descriptors come with the frame.

    Attributes:
        index: The report's index.
        first: Which of the shard's regular files the first one is.
        count: How many they are.
    """

    index: int
    first: int
    count: int


class Abandoned(Message, frozen=True):
    """The worker could not hand over the rest of a shard."""

    index: int
    kind: str
    text: str


class Settled(Message, frozen=True):
    """The node tells what became of a checkpoint that was handed over: its name, or why there is none."""

    index: int
    checkpoint: str | None
    kind: str = ""
    text: str = ""


class BarrierCall(Call, frozen=True):
    """The worker is in `collective.barrier`."""


class BroadcastCall(Call, frozen=True):
    """The worker is in `collective.broadcast_from_rank_zero`; rank 0 brings the data (cloudpickle)."""

    data: bytes | None


class PreemptionCall(Call, frozen=True):
    """The worker is in `get_preemption_info`, which is a barrier."""


class CheckpointsCall(Call, frozen=True):
    """The worker asks for the committed checkpoints.

    Attributes:
        before: Once every report below this index is settled.
        timeout_s: How long that may take.
        validated: And the validations of their checkpoints have an outcome.
    """

    before: int = 0
    timeout_s: float | None = None
    validated: bool = False


class Finished(Message, frozen=True):
    """The function returned; the value as cloudpickle, or None where it cannot be pickled."""

    value: bytes | None


class Failed(Message, frozen=True):
    """The function raised.

    Attributes:
        exception: cloudpickle of the exception, or None where it cannot be pickled.
        summary: `Type: message`, for a person.
        traceback: The worker's own formatted traceback.
        interrupted: Ctrl-C ended it, in the user's own program (no workers): the run is to stop.
    """

    exception: bytes | None
    summary: str
    traceback: str
    interrupted: bool = False


class Proceed(Message, frozen=True):
    """The call is done.

    Attributes:
        checkpoint: What it committed.
        latest: The latest committed checkpoint as every rank sees it after this call, where that is news.
    """

    checkpoint: str | None = None
    latest: str | None = None


class Admission(Message, frozen=True):
    """Whether the report may return without waiting for its answer; otherwise it is made as any other."""

    admitted: bool


class Refused(Message, frozen=True):
    """The call raises, on the worker, the error class of that `kind`."""

    kind: str
    text: str


class Delivered(Message, frozen=True):
    """The data that rank 0 broadcast."""

    data: bytes


class ReportedEntry(Message, frozen=True):
    """One committed checkpoint, for `get_all_reported_checkpoints`; `validation` as in `records.Note`."""

    name: str
    metrics: bytes
    validation: str | None = None


class ReportedList(Message, frozen=True):
    """Every committed checkpoint, oldest first."""

    entries: list[ReportedEntry]


class PreemptionState(Message, frozen=True):
    """What the engine knows of nodes about to go; `deadline_ms` is None where there is no notice."""

    deadline_ms: int | None
    node_ranks: dict[str, list[int]]


class Job(Message, frozen=True):
    """All that a worker needs to begin.

    Attributes:
        payload: cloudpickle of `(function, config, backend)`.
        environment: The whole environment to run in.
        search_path: `sys.path`.
        argv: `sys.argv`.
        directory: Working directory.
        storage_url: The store's root (`storage_path`).
        run_url: The run's directory.
        storage: The store's root and the user's file system object, as `shipping.pack_storage` has them; it may hold secrets. Empty
            where the URL says all.
        checkpoint: Name of the committed checkpoint to resume from, verified by the driver.
        origin: Where there is none: the checkpoint of somewhere else to begin with, as `shipping.pack_checkpoint` has it; it may hold
            secrets. Empty where there is none either.
        first_report: The index of this attempt's first report.
        score_attribute: The metric that ranks checkpoints, to be checked where it is reported.
        validation: What a report's validation can be given; None where the trainer has no function for it.
        kept: Where the node has files of that checkpoint, by path; what they hold is to be compared with the manifest.
        staging: Where the node wants checkpoints written that are to be sent: on its disk, and in its memory where it has any for that.
            Empty where they are written into the run itself.
    """

    payload: bytes
    environment: dict[str, str]
    search_path: list[str]
    argv: list[str]
    directory: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    run_name: str
    storage_url: str
    run_url: str
    attempt: int
    checkpoint: str | None
    first_report: int
    score_attribute: str | None = None
    validation: ValidationTerms | None = None
    storage: bytes = b""
    kept: dict[str, str] = {}
    staging: list[str] = []
    origin: bytes = b""

    def __repr__(self) -> str:
        # The other fields hold secrets.
        return f"Job(run_name={self.run_name!r}, attempt={self.attempt}, rank={self.rank})"


Question = (
    ReportCall | AdmissionCall | BarrierCall | BroadcastCall | PreemptionCall | CheckpointsCall | Finished | Failed
)
Answer = Proceed | Admission | Refused | Delivered | ReportedList | PreemptionState | Job

_encoder = msgspec.msgpack.Encoder()
question_decoder: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
answer_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def body(message: Message) -> bytes:
    """A message as it travels, without its header.

    Raises:
        OverflowError: The message is larger than 4 GiB.
    """
    found = _encoder.encode(message)
    if len(found) > MAX_FRAME_BYTES:
        raise OverflowError(f"a message of {len(found)} bytes does not fit into one frame (4 GiB)")
    return found


def frame(message: Message) -> bytes:
    """The bytes of a message that answers nothing.

    Raises:
        OverflowError: The message is larger than 4 GiB.
    """
    found = body(message)
    return HEADER.pack(len(found)) + found


def answer(number: int, found: bytes) -> bytes:
    """The bytes of an answer.

    Args:
        number: Of the call.
        found: Its `body`, which several answers may have in common.
    """
    return ANSWER_HEADER.pack(len(found), number & _MOST_CALLS) + found
