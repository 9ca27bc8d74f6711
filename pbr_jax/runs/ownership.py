"""The right to write into a folder: one process has it at a time.

`run.lock` in the folder is locked by `flock` for as long as the process lives. The kernel takes
such a lock back however the process ends, and NFS hands it to its server, so that other hosts see
it. A file that only has to exist would outlive a killed job, and stop the job that is queued to go
on where that one was, on another host perhaps, where its pid says nothing.

The file says who has the lock: pid, host and since when; and, since pids come again, the boot of
that host and the start of that process. Where a file system knows no locks this content decides.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import NamedTuple, Self, get_type_hints

from pbr_jax.training.loop import Observer

LOCK = "run.lock"
_SEEN = 10.0  # seconds until other hosts see a new file, as NFS may take
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_ADVICE = {
    errno.EACCES: "make it writable for you, or ",
    errno.EPERM: "make it writable for you, or ",
    errno.ENOSPC: "free some space, or ",
    errno.EDQUOT: "free some space, or ",
    errno.ENOENT: "the current directory was removed: change to one that is there, or ",
    errno.ENOTDIR: "a file is in its way: ",
}


class Owned(RuntimeError):
    """Another process writes into the folder; says which, since when, and what to do."""


class Gone(RuntimeError):
    """The folder was removed, moved or replaced while this process was writing into it."""


class Unusable(ValueError):
    """A folder that cannot be made or written into; says why and what to do."""


class Owner(NamedTuple):
    """A process, told apart from every other one."""

    pid: int
    host: str
    since: str  # when it took the lock, local time
    boot: str  # of its host; "" where that is not known
    started: int  # when it started, in ticks since that boot; 0 where that is not known

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def has_ended(self) -> bool:
        """Whether this is certain: the processes of other hosts cannot be seen."""
        if self.host != socket.gethostname():
            return False
        return self.boot != _boot() or self.started != _started(self.pid)


class Guest(Observer, contextlib.AbstractContextManager["Guest", None]):
    """A process that works in a folder which the first process of its job owns."""

    mark = ""

    def __init__(self, folder: Path) -> None:
        self.folder, self.notes = folder, list[str]()

    def __exit__(self, *error: object) -> None:
        """Nothing was taken."""

    def check(self) -> None:
        """The owner checks."""

    def check_shared(self, mark: str) -> None:
        """Raises `Unusable` if the folder is not the one in which the owner left this `mark`."""
        lock, until = self.folder / LOCK, time.monotonic() + _SEEN
        while not (lock.is_file() and lock.read_text() == mark):
            if time.monotonic() > until:
                raise Unusable(
                    f"{self.folder.absolute()}: is another folder than that of the first process,"
                    " which all processes of a job must see under one path; take a --workdir on a"
                    " file system that they share, the same for all"
                )
            time.sleep(0.1)


class Ownership(Observer, contextlib.AbstractContextManager["Ownership", None]):
    """Makes a folder and owns it inside the context; what it made and nobody filled goes again.

    As an observer of a run it ends the run when the folder is no longer there.

    Raises:
      Owned: another process owns the folder; nothing was touched.
      Unusable: it cannot be made, or not written to.
    """

    def __init__(self, folder: Path, flag: str = "--workdir") -> None:
        self.folder, self.flag = folder, flag  # the flag that names another folder
        self.notes: list[str] = []  # on a lock that was left behind
        self._made: list[Path] = []  # folders, the deepest last
        self.mark = ""  # what the lock says
        self._lock = -1  # the lock's file descriptor
        self._identity = (0, 0)  # of the folder

    def __enter__(self) -> Self:
        try:
            self._make()
            self._lock = self._take()
            self._identity = _identity(self.folder)
        except BaseException as error:
            self._unmake()
            if isinstance(error, OSError):
                raise Unusable(self._unusable(error)) from error
            raise
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            if _same(self.folder / LOCK, self._lock):
                (self.folder / LOCK).unlink()
        self._release()
        self._unmake()

    def check_shared(self, mark: str) -> None:
        """The mark is its own."""

    def check(self) -> None:
        """Raises `Gone` if the folder is not the one that was taken, `Owned` if another took it."""
        try:
            there = _identity(self.folder) == self._identity
        except (FileNotFoundError, NotADirectoryError):
            there = False
        if not there:
            raise Gone(
                f"{self.folder} was removed or moved while this process was writing into it\n"
                f"It ends here. If the folder was moved, the same command with its new {self.flag}"
                " goes on from its last checkpoint."
            )
        # Without its lock, which somebody removed, the folder may have another owner by now.
        if not _same(self.folder / LOCK, self._lock):
            self._release()
            self._lock = self._take()

    def logged(self, line: dict[str, float]) -> None:
        self.check()

    def _make(self) -> None:
        folder = self.folder.absolute()  # which fails where the current directory was removed
        missing = [p for p in (folder, *folder.parents) if not os.path.lexists(p)]
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            self._made.append(path)
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def _unmake(self) -> None:
        for path in reversed(self._made):
            with contextlib.suppress(OSError):  # it is in use
                path.rmdir()

    def _take(self) -> int:
        """Locks the file and writes into it whose it is; returns its descriptor."""
        path = self.folder / LOCK
        while True:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                left = self._claim(lock)
                # Between opening and locking, its owner may have ended and removed it.
                if _same(path, lock):
                    os.ftruncate(lock, 0)
                    self.mark = json.dumps(_this_process()._asdict()) + "\n"
                    os.pwrite(lock, self.mark.encode(), 0)
                    self.notes += [f"{path} was left by {left}, which has ended"] if left else []
                    return lock
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)

    def _release(self) -> None:
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def _claim(self, lock: int) -> Owner | None:
        """Takes the lock or raises `Owned`; returns who left it behind."""
        owner = _read(lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Owned(self._in_use(owner, "")) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            # Without locks only the content speaks, and on other hosts processes cannot be seen.
            if owner is not None and not owner.has_ended:
                hint = f"; if that process has ended, delete {self.folder / LOCK}"
                raise Owned(self._in_use(owner, hint)) from error
        return owner

    def _unusable(self, error: OSError) -> str:
        why, advice = error.strerror or str(error), _ADVICE.get(error.errno or 0, "")
        return f"{self.folder}: cannot be written into ({why}); {advice}take another {self.flag}"

    def _in_use(self, owner: Owner | None, hint: str) -> str:
        who = "another process" if owner is None else str(owner)
        return (
            f"{self.folder} is in use: {who} writes into it\n"
            f"Wait until it ends, stop it (it saves first), or take another {self.flag}{hint}."
        )


def _this_process() -> Owner:
    since, pid = time.strftime("%Y-%m-%d %H:%M:%S"), os.getpid()
    return Owner(pid, socket.gethostname(), since, _boot(), _started(pid) or 0)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # only Linux says it
        return ""


def _started(pid: int) -> int | None:
    """When a process of this host started, 0 where that is not known; None if there is none."""
    try:
        # Its name, in brackets, may hold anything; the start is the 20th field behind it.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except (OSError, OverflowError):
        pass  # somebody else's
    return 0


def _read(lock: int) -> Owner | None:
    """The owner that a lock names; None if it is new or does not say."""
    try:
        owner = Owner(**json.loads(os.pread(lock, 4096, 0)))
    except (ValueError, TypeError):
        return None
    kinds = get_type_hints(Owner)
    return owner if all(type(getattr(owner, name)) is kinds[name] for name in kinds) else None


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _same(path: Path, lock: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(lock))
    except OSError:
        return False
