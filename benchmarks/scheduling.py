"""What driving a very long measurement costs besides the arithmetic, which is replaced by a stand-in that waits.

    python benchmarks/scheduling.py --blocks 100000
    python benchmarks/scheduling.py --blocks 1000000 --most 100000

A scheduler and a worker run in processes of their own. `--most` limits the tasks that are really handed out; everything
that is held or built before the first task is that of all blocks.
"""

import argparse
import json
import math
import os
import pickle
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import psutil
import xarray as xr
from rich.console import Console
from rich.table import Table

from xreg import chunks, files
from xreg.journal import Journal
from xreg.link import link_rois
from xreg.plainly import number, plain_errors
from xreg.refine import empty_rois
from xreg.schema import ROIS
from xreg.workers import open_pool

#: Bytes per frame of what `gather_tracks` holds of the table of regions at once.
_TRACKED = sum(empty_rois(1)[name].nbytes for name in ("roi_position", "roi_area", "roi_contrast", "roi_significance",
                                                      "roi_cut"))


def wait(seconds: float, root: str, block: chunks.Block) -> None:
    """What `tasks.perform` does around its arithmetic: look for the marker, write it."""
    journal = Journal(root)
    if journal.done("observe", str(block.index)) is None:
        time.sleep(seconds)
        pieces = [["aligned", [0, 0, 0, 0], [1, 1, 1, 1]]]
        journal.unmark("link", "0")
        journal.mark("observe", str(block.index), {"checksum": "0" * 64, "pieces": pieces})


class Cluster:
    """`dask scheduler` and one `dask worker`, which may have many threads since the stand-in only waits."""

    def __init__(self, folder: Path, threads: int):
        place = folder / "scheduler.json"
        common = ["--scheduler-file", str(place), "--no-dashboard"]
        self.scheduler = _start("scheduler", *common, "--host", "127.0.0.1", "--port", "0")
        while not (place.exists() and place.stat().st_size):
            time.sleep(0.05)
        self.worker = _start("worker", *common, "--nthreads", str(threads), "--no-nanny", "--host", "127.0.0.1")
        self.address = json.loads(place.read_text())["address"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in (self.worker, self.scheduler):
            process.kill()
            process.wait()


def _start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "dask", *arguments], stderr=subprocess.DEVNULL)


def memory(pid: int | None = None) -> float:
    """Memory of a process, MiB."""
    return psutil.Process(pid).memory_info().rss / 2**20


def hand_out(blocks: int, most: int, threads: int, seconds: float) -> list[tuple[str, str]]:
    """Drive all blocks through the pool of `xreg run`, as one pass does."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder), threads) as cluster:
        with open_pool(scheduler=cluster.address) as pool:
            pool.client.wait_for_workers(1)
            before, began = memory(), time.perf_counter()
            tasks = chunks.frame_blocks(blocks, 1)
            spent = time.perf_counter() - began
            rows += [("list of blocks", f"{spent:.2f} s, {memory() - before:.0f} MiB in the client")]
            work = partial(wait, seconds, f"{folder}/run")
            rows += [("tasks handed out at a time", f"{chunks.in_flight(pool.workers)} for {pool.workers} threads"),
                     ("size of one task", f"{len(pickle.dumps((work, tasks[0])))} bytes")]
            scheduler = psutil.Process(cluster.scheduler.pid)
            used, own, first = scheduler.cpu_times(), psutil.Process().cpu_times(), memory(cluster.scheduler.pid)
            began, client = time.perf_counter(), memory()
            peak = client
            for done, _ in enumerate(pool.each(work, tasks[:most]), start=1):
                if done % 1000 == 0:
                    peak = max(peak, memory())
            spent, n = time.perf_counter() - began, min(most, blocks)
            now, own_now = scheduler.cpu_times(), psutil.Process().cpu_times()
            rows += [
                ("tasks done", f"{n} in {spent:.0f} s: {n / spent:.0f} per second"),
                ("scheduler, CPU time per task", f"{_cpu(used, now) / n * 1e3:.2f} ms"),
                ("client, CPU time per task", f"{_cpu(own, own_now) / n * 1e3:.2f} ms"),
                ("scheduler's memory", f"{first:.0f} MiB before, {memory(cluster.scheduler.pid):.0f} MiB after"),
                ("client's memory", f"{client:.0f} MiB before, {peak:.0f} MiB at most"),
            ]
        began = time.perf_counter()
        marked = len(files.names(f"{folder}/run/done/observe"))
        rows += [("markers listed", f"{marked} in {time.perf_counter() - began:.2f} s")]
        began = time.perf_counter()
        for block in tasks[: min(most, 10_000)]:
            Journal(f"{folder}/run").done("observe", str(block.index))
        rows += [("marker looked up", f"{(time.perf_counter() - began) / min(most, 10_000, blocks) * 1e6:.0f} us")]
    return rows


class _Built(Exception):
    """The graph is complete and would now be computed."""


def link_graph(blocks: int, length: int, split_every: int = 8) -> list[tuple[str, str]]:
    """Build the graph of linking, the one reduction, over blocks of `length` frames, and stop before it is computed."""
    empty, sizes, frames = empty_rois(1), {}, blocks * length
    table = xr.Dataset(coords={"energy": ("frame", np.zeros(frames))})
    for name in ("roi_position", "roi_area", "roi_cut", "roi_thumbnail"):
        row = empty[name][0]
        read = length * chunks.joined(frames, length, row.nbytes)
        table[name] = ROIS[name].dims, da.zeros((frames, *row.shape), dtype=row.dtype, chunks=(read, *row.shape))

    def stop(graph: object, _keys: object, **_options: object) -> None:
        sizes["tasks"] = len(graph.__dask_graph__())
        raise _Built

    before, began = memory(), time.perf_counter()
    try:
        with dask.config.set(scheduler=stop):
            link_rois(table, split_every=split_every)
    except _Built:
        pass
    leaves = len(table["roi_position"].chunks[0])
    return [("linking, graph", f"{sizes['tasks']} tasks in {time.perf_counter() - began:.1f} s, "
                               f"{memory() - before:.0f} MiB"),
            ("linking, tree", f"{leaves} leaves, {math.ceil(math.log(max(leaves, 2), split_every))} levels"),
            ("linking, tables of all frames", f"{_TRACKED * frames / 2**30:.1f} GiB in the client")]


def _cpu(before: object, after: object) -> float:
    return after.user + after.system - before.user - before.system


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=number(int, 1), default=100_000)
    parser.add_argument("--most", type=number(int, 1), help="tasks that are really handed out; default: all")
    parser.add_argument("--threads", type=number(int, 1), default=16, help="threads of the worker, which only wait")
    parser.add_argument("--seconds", type=number(float, 0), default=0.0, help="time that the stand-in waits")
    parser.add_argument("--length", type=number(int, 1), default=13, help="frames per block")
    options = parser.parse_args(arguments)
    rows = hand_out(options.blocks, options.most or options.blocks, options.threads, options.seconds)
    rows += link_graph(options.blocks, options.length)
    table = Table("", f"{options.blocks} blocks", box=None)
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)
    print(f"{os.cpu_count()} CPU cores, dask {dask.__version__}, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    with plain_errors():
        main()
