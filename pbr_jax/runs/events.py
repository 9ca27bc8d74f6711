"""TensorBoard's event files, written by ourselves: a record is on disk or it is not there.

tensorboardX writes them on a thread, behind a queue of ten. That thread ends at the first fault of
the disk, and whoever adds to a full queue then waits for ever. Here an event is written where it is
made, in microseconds, and a fault is an `OSError` of that event alone.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pbr_jax.files import Appended
from pbr_jax.training.loop import Observer
from pbr_jax.training.state import TrainState


class Events(Observer):
    """Appends what is logged and evaluated to a new event file in `workdir`.

    TensorBoard hides what earlier files have after `resume_step`; None hides all of it.
    """

    def __init__(self, workdir: Path, resume_step: int | None = None):
        # tensorboardX takes a while to import and only training needs it.
        from tensorboardX.proto import event_pb2

        self._proto = event_pb2
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = Appended(workdir / name)
        self._add(file_version="brain.Event:2")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(step=0 if resume_step is None else resume_step + 1, session_log=start)

    def logged(self, line: dict[str, float]) -> None:
        self.write(line, "train")

    def evaluated(
        self, step: int, state: TrainState, test: dict[str, float], improved: bool
    ) -> None:
        self.write({"step": step, **test}, "test")

    def write(self, metrics: Mapping[str, float], split: str) -> None:
        """Appends one event with all `metrics` but `step`, as `split/name`."""
        step = int(metrics["step"])
        scalars = {f"{split}/{name}": x for name, x in metrics.items() if name != "step"}
        values = [{"tag": tag, "simple_value": x} for tag, x in scalars.items()]
        self._add(step=step, summary={"value": values})

    def close(self) -> None:
        self._file.close()

    def _add(self, **fields: Any) -> None:
        from tensorboardX.record_writer import masked_crc32c

        # A record of TFRecord: length, its checksum, content, its checksum.
        content = self._proto.Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(content))
        sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, content))
        self._file.append(length + next(sums) + content + next(sums))
