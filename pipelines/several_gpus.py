"""Register a measurement on one machine with several GPUs.

    python pipelines/several_gpus.py raw.zarr result.zarr

If it is killed, the same command goes on where it stopped.
"""

import argparse
import os
from pathlib import Path

import dask
from distributed import Client, Nanny, Scheduler, SpecCluster

import xreg
from xreg.plainly import plain_errors
from xreg.result import failures
from xreg.workers import WORKER_ENVIRONMENT


def visible_gpus() -> list[str]:
    """Numbers of the GPUs that this process may use."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen:
        return chosen.split(",")
    import torch

    return [str(gpu) for gpu in range(torch.cuda.device_count())]


def make_cluster(gpus: list[str]) -> SpecCluster:
    """One worker process per GPU, of which it sees no other."""
    # Two threads per process: xreg lets one at a time use the GPU (a lock in that process), so that one reads, decodes
    # and normalises frames while the other's are on the GPU. More threads would only wait.
    # The variable is set before the process starts. Once CUDA has been started it is too late.
    options = {"nthreads": 2, "memory_limit": 0, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    workers = {gpu: {"cls": Nanny, "options": {**options, "env": {**WORKER_ENVIRONMENT, "CUDA_VISIBLE_DEVICES": gpu}}}
               for gpu in gpus}
    dask.config.set({"distributed.worker.profile.enabled": False})     # a fifth of all time, also on CPU cores
    # Loopback only: whoever reaches a scheduler can run code.
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}}
    return SpecCluster(workers=workers, scheduler=scheduler)


def main(raw: str, out: str, gpus: list[str] | None = None, device: str = "cuda") -> None:
    """Register `raw` into `out` on all GPUs."""
    gpus = gpus or visible_gpus()
    if not gpus:
        msg = "there is no GPU here that torch can use; run pipelines/one_machine.py instead."
        raise ValueError(msg)
    interrupted = Path(f"{out}.partial").exists()
    with make_cluster(gpus) as cluster, Client(cluster) as client:
        result = xreg.register(
            raw, out, scheduler=client, device=device, resume=interrupted,
            progress=lambda stage, done, total: print(f"\r{stage} {done}/{total}  ", end="", flush=True))
    print()
    for line in failures(result):
        print("failed:", line)


# Worker processes import this file anew; without this line each of them would start a run of its own.
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("raw")
    parser.add_argument("out")
    options = parser.parse_args()
    with plain_errors(go_on="go on with the same command"):
        main(options.raw, options.out)
