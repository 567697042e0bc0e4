"""What a run has done so far: one small file per finished block beside the data, so that a killed run can go on.

A marker is written after the data that it stands for, whole or not at all; what it says is therefore never ahead of the
store. It carries a checksum of the data, so that going on can check and not merely trust.
"""

import contextlib
import errno
import fcntl
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from xreg import files

#: Folder of a run's records inside the result store.
FOLDER = "run"
#: Behind a URL no lock goes with a process. A run renews a lease every `RENEWED` seconds; one that has not been renewed
#: for `EXPIRED` seconds belongs to a run that is dead.
RENEWED, EXPIRED = 5.0, 30.0
#: What file systems without locks answer (Lustre that is mounted without them, some NFS); a lease serves there, too.
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


def _nothing() -> None:
    """Nothing to check: a lock on a file cannot be lost."""


@dataclass(frozen=True)
class Journal:
    """Records of one run under ``<store>/run``: its plan, markers of finished tasks, notes of failed ones."""

    root: str

    @classmethod
    def of(cls, store: str | Path) -> "Journal":
        """The journal of a result store."""
        return cls(f"{store}/{FOLDER}")

    # -- the plan ----------------------------------------------------------------------------------------------------

    def write_plan(self, plan: dict) -> None:
        """Record everything that must not change between a run and its continuation.

        Raises
        ------
        FileExistsError
            If there is a plan already.
        """
        files.create(f"{self.root}/plan.json", json.dumps(plan).encode())

    def plan(self) -> dict:
        """The recorded plan.

        Raises
        ------
        ValueError
            If there is none: the folder was not left by a run.
        """
        try:
            return json.loads(files.read(f"{self.root}/plan.json"))
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            msg = (f"{self._store} holds no plan of an interrupted run ({type(error).__name__}); "
                   "delete it and run without --resume.")
            raise ValueError(msg) from error

    def has_plan(self) -> bool:
        """Whether a run has been here."""
        return "plan.json" in files.names(self.root)

    @property
    def _store(self) -> str:
        return self.root.removesuffix(f"/{FOLDER}")

    # -- markers -----------------------------------------------------------------------------------------------------

    def done(self, stage: str, key: str) -> dict | None:
        """What the marker of a finished task says, or None where the task is not finished."""
        try:
            return json.loads(files.read(self._place("done", stage, key)))
        except (FileNotFoundError, ValueError):
            return None

    def any_done(self, stage: str) -> bool:
        """Whether at least one task of a stage is finished."""
        return bool(files.names(f"{self.root}/done/{stage}"))

    def all_done(self, stage: str) -> dict[str, dict]:
        """All markers of a stage by key."""
        keys = [name.removesuffix(".json") for name in files.names(f"{self.root}/done/{stage}")]
        found = {key: self.done(stage, key) for key in keys}
        return {key: info for key, info in found.items() if info is not None}

    def mark(self, stage: str, key: str, info: dict) -> None:
        """Record that a task is finished; call it after its data are written."""
        files.write(self._place("done", stage, key), json.dumps(info).encode())
        files.remove(self._place("failed", stage, key))

    def unmark(self, stage: str, key: str) -> None:
        """Drop one marker, if it is there."""
        files.remove(self._place("done", stage, key))

    def forget(self, stage: str) -> None:
        """Drop the markers and notes of a stage, so that it is done again."""
        for folder in (f"{self.root}/done/{stage}", f"{self.root}/failed/{stage}"):
            for name in files.names(folder):
                files.remove(f"{folder}/{name}")

    def _place(self, folder: str, stage: str, key: str) -> str:
        return f"{self.root}/{folder}/{stage}/{key}.json"

    # -- failures ----------------------------------------------------------------------------------------------------

    def fail(self, stage: str, key: str, reason: str) -> None:
        """Record that a task failed for good, and why; the run goes on without it."""
        files.write(self._place("failed", stage, key), json.dumps({"reason": reason}).encode())

    def failed(self, stage: str) -> dict[str, str]:
        """Reasons of all failed tasks of a stage by key."""
        keys = [name.removesuffix(".json") for name in files.names(f"{self.root}/failed/{stage}")]
        return {key: json.loads(files.read(self._place("failed", stage, key)))["reason"] for key in keys}

    # -- one run at a time -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self) -> Iterator[Callable[[], None]]:
        """Hold the run's folder; gives a function that raises once it is no longer held.

        On a disk the lock goes with the process, however that ends. Behind a URL, and on a disk without locks, it is a
        lease, and taking up what a killed run has left begins with waiting until its lease has expired.

        Raises
        ------
        ValueError
            If another process holds it.
        """
        with self._lease() if files.is_url(self.root) else self._file_lock() as check:
            yield check

    def _refuse(self) -> ValueError:
        return ValueError(f"another run is writing {self._store}; wait for it or stop it.")

    @contextlib.contextmanager
    def _file_lock(self) -> Iterator[Callable[[], None]]:
        with contextlib.ExitStack() as stack:
            file, check = stack.enter_context(open(Path(self.root, "lock"), "w")), _nothing
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise self._refuse() from error
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                check = stack.enter_context(self._lease())
            yield check

    @contextlib.contextmanager
    def _lease(self) -> Iterator[Callable[[], None]]:
        """Leases are numbered; the highest number is the holder's, and only one process can create each number."""
        number, ended = self._latest() + 1, threading.Event()
        if number and self._is_renewed(number - 1):
            raise self._refuse()
        own = self._lease_file(number)
        try:
            files.create(own, uuid.uuid4().hex.encode())
        except FileExistsError as error:
            raise self._refuse() from error

        def renew() -> None:
            while not ended.wait(RENEWED):
                # A connection that fails for a while is tried again; if it fails for long, others may take over.
                with contextlib.suppress(OSError):
                    if self._latest() > number:
                        return
                    files.write(own, uuid.uuid4().hex.encode())

        def check() -> None:
            if not renewing.is_alive():
                raise self._refuse()

        renewing = threading.Thread(target=renew, daemon=True, name="xreg-lease")
        renewing.start()
        try:
            yield check
        finally:
            ended.set()
            renewing.join()
            files.write(own, b"")

    def _latest(self) -> int:
        """Number of the last lease, -1 where there has been none."""
        return max((int(name) for name in files.names(f"{self.root}/lease")), default=-1)

    def _is_renewed(self, number: int) -> bool:
        """Whether a lease is renewed while one watches; clocks of several machines are never compared."""
        seen = files.read(self._lease_file(number))
        if not seen:
            return False
        waited = threading.Event()
        for _ in range(int(EXPIRED / RENEWED)):
            waited.wait(RENEWED)
            if files.read(self._lease_file(number)) != seen:
                return True
        return False

    def _lease_file(self, number: int) -> str:
        return f"{self.root}/lease/{number}"
