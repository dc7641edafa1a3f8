"""A training loop whose steps are timed while something runs beside it."""

import math
import statistics
import time

import torch

_QUIET_S = 2.5


class Training:
    """A small model on random data; a step takes 10 to 20 ms on one thread, and is all that the loop does."""

    def __init__(self):
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self._model = torch.nn.Sequential(torch.nn.Linear(512, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 512))
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=1e-3, momentum=0.9)
        self._inputs = torch.randn(192, 512)
        self.quiet_s()

    def quiet_s(self):
        """Seconds of each step while nothing runs beside it."""
        until = time.perf_counter() + _QUIET_S
        return [seconds for _, seconds in self._steps(lambda: time.perf_counter() >= until)]

    def beside(self, start, is_over, *, ended=None, rest):
        """What steps take beside something that was started, against those just before and just after it.

        Args:
            start: Begins it, and returns when training may go on.
            is_over: Asked after each step.
            ended: The time at which it was over in truth, where `is_over` tells so later.
            rest: Waits until nothing is left of it.
        """
        quiet = self.quiet_s()
        begin = time.time()
        start()
        call_s = time.time() - begin
        steps = self._steps(is_over)
        end = ended() if ended is not None else math.inf
        busy = [seconds for at, seconds in steps if at < end]
        rest()
        step_s = statistics.fmean([*quiet, *self.quiet_s()])
        return {
            "step_s": step_s,
            "ratio": statistics.fmean(busy) / step_s,
            "lost_s": sum(busy) - len(busy) * step_s,
            "call_s": call_s,
            "beside_s": sum(busy),
        }

    def _steps(self, is_over):
        times = []
        while True:
            at, begin = time.time(), time.perf_counter()
            self._step()
            times.append((at, time.perf_counter() - begin))
            if is_over():
                return times

    def _step(self):
        loss = (self._model(self._inputs) - self._inputs).square().mean()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
