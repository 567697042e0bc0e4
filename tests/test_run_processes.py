"""The driver with real processes and the real networks: the same bits whoever works, and what is killed goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from xreg import record, run
from xreg.journal import Journal
from xreg.result import failures, open_result
from xreg.schema import FitStatus
from xreg.synthetic import PhantomConfig
from xreg.workers import open_pool

ENERGIES = (8200.0, 8240.0, 8260.0, 8275.0, 8290.0, *np.arange(8332.0, 8352.0, 2.0), 8400.0, 8450.0, 8520.0, 8600.0)
CONFIG = PhantomConfig(shape=(128, 128), n_scans=1, energies=ENERGIES, n_particles=1, radius=(16.0, 20.0), touching=0,
                       flats_per_energy=1, n_darks=2, jumps=0.0)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    place = tmp_path_factory.mktemp("measured") / "raw.zarr"
    record.simulate(CONFIG, place)
    return place


@pytest.fixture(scope="module")
def pool():
    with open_pool(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def whole(raw, pool, tmp_path_factory):
    """The result of two undisturbed processes, started once for all tests and reached by the scheduler's address."""
    out = tmp_path_factory.mktemp("whole") / "out.zarr"
    run.register(raw, out, scheduler=pool.client.scheduler.address)
    return out


def assert_same(one, other):
    one, other = open_result(one), open_result(other)
    for name in one.variables:
        np.testing.assert_array_equal(one[name].values, other[name].values, err_msg=str(name), strict=True)


def test_threads_give_the_bits_of_processes(raw, whole, tmp_path):
    ds = open_result(whole)
    assert ds.sizes["particle"] == 1
    assert (ds.fit_status == FitStatus.OK).sum() > 100
    run.register(raw, tmp_path / "out.zarr")
    assert_same(whole, tmp_path / "out.zarr")


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_its_own_block(raw, whole, pool, tmp_path):
    out = tmp_path / "out.zarr"
    killed = []

    def progress(stage, done, total):
        if stage == "observe" and done == 3:
            killed.append(pool.client.run(os.getpid))
            os.kill(next(iter(killed[0].values())), signal.SIGKILL)

    run.register(raw, out, scheduler=pool.client, progress=progress)
    assert killed
    assert failures(open_result(out)) == []
    assert_same(whole, out)


def test_a_run_whose_whole_process_group_is_killed_goes_on(raw, whole, tmp_path):
    out = tmp_path / "out.zarr"
    command = [sys.executable, "-m", "xreg.cli", "run", str(raw), str(out), "--workers", "1"]
    journal = Journal.of(f"{out}.partial")
    victim = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(journal.all_done("observe")) >= 3)
    finally:
        os.killpg(victim.pid, signal.SIGKILL)
        victim.wait()
    before = journal.all_done("observe")
    marked = {key: Path(journal.root, "done", "observe", f"{key}.json").stat().st_mtime_ns for key in before}
    assert not out.exists()
    run.register(raw, out, resume=True)
    for key, moment in marked.items():
        assert (out / "run/done/observe" / f"{key}.json").stat().st_mtime_ns == moment
    assert_same(whole, out)
