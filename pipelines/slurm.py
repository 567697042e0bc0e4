"""Register a measurement on a SLURM cluster, whose jobs come when there is room and end at their time limit.

    pip install dask-jobqueue
    python pipelines/slurm.py raw.zarr result.zarr --jobs 20 --partition cpu --walltime 02:00:00 --shared ~/scratch

Start it where jobs can be submitted from, in tmux or as a small job of its own. If it is killed, the same command goes
on where it stopped.
"""

import argparse
import re
from pathlib import Path

from dask_jobqueue import SLURMCluster
from distributed import Client

import xreg
from xreg.plainly import number, plain_errors
from xreg.result import failures
from xreg.workers import WORKER_ENVIRONMENT


def make_cluster(*, partition: str | None, account: str | None, cores: int, memory: str, walltime: str, shared: str,
                 interface: str | None = None, host: str | None = None) -> SLURMCluster:
    """A cluster without workers yet; each job will be a process with one thread per core."""
    if not re.fullmatch(r"\d+:\d\d:\d\d", walltime):
        msg = f"walltime is {walltime!r}; need hours, minutes and seconds, such as 02:00:00."
        raise ValueError(msg)
    hours, minutes, _ = (int(part) for part in walltime.split(":"))
    whole = 60 * hours + minutes
    return SLURMCluster(
        queue=partition, account=account, walltime=walltime,
        # One process per core: frames are worked through in Python and numpy, and processes do not wait for each other.
        cores=cores, processes=cores, memory=memory,
        # Without these a third to a half of all CPU time goes into memory that is given back and Dask's profiler.
        job_script_prologue=[f"export {name}={value}" for name, value in WORKER_ENVIRONMENT.items()],
        # Workers hand back their last task and leave before SLURM kills them, and not all in the same minute.
        worker_extra_args=["--lifetime", f"{max(whole - 5, 1)}m", "--lifetime-stagger", "4m"],
        # Whoever reaches a Dask scheduler can run code in your name: connections are encrypted, with certificates that
        # are made for this run and lie in a folder that all nodes see and only you can read.
        security=True, protocol="tls://", shared_temp_directory=shared,
        interface=interface, scheduler_options={"dashboard_address": "127.0.0.1:0", **({"host": host} if host else {})},
        # Blocks lie in the store as soon as they are done; nothing is worth keeping on a node's disk.
        local_directory="/tmp", log_directory=f"{shared}/xreg-logs",
    )


def main(arguments: list[str] | None = None) -> None:
    """Start the jobs, keep their number up, and register."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw")
    parser.add_argument("out")
    parser.add_argument("--jobs", type=number(int, 1), default=4)
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--cores", type=number(int, 1), default=16, help="per job")
    parser.add_argument("--memory", default="32GB", help="per job; `xreg check RAW` says what a process takes")
    parser.add_argument("--walltime", default="01:00:00")
    parser.add_argument("--shared", default=str(Path.home()), help="folder that all nodes see")
    parser.add_argument("--interface", help="network of the nodes, such as ib0")
    options = parser.parse_args(arguments)
    xreg.open_frames(options.raw)     # says what is wrong with it before any job is asked for
    with make_cluster(partition=options.partition, account=options.account, cores=options.cores, memory=options.memory,
                      walltime=options.walltime, shared=options.shared, interface=options.interface) as cluster:
        # Jobs that have ended are asked for anew; what they were doing is handed to others.
        cluster.adapt(minimum_jobs=options.jobs, maximum_jobs=options.jobs)

        def progress(stage: str, done: int, total: int) -> None:
            print(f"\r{stage} {done}/{total}  ", end="", flush=True)

        interrupted = Path(f"{options.out}.partial").exists()
        with Client(cluster) as client:
            # Tasks are handed out as workers come, so that nobody waits for the last job of the queue.
            result = xreg.register(options.raw, options.out, scheduler=client, resume=interrupted, progress=progress)
    print()
    for line in failures(result):
        print("failed:", line)


if __name__ == "__main__":
    with plain_errors(go_on="go on with the same command"):
        main()
