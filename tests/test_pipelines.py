"""Each program in pipelines/ runs, on something tiny."""

import importlib.util
from pathlib import Path

import pytest

from xreg import record
from xreg.synthetic import PhantomConfig


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    place = tmp_path_factory.mktemp("measured") / "raw.zarr"
    record.simulate(PhantomConfig(shape=(128, 128), n_scans=1, energies=(8200.0, 8300.0, 8345.0, 8400.0), n_particles=1,
                                  radius=(11.0, 13.0), touching=0, flats_per_energy=1, n_darks=1), place)
    return place


def program(name):
    place = Path(__file__).parents[1] / "pipelines" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_machine(raw, tmp_path, capsys):
    program("one_machine").main(str(raw), str(tmp_path / "out.zarr"), workers=0)
    assert "particle 0: moved by" in capsys.readouterr().out
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2
