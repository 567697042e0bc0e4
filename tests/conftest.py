"""What all tests share: the real measured files, small phantoms, and a scheduler that refuses to compute."""

import os
from pathlib import Path

import dask
import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real measured files; tests that need it skip where it is absent."""
    place = Path(os.environ.get("XREG_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not place.is_dir():
        pytest.skip(f"no measured files at {place}")
    return place


@pytest.fixture(scope="module")
def thresholds():
    """Thresholds in place of networks, so that runs need no weights."""
    from stand_in import particle_map, soft_contours

    from xreg.models import weights

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xreg.models.infer.particle_map", particle_map)
        patch.setattr("xreg.models.infer.soft_contours", soft_contours)
        patch.setattr("xreg.models.weights.shipped", lambda name: weights.Weights(name, "0" * 64))
        yield


@pytest.fixture
def no_compute():
    """Run a test under a scheduler that raises: whatever computes is not lazy."""

    def refuse(dsk, keys, **kwargs):
        msg = "something was computed while the graph was built"
        raise AssertionError(msg)

    with dask.config.set(scheduler=refuse):
        yield
