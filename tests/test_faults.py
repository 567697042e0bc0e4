"""What goes wrong on clusters, with real processes on loopback: the result has the same bits, or says what it lacks."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import dask
import numpy as np
import pytest
from click.testing import CliRunner
from distributed import Client
from stand_in import TINY, StandIn, assert_same, flip_a_bit, order, take_back

from xreg import chunks, cli, record, run
from xreg.journal import Journal
from xreg.result import failures, open_result
from xreg.schema import FrameStatus
from xreg.synthetic import PhantomConfig
from xreg.workers import open_pool

pytestmark = pytest.mark.slow

FRAMES, BLOCK = 8, 2
TASKS = {"fit 0-0", "fit 1-0", *(f"{stage} {k}" for stage in ("observe", "locate", "align") for k in range(4))}


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "BLOCK_FRAMES", BLOCK)
        patch.setattr(chunks, "FEWEST_BLOCKS", 1)
        yield


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    return tmp_path_factory.mktemp("orders")


@pytest.fixture(scope="module")
def pool(orders):
    """Two worker processes; a task whose worker dies is not tried again by Dask itself."""
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), open_pool(2) as pool:
        pool.client.register_plugin(StandIn(orders))
        yield pool


@pytest.fixture(scope="module")
def raw(small_blocks, tmp_path_factory):
    place = tmp_path_factory.mktemp("measured") / "raw.zarr"
    record.simulate(PhantomConfig(**{**TINY, "n_scans": 1}), place)
    return place


@pytest.fixture(scope="module")
def whole(raw, pool, orders, tmp_path_factory):
    """The result of an undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "out.zarr"
    run.register(raw, out, scheduler=pool.client)
    assert Counter(name for _, name in take_back(orders)) == Counter(TASKS)
    return out


@pytest.fixture(autouse=True)
def both_workers(pool):
    """Workers that a test has killed are back before the next begins."""
    pool.client.wait_for_workers(2, timeout=60)


def xreg(*arguments):
    answer = CliRunner().invoke(cli.main, [str(a) for a in arguments])
    assert answer.exception is None or isinstance(answer.exception, SystemExit), answer.exception
    return answer.exit_code, answer.stderr


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_workers_killed_halfway_through_a_task_cost_that_task_only(raw, whole, pool, orders, tmp_path):
    killed = "observe 1", "locate 2", "align 0", "fit 1-0"
    order(orders, "kill", *killed)
    result = run.register(raw, tmp_path / "out.zarr", scheduler=pool.client)
    assert failures(result) == []
    assert not any((orders / "kill").iterdir())
    assert Counter(name for _, name in take_back(orders)) == Counter(TASKS)
    assert_same(whole, tmp_path / "out.zarr")


def test_a_restart_of_all_workers_by_somebody_else_costs_the_tasks_in_their_hands(raw, whole, pool, orders, tmp_path):
    def progress(stage, done, _total):
        if (stage, done) == ("locate", 1):
            with Client(pool.client.scheduler.address, set_as_default=False) as other:
                other.restart()

    run.register(raw, tmp_path / "out.zarr", scheduler=pool.client, progress=progress)
    done = Counter(name for _, name in take_back(orders))
    assert set(done) == TASKS
    assert done.total() <= len(TASKS) + pool.workers
    assert_same(whole, tmp_path / "out.zarr")


def test_poison_and_damage_are_named_the_rest_is_done_and_the_exit_code_is_3(raw, whole, pool, orders, tmp_path):
    spoiled = shutil.copytree(raw, tmp_path / "raw.zarr")
    flip_a_bit(spoiled / "counts/c/0/0/0")
    truncated = spoiled / "counts/c/2/0/0"
    truncated.write_bytes(truncated.read_bytes()[:-40])
    (spoiled / "counts/c/3/0/0").unlink()
    flip_a_bit(spoiled / "darks/c/0/0/0")
    (spoiled / "flats/c/2/0/0").unlink()
    order(orders, "poison", "locate 1")
    order(orders, "raise", "fit 1-0")
    arguments = "run", spoiled, tmp_path / "out.zarr", "--scheduler", pool.client.scheduler.address
    code, err = xreg(*arguments)
    assert code == 3
    assert "locate 1: KilledWorker" in err
    assert "fit 1-0: ValueError: rotten" in err
    assert re.search(r"darks [01]: damaged, left out\n *flats 4: damaged, left out\n *flats 5: damaged, left out", err)
    for frame, word in ((2, "failed"), (3, "failed"), (4, "corrupt"), (5, "corrupt"), (6, "blank"), (7, "blank")):
        assert f"frame {frame}: {word}" in err
    assert sorted(open_result(tmp_path / "out.zarr").frame_status[:2].values) == [FrameStatus.OK, FrameStatus.CORRUPT]
    take_back(orders)
    code, err = xreg(*arguments, "--resume")
    assert code == 3
    assert "Killed" not in err
    assert "rotten" not in err
    assert np.isfinite(open_result(tmp_path / "out.zarr").position[:, 2:4]).all()


