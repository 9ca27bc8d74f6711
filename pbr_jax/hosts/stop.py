"""One step at which all processes of a job stop, whichever of them gets the signal."""

import signal
from collections.abc import Callable

from pbr_jax.hosts.job import Job

# After a step the loop waits for the step before. So another process may have asked after the step
# that follows the one of the first, and after no later one.
_AHEAD = 2


class AgreedStop:
    """Called after every step: whether the job stops at this one.

    Args:
      job: of this process.
      received: the signal that asks this process to stop, None without one.
      tell: called with the signal for which the job stops.
    """

    def __init__(
        self,
        job: Job,
        received: Callable[[], signal.Signals | None],
        tell: Callable[[signal.Signals], None],
    ) -> None:
        self._job, self._received, self._tell = job, received, tell
        self._asked = False
        self._at: int | None = None

    def __call__(self, step: int) -> bool:
        texts, own = self._job.texts, self._received()
        if texts is None:
            return own is not None
        if own is not None and not self._asked:
            self._asked = texts.put(f"stop/asked/{self._job.index}", own.name)
        if self._at is None:
            if self._job.first and (asked := texts.under("stop/asked")):
                texts.put("stop/at/step", f"{step + _AHEAD} {next(iter(asked.values()))}")
            # One short question to the first process; the device computes meanwhile.
            if found := texts.under("stop/at"):
                at, name = found["step"].split()
                self._at = int(at)
                self._tell(signal.Signals[name])
        return step == self._at
