"""Training: a few steps lower the loss, a kill loses nothing, other settings are refused. Tiny networks, seconds."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from xreg.models.weights import card, load
from xreg.synthetic import PhantomConfig
from xreg.synthetic.particles import place_particles
from xreg.training import data, scenes
from xreg.training.data import clean_picture, detection_pair, refinement_samples
from xreg.training.detector import DetectorConfig, PicturePool, train_detector
from xreg.training.refiner import RefinerConfig, contour_loss, train_refiner
from xreg.training.run import average_weights
from xreg.training.scenes import Rod, Scene, random_config

TINY = DetectorConfig(frames=2, warm_up=2, steps=4, batch=2, width=4, workers=1)


@pytest.fixture(autouse=True)
def small_frames(monkeypatch):
    monkeypatch.setattr(scenes, "FRAME_SIDE", 144)
    monkeypatch.setattr("xreg.training.detector.FRAME_SIDE", 144)


def cones(density):
    """A faultless detector for frames of this module: bright things are particles."""
    _, coverage = cones.truth
    return clean_picture(density.shape, coverage)


def test_random_settings_span_the_range():
    configs = [random_config(np.random.default_rng(k)) for k in range(300)]
    assert min(c.radius[0] for c in configs) < 12
    assert max(c.radius[1] for c in configs) > 155
    assert min(c.counts for c in configs) < 30
    assert any(c.n_particles == 0 for c in configs)
    assert any(c.touching for c in configs)
    assert any(c.cut for c in configs)


def test_pairs_are_seeded_and_clean_pictures_clean():
    frame, picture = detection_pair(5)
    again, _ = detection_pair(5)
    np.testing.assert_array_equal(frame, again)
    assert frame.shape == picture.shape == (144, 144)
    assert picture.min() == 0
    assert picture.max() <= 1
    assert np.isfinite(frame.astype(float)).mean() > 0.5


@pytest.fixture
def many():
    return [Scene(random_config(rng), rng) for rng in map(np.random.default_rng, range(60))]


def test_scenes_hold_what_real_frames_hold(many):
    assert any(not scene.lit.all() for scene in many)
    # The beam gets dim before it ends, and the counts with it.
    assert any(scene.open_counts[scene.lit].min() < 0.1 * scene.open_counts.max() for scene in many)
    assert any(len(scene.particles) > scene.shown for scene in many)
    steps = [scene.config.edge_step for scene in many]
    assert max(strong / weak for weak, strong in steps) > 10
    deepest = max(scenes._overlap(p, q) / (2 * min(p.radius, q.radius)) for scene in many
                  for k, p in enumerate(scene.particles[:scene.shown]) for q in scene.particles[:k])
    assert 0.3 < deepest < 0.6


def test_scenes_hold_particles_of_many_shapes(many):
    shown = [p for scene in many for p in scene.particles[:scene.shown]]
    inside = [p for scene in many for p in scene.particles[scene.shown:]]
    aspect = np.array([p.outline.max() / p.outline.min() for p in shown])
    assert 0.1 < (aspect > 2).mean() < 0.4
    assert aspect.max() > 3.5
    assert min(2 * p.outline.min() for p in shown if isinstance(p, Rod)) > 0.99 * scenes._THINNEST
    assert any(isinstance(p, Rod) and p.edge_step < 0 for p in inside)      # a crack
    assert any(not isinstance(p, Rod) and p.edge_step < 0 for p in inside)  # a hollow
    # What is missing inside of a particle is never more than was there.
    assert min(scene.particle_density(0).min() for scene in many if inside) > -0.05


def test_a_rod_is_as_thick_along_its_axis_as_in_its_middle():
    mould = place_particles(PhantomConfig(n_particles=1, touching=0, inner_texture=0.0), np.random.default_rng(0))[0]
    rod = Rod.of(mould, 0.0, 30.0, 10.0)
    x = np.linspace(-29.9, 29.9, 61)
    assert rod.coverage(0 * x, x).min() >= 0.5
    assert rod.coverage(np.full(61, 10.6), x).max() < 0.5
    along = rod.thickness(np.zeros(3), np.array([-18.0, 0.0, 18.0]))
    assert along[0] == pytest.approx(along[1]) == pytest.approx(along[2])
    assert rod.thickness(np.array([9.0]), np.array([0.0]))[0] < 0.9 * along[1]
    assert rod.radius**2 == pytest.approx((10**2 * np.pi + 40 * 20) / np.pi, rel=1e-3)


def test_a_lobed_particle_has_one_maximum():
    y, x = np.mgrid[:60, :90]
    lobes = (np.hypot(y - 30, x - 28) < 22) | (np.hypot(y - 30, x - 60) < 18)
    picture = clean_picture(lobes.shape, [((slice(0, 60), slice(0, 90)), lobes.astype(float))])
    assert picture[30, 28] == 1
    right = picture[30, 45:]
    assert (np.diff(right) <= 1e-6).all()
    assert picture[lobes].min() > data.RIM


def test_particles_that_the_frame_cannot_show_are_not_to_be_found():
    rng = np.random.default_rng(4)
    config = replace(random_config(rng), n_particles=6, radius=(20, 25), edge_step=(0.3, 0.4), texture=0.0)
    for counts, shown in ((1e4, True), (0.01, False)):
        scene = Scene(replace(config, counts=counts), np.random.default_rng(5))
        assert scene.shown >= 1
        for cover, particle in zip(scene.coverage(0), scene.particles[:scene.shown], strict=False):
            if cover[1].sum() > 500:
                assert scenes._shows(cover, particle, scene, np.zeros((144, 144))) == shown


def test_refinement_targets_are_the_true_outlines(monkeypatch):
    simulate = data.simulate_frame

    def remember(rng):
        cones.truth = simulate(rng)
        return cones.truth

    monkeypatch.setattr(data, "simulate_frame", remember)
    found = 0
    for seed in range(12):
        pictures, contours, spacing = refinement_samples(seed, cones)
        found += len(contours)
        for contour, step in zip(contours, spacing, strict=True):
            area = contour.astype(float).sum() * step**2
            areas = [share.sum() for _, share in cones.truth[1]]
            assert min(abs(area - a) / a for a in areas if a) < 0.35
        assert pictures.shape[1:] == (3, 96, 96)
    assert found >= 5


def test_detector_trains_resumes_and_refuses_other_settings(tmp_path):
    weights = train_detector(tmp_path / "whole", TINY, device="cpu")
    assert card(weights)["settings"]["steps"] == 4
    network = load(weights, "cpu")
    assert network(torch.zeros(1, 1, 48, 48)).shape == (1, 1, 48, 48)
    assert list((tmp_path / "whole").glob("sample-*.png"))
    assert "paired" in (tmp_path / "whole" / "log.jsonl").read_text()
    with pytest.raises(ValueError, match="holds a training with other settings"):
        train_detector(tmp_path / "whole", replace(TINY, steps=5), device="cpu")


def test_detector_goes_on_after_a_kill(tmp_path, monkeypatch):
    from xreg.training.run import TrainingRun

    save = TrainingRun.save

    def die(self, step, **parts):
        save(self, step, **parts)
        if step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "save", die)
    with pytest.raises(KeyboardInterrupt):
        train_detector(tmp_path / "t", TINY, device="cpu")
    monkeypatch.setattr(TrainingRun, "save", save)
    steps = []
    log = TrainingRun.log
    monkeypatch.setattr(TrainingRun, "log", lambda self, step, **n: (steps.append(step), log(self, step, **n)))
    train_detector(tmp_path / "t", TINY, device="cpu")
    assert steps == [3]


def test_own_frames_need_no_annotation(tmp_path):
    own = [np.random.default_rng(0).random((100, 200)).astype(np.float32)]
    own[0][:10] = np.nan
    weights = train_detector(tmp_path / "own", replace(TINY, steps=3), device="cpu", own_frames=own)
    assert card(weights)["own frames"] == 1
    assert all(torch.isfinite(p).all() for p in load(weights, "cpu").parameters())


def test_the_pool_gives_back_some_old_pictures():
    pool = PicturePool(4, 0)
    shown = torch.cat([pool.swap(torch.full((2, 1), float(k))) for k in range(10)])
    assert len(shown) == 20
    assert any(v < k // 2 for k, v in enumerate(shown[:, 0].tolist()))


def test_refiner_trains_both_networks(tmp_path, monkeypatch):
    from xreg.training import refiner

    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    discs = torch.stack([(torch.hypot(y - 40 - k, x - 50) < 20).float() for k in range(12)])
    pictures = torch.stack([discs, discs, torch.ones_like(discs)], dim=1)
    monkeypatch.setattr(refiner, "simulate_regions", lambda *_: [pictures, discs, torch.ones(12)])
    config = RefinerConfig(epochs=40, low_epoch=3, batch=3, width=2, rate=2e-2, held_out=0.2)
    detector = train_detector(tmp_path / "d", replace(TINY, steps=2, warm_up=2), device="cpu")
    weights = refiner.train_refiner(tmp_path / "r", config, device="cpu", detector=detector)
    held = card(weights)["held-out regions"]
    assert set(held) == {"low", "high", "fused"}
    curve = [json.loads(line) for line in (tmp_path / "r" / "log.jsonl").read_text().splitlines()]
    assert len(curve) == 40
    assert curve[-1]["loss"] < 0.7 * curve[0]["loss"]
    both = load(weights, "cpu")
    assert not torch.equal(both.low.last.weight, both.high.last.weight)
    # A training that goes on from these weights starts where they stopped.
    further = replace(config, epochs=1, low_epoch=1, rate=0.0)
    again = load(refiner.train_refiner(tmp_path / "f", further, device="cpu", detector=detector, start=weights), "cpu")
    torch.testing.assert_close(again.high.last.weight, both.high.last.weight)
    with pytest.raises(ValueError, match=r"to go on from are of a UNetConfig\(.*width=2.*give weights of the same"):
        refiner.train_refiner(tmp_path / "g", replace(further, width=3), detector=detector, start=weights)


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    from xreg.training.run import TrainingRun

    run = TrainingRun(tmp_path, TINY, "cpu")
    run.save(3, network=torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"checkpoint.pt is of another version of xreg.*give another folder"):
        run.resume(network=torch.nn.Linear(1, 1), kept=torch.nn.Linear(1, 1))


def test_refiner_needs_regions(tmp_path, monkeypatch):
    monkeypatch.setattr("xreg.training.refiner.simulate", lambda *_: [(None, None, np.zeros(0))])
    detector = train_detector(tmp_path / "d", replace(TINY, steps=2, warm_up=2), device="cpu")
    with pytest.raises(ValueError, match="the detector found no region in 450 simulated frames"):
        train_refiner(tmp_path / "r", RefinerConfig(), device="cpu", detector=detector)


def test_the_loss_is_least_at_the_truth():
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    target = (torch.hypot(y - 16, x - 15) < 8).float()[None, None]
    right = contour_loss(20 * target - 10, target, RefinerConfig())
    moved = contour_loss(20 * target.roll(2, 3) - 10, target, RefinerConfig())
    assert right < 0.01 < moved


def test_running_average():
    a, b = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    before = a.weight.item()
    average_weights(a, b, 0.75)
    assert a.weight.item() == pytest.approx(0.75 * before + 0.25 * b.weight.item())


def test_the_study_of_epochs_runs_small_and_goes_on(tmp_path, monkeypatch, capsys):
    from xreg.training import refiner

    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    discs = torch.stack([(torch.hypot(y - 40 - k, x - 50) < 20).float() for k in range(16)])
    pictures = torch.stack([discs, discs, torch.ones_like(discs)], dim=1)
    monkeypatch.setattr(refiner, "simulate_regions", lambda *_: [pictures.half(), discs.half(), torch.ones(16)])
    main = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "epochs.py"))["main"]
    table = main(tmp_path, [1, 2], 8, [2, 4], 3)
    assert list(table)[:3] == ["width 2, 1 epochs", "width 2, 2 epochs", "width 2, 1 and 2 fused"]
    assert all(0 <= row["iou"] <= 1 and row["beside_particle"] > 0 for row in table.values())
    assert (tmp_path / "epochs.png").exists()
    assert len((tmp_path / "epochs.csv").read_text().splitlines()) == 7
    monkeypatch.setattr(refiner, "contour_loss", None)
    again = main(tmp_path, [1, 2], 8, [2, 4], 3)
    assert again["width 4, 2 epochs"] == table["width 4, 2 epochs"]
    with pytest.raises(ValueError, match="16 regions were found, 20 are needed"):
        main(tmp_path, [1, 2], 10, [2], 3)
    assert "width 4, 1 and 2 fused" in capsys.readouterr().out
