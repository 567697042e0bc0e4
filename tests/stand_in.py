"""Thresholds in place of networks, a tiny measurement, and worker processes that fail on order and record their work.

An order is an empty file ``<orders>/<what>/<stage> <task>``, where `what` is "kill" (the process kills itself halfway
through the task, once), "poison" (each time), "raise" (the task raises, each time) or "full" (from this task on the
process cannot write files of any size).
"""

import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
from distributed import WorkerPlugin
from scipy import ndimage

from xreg import tasks
from xreg.result import open_result

ENERGIES = (8200.0, 8245.0, 8260.0, 8275.0, 8338.0, 8344.0, 8400.0, 8550.0)
TINY = {"shape": (96, 96), "n_scans": 2, "energies": ENERGIES,
        "n_particles": 2, "radius": (10.0, 13.0), "touching": 0, "flats_per_energy": 1, "n_darks": 2,
        "deformation": 1.0, "jitter": 0.2, "jumps": 0.0}
STACKS = ("aligned", "contour", "edge_energy", "edge_energy_sigma", "edge_step", "whiteline_energy", "fit_status")


def particle_map(density, _weights, _device):
    return np.clip(ndimage.gaussian_filter(np.nan_to_num(density), 2) / 0.25, 0, 1).astype(np.float32)


def soft_contours(pictures, _weights, _device):
    return (1 / (1 + np.exp(-(pictures[:, 0] - 0.5) * 12))).astype(np.float32)


def assert_same(one, other, names=None):
    """All variables of two results have the same bits."""
    one, other = open_result(one), open_result(other)
    assert set(one.variables) == set(other.variables)
    for name in names or one.variables:
        np.testing.assert_array_equal(one[name].values, other[name].values, err_msg=str(name), strict=True)


def flip_a_bit(place):
    data = bytearray(place.read_bytes())
    data[len(data) // 3] ^= 4
    place.write_bytes(data)


class StandIn(WorkerPlugin):
    """Make a worker process use thresholds, obey orders, and leave a file in ``<orders>/done`` per finished task."""

    name = "stand-in"

    def __init__(self, orders):
        self.orders = str(orders)

    def setup(self, worker):
        from xreg.models import infer

        infer.particle_map, infer.soft_contours = particle_map, soft_contours
        for stage, work in dict(tasks._WORK).items():
            tasks._WORK[stage] = obedient(Path(self.orders), stage, getattr(work, "original", work))


def obedient(orders, stage, work):
    def obey(job, task):
        name = f"{stage} {tasks.key_of(task)}"
        if (orders / "raise" / name).exists():
            msg = "rotten"
            raise ValueError(msg)
        if (orders / "full" / name).exists():
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
        for piece in work(job, task):
            yield piece
            poisoned = (orders / "poison" / name).exists()
            if poisoned or (orders / "kill" / name).exists():
                (orders / "kill" / name).unlink(missing_ok=True)
                os.kill(os.getpid(), signal.SIGKILL)
        (orders / "done" / str(os.getpid())).mkdir(parents=True, exist_ok=True)
        (orders / "done" / str(os.getpid()) / f"{name} {time.monotonic_ns()}").touch()

    obey.original = work
    return obey


def order(orders, what, *names):
    (orders / what).mkdir(exist_ok=True)
    for name in names:
        (orders / what / name).touch()


def take_back(orders):
    """Take back all orders; return the tasks that were finished since the last time, and who finished them."""
    for folder in ("kill", "poison", "raise", "full"):
        for file in (orders / folder).glob("*"):
            file.unlink()
    done = sorted((orders / "done").glob("*/*"))
    for file in done:
        file.unlink()
    return [(file.parent.name, file.name.rpartition(" ")[0]) for file in done]
