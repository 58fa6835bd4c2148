"""SIGTERM and Ctrl-C while training: the step is finished and saved, then training stops."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption(TrainerCallback):
    """Turns the first signal into a save at the end of the step; the second one does what it always did.

    As a context it holds the signals, as a callback it acts on them. Several processes decide together: one that stops
    alone would leave the others waiting for ever. They ask each other at the end of each step and read the answer at
    the end of the next, on a channel of its own, so that no device waits.

    Attributes:
        signum (`int`, *optional*): the signal that came, here or in another process.
        acted (`bool`): whether training was stopped for it.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.acted = False
        self._owner = 0
        self._previous: dict[int, Any] = {}
        self._group: Any = None
        self._asked: tuple[torch.Tensor, Any] | None = None

    def __enter__(self) -> "Interruption":
        self.signum, self.acted, self._owner = None, False, os.getpid()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo")
        for signum in _SIGNALS:
            if signal.getsignal(signum) not in (signal.SIG_IGN, None):
                try:
                    self._previous[signum] = signal.signal(signum, self._handle)
                except ValueError:  # not the main thread, which keeps its signals
                    break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        if self._group is not None and kind is None:
            if self._asked is not None:
                self._asked[1].wait()
            dist.destroy_process_group(self._group)
        self._group = self._asked = None

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a worker that was forked
            return
        if self.signum is None:
            self.signum = signum
            name = signal.Signals(signum).name
            os.write(2, f"\n{name}: saving at the end of this step; once more stops at once.\n".encode())
        else:
            self._restore()
            signal.raise_signal(signum)

    def came(self, wait: bool = False) -> bool:
        """Whether any process was told to stop: the answer to what was asked before or, with `wait`, now."""
        if self._group is None:
            return self.signum is not None
        answered = self._answer()
        self._asked = self._ask()
        return self._answer() if wait and not answered else answered

    def _ask(self) -> tuple[torch.Tensor, Any]:
        flag = torch.tensor(self.signum or 0)
        return flag, dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def _answer(self) -> bool:
        if self._asked is None:
            return False
        flag, work = self._asked
        work.wait()
        self._asked = None
        self.signum = self.signum or int(flag) or None
        return int(flag) > 0

    def _stop(self, args: Any, control: Any) -> None:
        # Nothing is evaluated any more, unless the choice of the best checkpoint hangs on it.
        control.should_evaluate = control.should_evaluate and args.metric_for_best_model is not None
        control.should_save = control.should_training_stop = self.acted = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.came():
            self._stop(args, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # What was saved at the end of the step is the last word, unless an epoch that ended is yet to be judged.
        if self.acted and (args.metric_for_best_model is None or not float(state.epoch).is_integer()):
            control.should_evaluate = control.should_save = False


def keep_worker_through_signals(worker_id: int, initialize: Any = None) -> None:
    """For `worker_init_fn`: a signal to the whole group does not take the DataLoader's workers from the run.

    SIGTERM counts from the second one on, which is how the DataLoader ends a worker that hangs.
    """
    if initialize is not None:
        initialize(worker_id)

    def let_the_first_pass(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, let_the_first_pass)