def program(orders, *arguments):
    """Command that runs xreg in a process of its own with thresholds for networks and small blocks."""
    code = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            f"from stand_in import StandIn; StandIn({str(orders)!r}).setup(None)\n"
            f"from xreg import chunks; chunks.BLOCK_FRAMES, chunks.FEWEST_BLOCKS = {BLOCK}, 1\n"
            "from xreg.cli import main; main()")
    return [sys.executable, "-c", code, *map(str, arguments)]


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_once_there_is_room(raw, whole, pool, orders, tmp_path):
    out = tmp_path / "out.zarr"
    order(orders, "full", "align 2")
    command = program(orders, "run", raw, out, "--workers", 0)
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 2, answer.stderr
    sentence = answer.stderr.splitlines()[-1]
    assert sentence == f"xreg: {out}.partial cannot be written (File too large); mend that and run again with --resume."
    take_back(orders)
    for option, value, words in (("--frames", ":4", "the choice of frames changed"), ("--device", "cpu", "the device")):
        code, err = xreg("run", raw, out, "--resume", option, value)
        assert (code, words in err) == (2, True)
    run.register(raw, out, resume=True, scheduler=pool.client)
    assert not any(name.startswith(("observe", "locate")) for _, name in take_back(orders))
    assert_same(whole, out)


@pytest.fixture
def cluster(orders):
    """`dask scheduler` as a process of its own, and a function that starts one more `dask worker`."""
    started = []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}

    def start(*arguments):
        command = [sys.executable, "-m", "dask", *arguments, "--host", "127.0.0.1", "--no-dashboard"]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
        return started[-1]

    place = orders / "scheduler.json"
    place.unlink(missing_ok=True)
    scheduler = start("scheduler", "--port", "0", "--scheduler-file", str(place))
    wait_for(lambda: place.exists() and place.stat().st_size)

    def worker():
        return start("worker", "--scheduler-file", str(place), "--nthreads", "1", "--no-nanny")

    yield json.loads(place.read_text())["address"], scheduler, worker
    for process in reversed(started):
        process.kill()
        process.wait()


def test_dask_workers_of_their_own_come_late_and_their_scheduler_dies(raw, whole, pool, orders, cluster, tmp_path):
    address, scheduler, start_worker = cluster
    start_worker()
    with Client(address, set_as_default=False) as observer:
        observer.register_plugin(StandIn(orders))

        def one_more(stage, done, _total):
            if (stage, done) == ("observe", 1):
                start_worker()
                observer.wait_for_workers(2, timeout=60)

        run.register(raw, tmp_path / "one.zarr", scheduler=address, progress=one_more)
    assert len({who for who, _ in take_back(orders)}) == 2
    assert_same(whole, tmp_path / "one.zarr")

    def no_more(stage, done, _total):
        if (stage, done) == ("locate", 1):
            scheduler.send_signal(signal.SIGKILL)

    with pytest.raises(ConnectionError, match=r"scheduler has gone away; .* --resume"):
        run.register(raw, tmp_path / "two.zarr", scheduler=address, progress=no_more)
    marked = set(Journal.of(tmp_path / "two.zarr.partial").all_done("locate"))
    assert marked
    take_back(orders)
    run.register(raw, tmp_path / "two.zarr", scheduler=pool.client, resume=True)
    again = {name for _, name in take_back(orders)}
    assert not again & {f"locate {key}" for key in marked}
    assert not any(name.startswith("observe") for name in again)
    assert_same(whole, tmp_path / "two.zarr")
