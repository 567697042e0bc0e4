"""What a run has done so far, on disk: one small file per finished block, so that a killed run can go on.

A marker is written after the data that it stands for, under a temporary name, and renamed; what it says is therefore
never ahead of the store. It carries a checksum of the data, so that going on can check and not merely trust.
"""

import contextlib
import fcntl
import json
import os
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Folder of a run's records inside the result store.
FOLDER = "run"


@dataclass(frozen=True)
class Journal:
    """Records of one run under ``<store>/run``: its plan, markers of finished tasks, notes of failed ones."""

    root: str

    @classmethod
    def of(cls, store: str | Path) -> "Journal":
        """The journal of a result store."""
        return cls(str(Path(store) / FOLDER))

    # -- the plan ----------------------------------------------------------------------------------------------------

    def write_plan(self, plan: dict) -> None:
        """Record everything that must not change between a run and its continuation."""
        _write_json(Path(self.root, "plan.json"), plan)

    def plan(self) -> dict:
        """The recorded plan.

        Raises
        ------
        ValueError
            If there is none: the folder was not left by a run.
        """
        try:
            return json.loads(Path(self.root, "plan.json").read_text())
        except (OSError, ValueError) as error:
            msg = (f"{Path(self.root).parent} holds no plan of an interrupted run ({type(error).__name__}); "
                   "delete it and run without --resume.")
            raise ValueError(msg) from error

    # -- markers -----------------------------------------------------------------------------------------------------

    def done(self, stage: str, key: str) -> dict | None:
        """What the marker of a finished task says, or None where the task is not finished."""
        try:
            return json.loads(self._place(stage, key).read_text())
        except (OSError, ValueError):
            return None

    def all_done(self, stage: str) -> dict[str, dict]:
        """All markers of a stage by key."""
        names = sorted(Path(self.root, "done", stage).glob("*.json"))
        found = {p.stem: self.done(stage, p.stem) for p in names}
        return {key: info for key, info in found.items() if info is not None}

    def mark(self, stage: str, key: str, info: dict) -> None:
        """Record that a task is finished; call it after its data are written."""
        _write_json(self._place(stage, key), info)
        self._note(stage, key).unlink(missing_ok=True)

    def forget(self, stage: str) -> None:
        """Drop the markers and notes of a stage, so that it is done again."""
        for folder in ("done", "failed"):
            for place in Path(self.root, folder, stage).glob("*.json"):
                place.unlink()

    def _place(self, stage: str, key: str) -> Path:
        return Path(self.root, "done", stage, f"{key}.json")

    # -- failures ----------------------------------------------------------------------------------------------------

    def fail(self, stage: str, key: str, reason: str) -> None:
        """Record that a task failed for good, and why; the run goes on without it."""
        _write_json(self._note(stage, key), {"reason": reason})

    def failed(self, stage: str) -> dict[str, str]:
        """Reasons of all failed tasks of a stage by key."""
        names = sorted(Path(self.root, "failed", stage).glob("*.json"))
        return {p.stem: json.loads(p.read_text())["reason"] for p in names}

    def _note(self, stage: str, key: str) -> Path:
        return Path(self.root, "failed", stage, f"{key}.json")

    # -- one run at a time -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run's folder; the lock goes with the process, however that ends.

        Raises
        ------
        ValueError
            If another process holds it.
        """
        with open(Path(self.root, "lock"), "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                msg = f"another run is writing {Path(self.root).parent}; wait for it or stop it."
                raise ValueError(msg) from error
            yield


def _write_json(place: Path, content: dict) -> None:
    """Write a file that is there whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f"{place.name}.{os.getpid()}-{threading.get_ident()}-{uuid.uuid4().hex[:8]}.part")
    part.write_text(json.dumps(content))
    os.replace(part, place)
