import time

import dask
import psutil
import pytest
from distributed import LocalCluster

from xreg import workers


def double(x):
    if x == 3:
        msg = "three is not allowed"
        raise ValueError(msg)
    return 2 * x


@pytest.fixture(scope="module")
def threads():
    with workers.open_pool() as pool:
        yield pool


def test_every_task_has_an_outcome(threads):
    outcomes = dict(threads.each(double, range(20)))
    lost = outcomes.pop(3)
    assert isinstance(lost, workers.Lost)
    assert "three is not allowed" in str(lost.error)
    assert outcomes == {i: 2 * i for i in range(20) if i != 3}


def test_nothing_to_do(threads):
    assert list(threads.each(double, [])) == []


def test_few_tasks_are_handed_out_at_a_time(threads):
    asked = []

    def source():
        for i in range(40):
            asked.append(i)
            yield i + 10

    for finished, _ in enumerate(threads.each(double, source()), start=1):
        assert len(asked) - finished <= workers.chunks.in_flight(threads.workers)


def test_dask_collections_go_to_the_same_workers(threads):
    assert dask.delayed(double)(5).compute() == 10


def test_one_is_told_that_there_are_no_workers_yet(caplog):
    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster:
        with workers.open_pool(scheduler=cluster.scheduler_address):
            assert f"{cluster.scheduler_address} has no workers yet; waiting for the first." in caplog.messages


@pytest.mark.parametrize(("options", "words"), [
    ({"workers": 2, "scheduler": "tcp://127.0.0.1:1"}, "give one of the two"),
    ({"workers": -1}, "workers is -1; need 0"),
    ({"scheduler": "nonsense"}, "no Dask scheduler answers at nonsense"),
])
def test_impossible_workers_are_refused(options, words):
    with pytest.raises(ValueError, match=words), workers.open_pool(**options):
        pass


def test_processes_and_a_client_of_them():
    with workers.open_pool(1) as pool:
        assert pool.workers == 1
        address = pool.client.scheduler.address
        assert address.startswith("tcp://127.0.0.1:")
        with workers.open_pool(scheduler=address) as other:
            assert dict(other.each(abs, [-1, 2])) == {-1: 1, 2: 2}
        with workers.open_pool(scheduler=pool.client) as same:
            assert dict(same.each(abs, [-4])) == {-4: 4}


def test_a_scheduler_that_goes_away_is_a_sentence():
    from distributed import Client, LocalCluster

    def go_on(client):
        with workers.open_pool(scheduler=client) as pool:
            answers = pool.each(time.sleep, [0.01, 0.2, 0.2, 0.2, 0.2])
            next(answers)
            client.close()
            list(answers)

    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster:
        client = Client(cluster, set_as_default=False)
        with pytest.raises(ConnectionError, match=r"scheduler has gone away; .* --resume"):
            go_on(client)


def test_whatever_is_started_listens_on_loopback_only():
    with workers.open_pool(1):
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = {place.laddr.ip for process in family for place in process.net_connections("inet")
                     if place.status == psutil.CONN_LISTEN}
    assert listening
    assert listening <= {"127.0.0.1", "::1"}


def test_more_tasks_are_handed_out_once_more_workers_are_there(threads, monkeypatch):
    counted = iter([1, 1, 5])
    monkeypatch.setattr(workers, "_COUNTED_EVERY", 0.0)
    monkeypatch.setattr(threads.client, "nthreads", lambda: {"a": next(counted, 5)})
    asked, most = [], 0

    def source():
        for i in range(40):
            asked.append(i)
            yield i + 10

    for finished, _ in enumerate(threads.each(double, source()), start=1):
        most = max(most, len(asked) - finished)
    assert workers.chunks.in_flight(1) < most <= workers.chunks.in_flight(5)
