"""Where tasks run: threads of this process, processes of this machine, or a cluster that is already there.

All three are Dask clients, so that a run is driven in one way. Only a handful of tasks is handed out at a time, and
each is let go as soon as it has ended: what it made lies in the store, and a worker that dies takes nothing along.
"""

import contextlib
import itertools
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import dask
from distributed import CancelledError, Client, KilledWorker, LocalCluster, as_completed
from distributed.comm import CommClosedError

from xreg import chunks

#: A task whose result is lost (its cluster was restarted) is handed out again this many times.
_RETRIES = 3
#: Workers come and go; their number is asked for at most this often (s).
_COUNTED_EVERY = 2.0
#: Dask tells worker processes to give every freed byte back to the system. Frames are freed and taken again all the
#: time, and each time the system would have to clear the pages: a third of all CPU time. Blocks of up to 32 MiB are
#: kept for the next frame instead. Dask's workers also look a hundred times a second at what Python is doing, for the
#: profile of their dashboard, which costs another fifth.
WORKER_ENVIRONMENT = {"MALLOC_TRIM_THRESHOLD_": str(256 * chunks.MIB), "MALLOC_MMAP_THRESHOLD_": str(32 * chunks.MIB),
                      "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
                      "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"}


@dataclass(frozen=True)
class Lost:
    """Outcome of a task that never answered: its workers died, or it raised."""

    error: BaseException


class Pool:
    """Workers of a Dask client, kept busy with a bounded number of tasks."""

    def __init__(self, client: Client):
        self.client = client
        self._counted, self._threads = float("-inf"), 1

    @property
    def workers(self) -> int:
        """Threads of all workers that are there now, at least 1: those of a batch system come one by one."""
        if time.monotonic() - self._counted > _COUNTED_EVERY:
            self._threads = max(sum(self.client.nthreads().values()), 1)
            self._counted = time.monotonic()
        return self._threads

    def each(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield (task, outcome) in the order in which tasks end; outcome is `function(task)`, or `Lost`."""
        suspects = []
        for task, outcome in self._hand_out(function, tasks):
            if isinstance(outcome, Lost) and isinstance(outcome.error, KilledWorker):
                suspects.append(task)
            else:
                yield task, outcome
        # Dask blames a worker's death on all tasks that it held. One at a time, only those that kill it are lost.
        yield from self._hand_out(function, suspects, at_a_time=1)

    def _hand_out(self, function: Callable[[Any], Any], tasks: Iterable[Any],
                  at_a_time: int | None = None) -> Iterator[tuple[Any, Any]]:
        """Yield (task, outcome) of tasks of which some are handed out at a time, by default as many as workers need."""
        waiting, run = iter(tasks), uuid.uuid4().hex[:8]
        numbers = itertools.count()
        running: dict[str, tuple[Any, Any, int]] = {}
        ended = as_completed(loop=self.client.loop)

        def submit(task: Any, attempt: int = 0) -> None:
            key = f"{_name(function)}-{run}-{next(numbers)}"
            future = self.client.submit(function, task, key=key, pure=False)
            running[key] = (future, task, attempt)
            ended.add(future)

        def top_up() -> None:
            most = at_a_time or chunks.in_flight(self.workers)
            for task in itertools.islice(waiting, max(most - len(running), 0)):
                submit(task)

        top_up()
        for future in ended:
            _, task, attempt = running.pop(future.key)
            lost = future.status not in ("finished", "error")
            outcome = self._outcome(future, lost)
            future.release()
            if lost and attempt < _RETRIES and self.client.status == "running":
                submit(task, attempt + 1)
                continue
            top_up()
            yield task, outcome

    def _outcome(self, future: Any, lost: bool) -> Any:
        if future.status == "finished":
            return future.result()
        if lost:
            if self.client.status != "running":
                msg = "the client is closed"
                raise RuntimeError(msg)
            return Lost(RuntimeError("the task was cancelled"))
        return Lost(future.exception())


@contextlib.contextmanager
def open_pool(workers: int | None = None, scheduler: str | Client | None = None) -> Iterator[Pool]:
    """Workers to run tasks on, given back at the end.

    Parameters
    ----------
    workers : int, optional
        Processes of this machine with one thread each; 0 or None for threads of this process.
    scheduler : str or distributed.Client, optional
        Address of a running scheduler ("tcp://..."), or a client of one; `workers` must then be None.

    Raises
    ------
    ValueError
        If both are given, the number is negative, or nothing answers at the address.
    ConnectionError
        If the scheduler goes away meanwhile.
    """
    if scheduler is not None and workers is not None:
        msg = f"workers={workers} and scheduler={scheduler!r} came together; give one of the two."
        raise ValueError(msg)
    if workers is not None and workers < 0:
        msg = f"workers is {workers}; need 0 (threads of this process) or a number of processes."
        raise ValueError(msg)
    with contextlib.ExitStack() as stack:
        client = scheduler if isinstance(scheduler, Client) else stack.enter_context(_connect(workers, scheduler))
        # Not dask.config.set(scheduler=client): a nanny pickles the configuration when it starts a worker anew.
        stack.enter_context(client.as_current())
        with _told_when_lost(client):
            yield Pool(client)


@contextlib.contextmanager
def _told_when_lost(client: Client) -> Iterator[None]:
    """One sentence in place of the many ways in which a client says that its scheduler is gone."""
    try:
        yield
    except Exception as error:
        if client.status == "running" and not isinstance(error, CancelledError | CommClosedError):
            raise
        msg = "the Dask scheduler has gone away; start one and run the same command with --resume."
        raise ConnectionError(msg) from error


@contextlib.contextmanager
def _connect(workers: int | None, scheduler: str | None) -> Iterator[Client]:
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout="10s", set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            msg = f"no Dask scheduler answers at {scheduler}; check the address that dask scheduler printed."
            raise ValueError(msg) from error
        with client:
            if not client.nthreads():
                logging.getLogger(__name__).warning("%s has no workers yet; waiting for the first.", scheduler)
            yield client
        return
    # Loopback only, on any free port: whoever reaches a scheduler can run code (None would mean port 8787, everywhere).
    common = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0", "memory_limit": 0,
              "silence_logs": logging.ERROR}
    # A nanny gives its configuration to its worker, where it counts for more than the environment.
    with dask.config.set({"distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
                          "distributed.worker.profile.enabled": False}):
        if workers:
            cluster = LocalCluster(n_workers=workers, threads_per_worker=1, host="127.0.0.1", **common)
        else:
            cluster = LocalCluster(n_workers=1, threads_per_worker=cores(), processes=False, **common)
    with contextlib.nullcontext() if workers else _single_threads(), cluster:
        with Client(cluster, set_as_default=False) as client:
            yield client


@contextlib.contextmanager
def _single_threads() -> Iterator[None]:
    """Keep each task to one thread, as in worker processes: more threads than cores take twice as long."""
    import scipy.linalg  # noqa: F401  its BLAS is another one than numpy's and must be loaded to be limited
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _name(function: Callable) -> str:
    inner = getattr(function, "func", function)
    return f"xreg-{getattr(inner, '__name__', 'task')}"
