"""The full chain on a measurement as long as the paper's: time, memory, traffic and errors, stage by stage.

    python benchmarks/full_dataset.py full --scans 45
    python benchmarks/full_dataset.py five --scans 5       # the same in a ninth of the time, to compare memory

Simulates raw counts into FOLDER/raw.zarr, registers them into FOLDER/result.zarr, maps of edge energies included, and
compares with the truth. Scheduler and workers are processes of their own, and twice a second the memory of each is
written to FOLDER/memory.csv. What is there already is not done again: after an interruption the same command goes on,
and its tables count all attempts.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
from distributed import Client
from rich.console import Console
from rich.table import Table

import xreg
from xreg import record, store
from xreg.evaluation import evaluate
from xreg.plainly import folder_type, number, plain_errors
from xreg.result import failures, open_result
from xreg.synthetic import PhantomConfig, ni_energies
from xreg.workers import WORKER_ENVIRONMENT

#: What goes on after the last task of a stage, until the next one says that it begins.
_NEXT = {"simulate": "set up", "observe": "link", "locate": "measure", "fit": "finish"}
MIB = 2**20


class Cluster:
    """`dask scheduler` and `dask worker` processes on loopback."""

    def __init__(self, folder: Path, workers: int):
        place = folder / "scheduler.json"
        place.unlink(missing_ok=True)
        self.scheduler = self._start("scheduler", "--scheduler-file", str(place), "--port", "0")
        while not (place.exists() and place.stat().st_size):
            time.sleep(0.1)
        self.workers = [self._start("worker", "--scheduler-file", str(place), "--nthreads", "1", "--no-nanny",
                                    "--memory-limit", "0") for _ in range(workers)]
        self.address = json.loads(place.read_text())["address"]

    def _start(self, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "dask", *arguments, "--host", "127.0.0.1", "--no-dashboard"]
        return subprocess.Popen(command, env={**os.environ, **WORKER_ENVIRONMENT}, stderr=subprocess.DEVNULL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()

    def processes(self) -> dict[str, psutil.Process]:
        """Client, scheduler and workers by name."""
        named = {"client": psutil.Process(), "scheduler": psutil.Process(self.scheduler.pid)}
        return named | {f"worker {k}": psutil.Process(w.pid) for k, w in enumerate(self.workers)}


class Watch:
    """Notes twice a second, and when a stage ends, what the processes hold and have moved, and which stage it is."""

    def __init__(self, processes: dict[str, psutil.Process], place: Path):
        self.processes, self.place = processes, place
        self.stage, self.tasks = "simulate", 0
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    def __enter__(self):
        self._file = self.place.open("a", newline="")
        self._table = csv.writer(self._file)
        self._table.writerow(["seconds", "stage", "tasks", "read", "written", *self.processes])
        self._began = time.perf_counter()
        self._note()
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()
        self._note()
        self._file.close()

    def progress(self, stage: str, done: int, total: int) -> None:
        """Take down where the run is."""
        if stage != self.stage:
            self._note()
        self.stage, self.tasks = stage, total
        if done == total:
            self._note()
            self.stage, self.tasks = _NEXT.get(stage, stage), 0
        if total and done * 20 // total != (done - 1) * 20 // total:
            print(f"{time.strftime('%H:%M:%S')} {stage} {done}/{total}", flush=True)

    def _go_on(self) -> None:
        while not self._ended.wait(0.5):
            self._note()

    def _note(self) -> None:
        with self._lock:
            moved = [p.io_counters() for p in self.processes.values()]
            memory = [p.memory_info().rss for p in self.processes.values()]
            self._table.writerow([f"{time.perf_counter() - self._began:.2f}", self.stage, self.tasks,
                                  sum(m.read_chars for m in moved), sum(m.write_chars for m in moved), *memory])
            self._file.flush()


def stages_of(place: Path) -> dict[str, dict]:
    """Time, traffic and highest memory of every stage, interrupted attempts included, from what `Watch` noted."""
    stages: dict[str, dict] = {}
    with place.open(newline="") as file:
        for row in csv.reader(file):
            if row[0] == "seconds":
                names, before = row[5:], None
                continue
            now = [float(value) for value in (row[0], *row[3:5])]
            found = stages.setdefault(row[1], {"tasks": 0, "seconds": 0.0, "read, GiB": 0.0, "written, GiB": 0.0,
                                               "peak, MiB": dict.fromkeys(names, 0.0)})
            found["tasks"] = max(found["tasks"], int(row[2]))
            for name, start, end, unit in zip(("seconds", "read, GiB", "written, GiB"), before or now, now,
                                              (1, 2**30, 2**30), strict=True):
                found[name] += (end - start) / unit
            for name, held in zip(names, row[5:], strict=True):
                found["peak, MiB"][name] = max(found["peak, MiB"][name], float(held) / MIB)
            before = now
    return stages


def size_of(place: Path) -> float:
    """Size of a store on disk, GiB."""
    return sum(f.stat().st_size for f in place.rglob("*") if f.is_file()) / 2**30


def main(arguments: list[str] | None = None) -> dict:
    """Run, print the tables, and write them to FOLDER/measured.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=folder_type)
    parser.add_argument("--scans", type=number(int, 1), default=45)
    parser.add_argument("--energies", type=number(int, 1), default=143)
    parser.add_argument("--side", type=number(int, 64), default=1000, help="px")
    parser.add_argument("--particles", type=number(int, 1), default=20)
    parser.add_argument("--radius", type=float, nargs=2, default=(18.0, 42.0), help="px")
    parser.add_argument("--workers", type=number(int, 1), default=2)
    parser.add_argument("--seed", type=number(int, 0), default=0)
    options = parser.parse_args(arguments)
    config = PhantomConfig(shape=(options.side, options.side), n_scans=options.scans, n_particles=options.particles,
                           energies=tuple(ni_energies(options.energies)), radius=tuple(options.radius),
                           touching=min(1, options.particles - 1), seed=options.seed)
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    raw, truth, out = folder / "raw.zarr", folder / "truth.zarr", folder / "result.zarr"
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(folder, options.workers))
        client = stack.enter_context(Client(cluster.address, set_as_default=False))
        client.wait_for_workers(options.workers)
        watch = stack.enter_context(Watch(cluster.processes(), folder / "memory.csv"))
        if not truth.exists():
            record.simulate(config, raw, truth, scheduler=client, progress=watch.progress)
        watch.progress("set up", 0, 0)
        if not out.exists():
            resume = Path(f"{out}.partial").exists()
            xreg.register(raw, out, scheduler=client, resume=resume, progress=watch.progress)
    result = open_result(out)
    errors = evaluate(result, store.open_store(truth)).table()
    measured = {
        "command": " ".join(["python", "benchmarks/full_dataset.py", *(arguments or sys.argv[1:])]),
        "frames": config.n_frames, "cores": os.cpu_count(), "failed": len(failures(result)),
        "raw, GiB": size_of(raw), "result, GiB": size_of(out), "errors": dict(errors),
        "stages": stages_of(folder / "memory.csv"),
    }
    (folder / "measured.json").write_text(json.dumps(measured, indent=1))
    print_tables(measured)
    return measured


