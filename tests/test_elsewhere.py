"""Raw and result stores behind s3:// URLs, with a real S3 server process on loopback."""

import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from stand_in import TINY, StandIn, assert_same, take_back

from xreg import chunks, files, journal, record, run, store
from xreg.journal import Journal
from xreg.result import open_result
from xreg.synthetic import PhantomConfig
from xreg.workers import open_pool

pytestmark = pytest.mark.slow

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")
BUCKET = "s3://measurements"


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "BLOCK_FRAMES", 4)
        patch.setattr(chunks, "FEWEST_BLOCKS", 1)
        yield


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module", autouse=True)
def server():
    """A server that the surroundings tell all processes of, as they would of a real one."""
    import s3fs

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    surroundings = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "somebody",
                    "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in surroundings.items():
            patch.setenv(name, value)
        end = time.monotonic() + 60
        while not answers(port):
            assert time.monotonic() < end
            time.sleep(0.05)
        s3fs.S3FileSystem().mkdir("measurements")
        yield
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def pool(server, tmp_path_factory):
    with open_pool(1) as pool:
        orders = tmp_path_factory.mktemp("orders")
        pool.client.register_plugin(StandIn(orders))
        pool.orders = orders
        yield pool


@pytest.fixture(scope="module")
def config():
    return PhantomConfig(**{**TINY, "n_scans": 1})


@pytest.fixture(scope="module")
def raw(config):
    record.simulate(config, f"{BUCKET}/raw.zarr", f"{BUCKET}/truth.zarr")
    return f"{BUCKET}/raw.zarr"


@pytest.fixture(scope="module")
def local(config, pool, tmp_path_factory):
    """The same measurement and its result on this disk."""
    place = tmp_path_factory.mktemp("local")
    record.simulate(config, place / "raw.zarr")
    run.register(place / "raw.zarr", place / "out.zarr", scheduler=pool.client)
    take_back(pool.orders)
    return place


def test_a_raw_store_behind_a_url_is_that_on_a_disk(raw, local):
    here, there = store.open_frames(local / "raw.zarr"), store.open_frames(raw)
    np.testing.assert_array_equal(here.counts, there.counts)
    np.testing.assert_array_equal(here.flats, there.flats)
    assert store.fingerprint(raw)["content"] == store.fingerprint(local / "raw.zarr")["content"]
    with pytest.raises(ValueError, match=r"raw.zarr exists already"):
        record.simulate(PhantomConfig(**TINY), raw)


def test_a_run_behind_a_url_is_interrupted_goes_on_and_ends_with_the_bits_of_one_on_a_disk(raw, local, pool):
    out = f"{BUCKET}/out.zarr"

    def stop(stage, done, _total):
        if (stage, done) == ("locate", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.register(raw, out, scheduler=pool.client, progress=stop)
    with pytest.raises(ValueError, match=r"out.zarr is not finished"):
        open_result(out)
    with pytest.raises(ValueError, match="was left by a run that was interrupted; go on with --resume"):
        run.register(raw, out)
    with pytest.raises(ValueError, match="the choice of frames changed"):
        run.register(raw, out, resume=True, frames=":4")
    take_back(pool.orders)
    marked = set(Journal.of(out).all_done("locate"))
    assert marked
    run.register(raw, out, scheduler=pool.client, resume=True)
    again = {name for _, name in take_back(pool.orders)}
    assert not again & {f"locate {key}" for key in marked}
    assert not any(name.startswith("observe") for name in again)
    assert_same(local / "out.zarr", out)
    with pytest.raises(ValueError, match=r"out.zarr exists already"):
        run.register(raw, out)


def test_a_change_behind_a_url_is_seen(raw):
    before = store.fingerprint(raw)
    place = f"{raw}/flats/c/1/0/0"
    content = files.read(place)
    files.write(place, content[:-1])
    assert store.fingerprint(raw)["files"] != before["files"]
    files.write(place, content)


def test_one_run_at_a_time_and_a_dead_one_is_taken_over(monkeypatch):
    monkeypatch.setattr(journal, "RENEWED", 0.2)
    monkeypatch.setattr(journal, "EXPIRED", 1.0)
    held = Journal.of(f"{BUCKET}/locked")
    with held.lock() as check:
        with pytest.raises(ValueError, match="another run is writing s3://measurements/locked"), held.lock():
            pass
        check()
        # A holder that was asleep for long finds that another has taken over.
        files.create(f"{held.root}/lease/1", b"other")
        end = time.monotonic() + 30
        while "xreg-lease" in [t.name for t in threading.enumerate()]:
            assert time.monotonic() < end
            time.sleep(0.05)
        with pytest.raises(ValueError, match="another run is writing"):
            check()
    # Nobody renews the other's lease.
    with held.lock() as check:
        check()
    with held.lock():
        pass


def test_where_nothing_answers_is_a_sentence(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(files, "FRESH", {**files.FRESH, "config_kwargs": {"retries": {"max_attempts": 0}}})
    with pytest.raises(OSError, match=r"nobody/raw.zarr"):
        store.open_frames("s3://nobody/raw.zarr")
