"""The benchmark of detection, small: the shipped weights keep what they reached, with room for chance."""

import importlib.util
import json
import runpy
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from xreg.synthetic import Phantom


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parents[1] / "benchmarks" / "detection.py"
    spec = importlib.util.spec_from_file_location("detection", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table(benchmark):
    return benchmark.main(frames=3, noise=(1, 30))


def test_the_learned_chain_finds_and_outlines(table):
    for noise, isolated, touching, overlap in ((1, 0.99, 0.7, 0.92), (30, 0.8, 0.6, 0.85)):
        ours = table[noise]["learned"]
        assert ours["found, isolated"] >= isolated
        assert ours["found, touching"] >= touching
        assert ours["contour IoU, median"] >= overlap
        assert ours["inventions per frame"] <= 0.7
        assert ours["inventions per empty frame"] <= 0.7
    assert table[1]["learned"]["centre median (isolated), px"] < 0.6


def test_the_learned_chain_beats_otsu(table):
    for summaries in table.values():
        ours, theirs = summaries["learned"], summaries["Otsu + watershed"]
        # NaN where Otsu finds nothing at all.
        assert not theirs["contour IoU, median"] >= ours["contour IoU, median"]
    # A threshold that every picture has splits open background, too.
    ours, theirs = (table[1][name]["inventions per empty frame"] for name in ("learned", "Otsu + watershed"))
    assert ours < 1 < theirs


def test_long_particles_are_found_whole(benchmark):
    ours = partial(benchmark.learned, detector=None, refiner=None)
    found = benchmark.summary(benchmark.measure({"ours": ours}, 1, 4, with_empty=False, elongation=2.5)["ours"])
    assert found["found, isolated"] == 1
    assert found["found, touching"] > 0.6
    assert found["contour IoU, median"] > 0.85
    assert found["inventions per frame"] == 0


def test_scores_of_known_answers(benchmark):
    scene = benchmark.make_scene(5, 1e4)
    assert scene.touching.sum() >= 2
    assert not scene.counted.all()
    tally = benchmark.Tally()
    benchmark.score(tally, scene, benchmark.Found(scene.masks, scene.centres))
    assert all(tally.isolated + tally.touching)
    assert len(tally.isolated) + len(tally.touching) == scene.counted.sum()
    assert (tally.inventions, tally.fragments, max(tally.miss, default=0)) == (0, 0, 0)
    # A spot on open background is an invention, half of a particle a fragment.
    wrong = np.zeros((2, *scene.density.shape), bool)
    free = np.argwhere(~scene.masks.any(0))[0]
    wrong[0, free[0]:free[0] + 3, free[1]:free[1] + 3] = ~scene.masks.any(0)[free[0]:free[0] + 3, free[1]:free[1] + 3]
    first = int(np.flatnonzero(scene.counted)[0])
    wrong[1, :int(scene.centres[first, 0]) - 2] = scene.masks[first][:int(scene.centres[first, 0]) - 2]
    tally = benchmark.Tally()
    benchmark.score(tally, scene, benchmark.Found(wrong, np.zeros((2, 2))))
    assert (tally.inventions, tally.fragments) == (1, 1)
    assert not any(tally.isolated + tally.touching)


def test_the_bound_is_that_of_an_edge(benchmark):
    """For a plate with a blurred edge the information is an integral along its rim."""
    phantom = Phantom(shape=(160, 160), n_scans=1, energies=(8500.0,), n_particles=1, radius=(30, 30),
                      edge_step=(0.1, 0.1), profile=(1e-3, 1e-3), irregularity=0.0, facets=0.0, inner_texture=0.0,
                      texture=0.0, substrate=0.0, crackle=0.0, illumination=0.0, blur=2.0, counts=1e4, touching=0,
                      jitter=0.0, deformation=0.0)
    contrast = np.median(phantom.particle_density(0)[phantom.particle_density(0) > 0])
    slope_squared = contrast**2 / (2 * np.sqrt(np.pi) * 2.0)
    # Half of the rim's slope counts for each axis.
    information = 1e4 * slope_squared * np.pi * 30 * np.exp(-contrast / 2)
    assert benchmark.centre_bound(phantom, 0) == pytest.approx(np.sqrt(2 / information), rel=0.1)


def test_two_energies_are_matched_by_their_common_shift(benchmark):
    y, x = np.indices((200, 200))
    places = np.array([[50.0, 60.0], [120.0, 140.0], [60.0, 150.0]])

    def seen(centres, radius):
        return benchmark.Found(np.array([np.hypot(y - a, x - b) < radius for a, b in centres]), np.array(centres))

    found = benchmark._agreement(seen(places[:2] + 9, 15), seen(places, 15.5), 1.0)
    assert found["of the last found at the first"] == 2
    assert found["contours at the last energy"] == 3
    assert 0.03 < found["area difference, median"] < 0.1


def test_a_contour_without_a_mate_does_not_take_that_of_another(benchmark):
    y, x = np.indices((200, 300))

    def seen(*discs):
        masks = np.array([np.hypot(y - a, x - b) < radius for a, b, radius in discs])
        return benchmark.Found(masks, np.array([disc[:2] for disc in discs], float))

    first = seen((100, 150, 40), (40, 60, 12), (100, 270, 12))
    last = seen((100, 150, 40), (40, 60, 12), (100, 30, 12))
    found = benchmark._agreement(first, last, 1.0)
    assert found["of the last found at the first"] == 2
    assert found["areas within 5 %"] == 1


def test_the_study_of_fusion_runs_small(tmp_path, capsys):
    row = {"step": 1, "seconds": 2.0, "loss": 0.5, "iou": 0.9, "rms_px": 1.0, "median_px": 0.4}
    (tmp_path / "log.jsonl").write_text(json.dumps(row) + "\n")
    path = Path(__file__).parents[1] / "benchmarks" / "fusion.py"
    table = runpy.run_path(str(path))["main"](run=str(tmp_path), frames=1, noise=(1,))
    assert set(table[1]) == {"low", "high", "fused"}
    assert table[1]["low"]["contour IoU, median"] != table[1]["high"]["contour IoU, median"]
    assert "    1    0.5000    0.9000     1.000      0.400" in capsys.readouterr().out
