"""Early stopping that a resume does not begin anew: what each round has measured lies beside the model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.checkpoint import Checkpoint
from holdfast.errors import FormatError
from holdfast.worker.context import get_context

if TYPE_CHECKING:
    from lightgbm.callback import CallbackEnv

_LOG = logging.getLogger("holdfast")
_FILE = "early_stopping.json"


class Watch:
    """Asks LightGBM's own callback about each round, and after a resume about those before it first.

    So nothing has to be known of how it judges. What is kept of a round takes a few hundredths of the bytes of its trees.

    Args:
        judge: As `lightgbm.early_stopping` makes it.
    """

    def __init__(self, judge: Callable[[CallbackEnv], None]) -> None:
        self._judge = judge
        self._first = 0
        # Of each round since, for every metric: the data set's name, its own, and the value.
        self._rounds: list[list[tuple[str, str, float]]] = []

    def begin(self, env: CallbackEnv, checkpoint: Checkpoint | None) -> None:
        """Begins with a training's first round, or goes on with it.

        Args:
            checkpoint: What this training may go on from.

        Raises:
            EarlyStopException: It had stopped before the resume; the round that was trained since is taken away.
            FormatError: What the checkpoint remembers cannot be read.
        """
        self._first, self._rounds = env.begin_iteration, []
        if env.begin_iteration == 0 or checkpoint is None:
            return
        first, rounds = _remembered(checkpoint, env.begin_iteration)
        if not rounds or _names(rounds[-1]) != _names(env.evaluation_result_list or []):
            if get_context().get_world_rank() == 0:
                _LOG.warning(
                    "Early stopping begins anew: %s does not remember what was measured in the %d rounds that training goes on from",
                    checkpoint.path,
                    env.begin_iteration,
                )
            return
        from lightgbm.callback import EarlyStopException

        self._first = first
        try:
            for each in rounds:
                now = zip(env.evaluation_result_list, each, strict=True)
                self._ask(env, [_with(result, value) for result, (_, _, value) in now])
        except EarlyStopException:
            if env.model.current_iteration() > env.begin_iteration:
                env.model.rollback_one_iter()
            raise

    def stops(self, env: CallbackEnv) -> Exception | None:
        """Asks about the round; what it raises where training is to end."""
        from lightgbm.callback import EarlyStopException

        ended: Exception | None = None
        try:
            self._ask(env, env.evaluation_result_list)
        except EarlyStopException as stop:
            ended = stop
        return ended

    def write(self, directory: str, model: Any) -> None:
        """Puts what is remembered beside the model."""
        kept = {"first": self._first, "model": model.current_iteration(), "rounds": self._rounds}
        Path(directory, _FILE).write_text(json.dumps(kept))

    def _ask(self, env: CallbackEnv, results: Any) -> None:
        # Counted here: where no tree can be grown any more, a resumed training has a lower number for the same round.
        iteration = self._first + len(self._rounds)
        self._rounds.append([(data, metric, float(value)) for data, metric, value, *_ in results])
        self._judge(replace(env, iteration=iteration, begin_iteration=self._first, evaluation_result_list=results))


def _remembered(checkpoint: Checkpoint, num_rounds: int) -> tuple[int, list[Any]]:
    """Which round of a model of so many was the first that was judged, and what they measured; none where it does not say."""
    if all(file.path != _FILE for file in checkpoint.files()):
        return 0, []
    with checkpoint.open(_FILE) as file:
        data = file.read()
    try:
        kept = json.loads(data)
        return (kept["first"], kept["rounds"]) if kept["model"] == num_rounds else (0, [])
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{_FILE} of {checkpoint.path!r} does not say what was measured: {error!r}") from error


def _names(results: Any) -> list[tuple[str, str]]:
    return [(data, metric) for data, metric, *_ in results]


def _with(result: Any, value: float) -> Any:
    """A result with another value; up to LightGBM 4.6 they are plain tuples."""
    data, metric, _, *others = result
    fields = (data, metric, value, *others)
    return fields if type(result) is tuple else type(result)(*fields)