def print_tables(measured: dict) -> None:
    """Print what was measured."""
    names = list(next(iter(measured["stages"].values()))["peak, MiB"])
    stages = Table("stage", "tasks", "time", "read", "written", *(f"{n}, peak" for n in names), box=None)
    for stage, row in measured["stages"].items():
        seconds = row["seconds"]
        shown = f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
        stages.add_row(stage, str(row["tasks"] or ""), shown, f"{row['read, GiB']:.2f} GiB",
                       f"{row['written, GiB']:.2f} GiB", *(f"{row['peak, MiB'][n]:.0f} MiB" for n in names))
    whole = sum(row["seconds"] for row in measured["stages"].values())
    highest = [max(row["peak, MiB"][n] for row in measured["stages"].values()) for n in names]
    stages.add_row("all", "", f"{whole / 60:.1f} min", "", "", *(f"{h:.0f} MiB" for h in highest))
    errors = Table("error against the truth", "", box=None)
    for row in measured["errors"].items():
        errors.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(f"{measured['frames']} frames on {measured['cores']} cores, raw {measured['raw, GiB']:.2f} GiB, "
                  f"result {measured['result, GiB']:.2f} GiB, {measured['failed']} frames and tasks failed")
    console.print(stages)
    console.print(errors)


if __name__ == "__main__":
    with plain_errors(go_on="go on with the same command"):
        main()
