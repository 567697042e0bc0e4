"""Each program in pipelines/ runs, on something tiny."""

import importlib.util
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from distributed import Client
from distributed.security import Security

from xreg import record
from xreg.models.infer import _exclusive
from xreg.result import open_result
from xreg.synthetic import PhantomConfig

PIPELINES = Path(__file__).parents[1] / "pipelines"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    place = tmp_path_factory.mktemp("measured") / "raw.zarr"
    record.simulate(PhantomConfig(shape=(128, 128), n_scans=1, energies=(8200.0, 8300.0, 8345.0, 8400.0), n_particles=1,
                                  radius=(11.0, 13.0), touching=0, flats_per_energy=1, n_darks=1), place)
    return place


def program(name):
    spec = importlib.util.spec_from_file_location(name, PIPELINES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_machine(raw, tmp_path, capsys):
    program("one_machine").main(str(raw), str(tmp_path / "out.zarr"), workers=0)
    assert "particle 0: moved by" in capsys.readouterr().out
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2


def test_one_machine_says_whose_motion_is_not_known(tmp_path, capsys, monkeypatch):
    nonrigid = np.full((2, 3, 2), np.nan)
    nonrigid[1, 1] = [0.5, -2]
    found = xr.Dataset({"nonrigid": (("particle", "frame", "axis"), nonrigid),
                        "edge_energy": (("particle", "scan", "y", "x"), np.full((2, 1, 4, 4), np.nan))})
    one_machine = program("one_machine")
    monkeypatch.setattr(one_machine, "xreg", SimpleNamespace(register=lambda *_, **__: found))
    monkeypatch.setattr(one_machine, "failures", lambda _: [])
    one_machine.main("raw.zarr", str(tmp_path / "out.zarr"))
    shown = capsys.readouterr().out
    assert "particle 0: how it moved against the others is not known\n" in shown
    assert "particle 1: moved by +0.50 px down and -2.00 px right against the others\n" in shown


@pytest.mark.slow
def test_several_gpus(raw, tmp_path):
    several = program("several_gpus")
    with several.make_cluster(["3", "5"]) as cluster, Client(cluster, set_as_default=False) as client:
        seen = client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
        assert set(seen.values()) == {"3", "5"}
        assert set(client.nthreads().values()) == {2}
        assert client.scheduler.address.startswith("tcp://127.0.0.1:")
    several.main(str(raw), str(tmp_path / "out.zarr"), gpus=["0"], device="cpu")
    assert open_result(tmp_path / "out.zarr").sizes["particle"] == 1


def test_one_thread_at_a_time_uses_the_gpu_of_a_process():
    inside, most = [], []

    def work():
        for _ in range(20):
            with _exclusive("cuda"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 60
    assert max(most) == 1
    with _exclusive("cpu"), _exclusive("cpu"):
        pass


def test_slurm_jobs_are_asked_for_as_they_should(tmp_path):
    compile((PIPELINES / "slurm.py").read_text(), "slurm.py", "exec")
    pytest.importorskip("dask_jobqueue")
    slurm = program("slurm")
    with pytest.raises(ValueError, match=r"walltime is '2h'; need hours, minutes and seconds, such as 02:00:00"):
        slurm.make_cluster(partition=None, account=None, cores=1, memory="1GB", walltime="2h", shared=str(tmp_path))
    with slurm.make_cluster(partition="cpu", account="me", cores=4, memory="8GB", walltime="02:00:00",
                            shared=str(tmp_path), host="127.0.0.1") as cluster:
        script = cluster.job_script()
        assert cluster.scheduler_address.startswith("tls://127.0.0.1:")
    for words in ("#SBATCH -p cpu", "#SBATCH -A me", "#SBATCH --cpus-per-task=4", "#SBATCH -t 02:00:00", "--nworkers 4",
                  "--lifetime 115m", "--tls-ca-file"):
        assert words in script, script


def start(environment, *arguments):
    return subprocess.Popen([sys.executable, "-m", "dask", *arguments, "--no-dashboard", "--host", "127.0.0.1"],
                            env=environment, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_encrypted(raw, tmp_path):
    pytest.importorskip("cryptography")
    encrypted = program("encrypted")
    keys = tmp_path / "keys"
    encrypted.certificate(str(keys))
    assert {f.name: f.stat().st_mode & 0o077 for f in keys.iterdir() if f.suffix == ".pem"} == {
        "certificate.pem": 0, "key.pem": 0}
    environment = {**os.environ, "DASK_CONFIG": str(keys), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    place = tmp_path / "scheduler.json"
    processes = [start(environment, "scheduler", "--protocol", "tls", "--port", "0", "--scheduler-file", str(place))]
    try:
        end = time.monotonic() + 60
        while not (place.exists() and place.stat().st_size):
            assert time.monotonic() < end
            time.sleep(0.05)
        processes.append(start(environment, "worker", "--scheduler-file", str(place), "--nthreads", "2", "--no-nanny"))
        address = next(part for part in place.read_text().split('"') if part.startswith("tls://127.0.0.1:"))
        # Who has another certificate, or none, is not let in.
        with pytest.raises(OSError, match=r"[Cc]onnect|certificate"):
            Client(address, security=Security.temporary(), timeout=2, set_as_default=False)
        with pytest.raises(OSError, match=r"[Cc]onnect|certificate"):
            Client(address.replace("tls://", "tcp://"), timeout=2, set_as_default=False)
        subprocess.run([sys.executable, PIPELINES / "encrypted.py", "run", raw, tmp_path / "out.zarr", address],
                       env=environment, check=True)
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()
    assert open_result(tmp_path / "out.zarr").sizes["particle"] == 1


def test_figure3(tmp_path):
    config = PhantomConfig(shape=(128, 128), n_scans=1, energies=(8200.0, 8300.0, 8345.0, 8400.0, 8500.0),
                           n_particles=1, radius=(11.0, 13.0), touching=0, flats_per_energy=1, n_darks=1, jumps=0.0)
    quality = program("figure3").main(tmp_path, ["absolute-template"], config)
    assert list(quality) == ["xreg", "absolute-template", "truth"]
    assert (tmp_path / "figure3.png").stat().st_size > 20_000
    rows = (tmp_path / "quality.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["method", "xreg", "absolute-template", "truth"]
    ssim = [float(row.split(",")[2]) for row in rows[1:]]
    assert ssim[0] > 0.97 * ssim[2]
    assert len((tmp_path / "motion.csv").read_text().splitlines()) == 1 + 5
