"""Locating: from rough centres of mass to the truth; what detection missed, and what it made up."""

import dask
import numpy as np
import pytest
import xarray as xr

from xreg.kernels.separation import make_layers
from xreg.locate import (
    choose_template_frames,
    confirm_particles,
    expect_positions,
    locate_block,
    locate_particles,
    propose_particles,
)
from xreg.synthetic import Phantom

ENERGIES = (8250.0, 8280.0, 8300.0, 8310.0, 8320.0, 8400.0, 8450.0, 8500.0, 8600.0, 8690.0)
N = 2 * len(ENERGIES)


@pytest.fixture(scope="module")
def scene():
    """Frames with strong texture behind particles that move, the truth, and rough centres of mass."""
    phantom = Phantom(shape=(240, 250), energies=ENERGIES, n_scans=2, n_particles=4, radius=(16, 24), texture=0.03,
                      touching=0, hot_pixels=0, seed=3)
    frames = [phantom.noisy_optical_density(f) for f in range(N)]
    frames = np.stack([f - np.nanmedian(f) for f in frames]).astype(np.float32)
    truth = np.stack([phantom.position(f) for f in range(N)], axis=1)
    rough = truth + np.random.default_rng(0).normal(0, 0.4, truth.shape)
    return frames, truth, rough, phantom


def made_tracks(position, energy, area=1000.0):
    contrast = np.where(energy > 8340, 1.0, 0.3)[None].repeat(len(position), 0)
    contrast = np.where(np.isfinite(position).all(-1), contrast, np.nan)
    return xr.Dataset({"position": (("particle", "frame", "axis"), position),
                       "contrast": (("particle", "frame"), contrast),
                       "area": (("particle", "frame"), np.full(contrast.shape, area)),
                       "cut": (("particle", "frame"), np.zeros(contrast.shape, bool))},
                      coords={"energy": ("frame", energy), "particle": np.arange(len(position))},
                      attrs={"frame_shape": [240, 250], "element": "Ni", "edge": "K"})


def made_candidates(position, energy, start=None):
    """Discs of the tracks' area, and where they are expected."""
    start = position if start is None else start
    moved = np.isfinite(position).all(-1) & (start != position).any(-1)
    y, x = np.mgrid[-20:21, -20:21]
    outline = np.broadcast_to(np.hypot(y, x) < 17.84, (len(position), 41, 41))
    return made_tracks(position, energy).assign(
        start=(("particle", "frame", "axis"), start), doubtful=(("particle", "frame"), moved),
        contour=(("particle", "y", "x"), outline))


def every(scene, position):
    """Locate all frames from given centres of mass: what is found."""
    frames, _, _, phantom = scene
    tracks = made_tracks(position, np.tile(ENERGIES, 2))
    contour = xr.DataArray(phantom.truth()["contour"].values, dims=("particle", "y", "x"))
    normalized = xr.Dataset({"optical_density": (("frame", "y", "x"), frames)}, coords={"energy": tracks["energy"]})
    candidates = propose_particles(tracks, contour)
    with dask.config.set(scheduler="synchronous"):
        return confirm_particles(candidates, locate_particles(normalized.chunk(frame=N), candidates))


def rms(error):
    """Root mean square length of errors (particle, frame, 2), less each particle's constant part."""
    return np.sqrt(((error - error.mean(axis=1, keepdims=True)) ** 2).sum(-1).mean())


def test_texture_does_not_pull_and_the_stage_is_found(scene):
    _, truth, rough, phantom = scene
    found = every(scene, rough)
    error = found["position"].values - truth
    assert rms(error) < 0.06
    before = np.tile(ENERGIES, 2) < 8330
    assert rms(error[:, before]) < 0.08
    assert rms((found["stage"].values - phantom.rigid)[None]) < 0.03
    ratio = (error - np.median(error, axis=1, keepdims=True)) / found["position_sigma"].values
    assert 0.7 < 1.4826 * np.median(np.abs(ratio)) < 1.6
    matter = np.array([phantom.particle_density(f).sum() for f in range(N)])
    wanted = 1 - matter[before].mean() / matter[np.tile(ENERGIES, 2) > 8348].mean()
    np.testing.assert_allclose(found["edge_jump"], wanted, atol=0.05)
    assert (found["edge_jump_sigma"] < 0.02).all()


def test_what_detection_missed_is_found_and_what_it_invented_is_dropped(scene):
    _, truth, rough, _ = scene
    partly = rough.copy()
    partly[1, :5] = np.nan                       # a particle that is not detected before the edge of the first scan
    partly[2, :3], partly[2, 3:] = [60.0, 40.0], np.nan      # an invention on the open background
    found = every(scene, partly)["position"].values
    assert len(found) == 3
    assert np.isfinite(found).all()
    assert rms(found - truth[[0, 1, 3]]) < 0.12


def test_a_frame_depends_on_itself_and_the_layers_alone(scene, no_compute):
    frames, _, rough, phantom = scene
    # One scan of the two is enough.
    frames, rough, energy = frames[:10], rough[:, :10], np.array(ENERGIES)
    normalized = xr.Dataset({"optical_density": (("frame", "y", "x"), frames)}, coords={"energy": ("frame", energy)})
    outline = xr.DataArray(phantom.truth()["contour"].values, dims=("particle", "y", "x"))
    candidates = propose_particles(made_tracks(rough, energy), outline)
    lazy = [locate_particles(normalized.chunk(frame=n), candidates) for n in (4, 10)]
    with dask.config.set(scheduler="synchronous"):
        found = [x.compute().values for x in lazy]
    np.testing.assert_array_equal(*found)
    with pytest.raises(ValueError, match=r"contour has dims \('y', 'x'\); need \('particle', 'y', 'x'\)"):
        propose_particles(made_tracks(rough, energy), outline[0])


def test_tables_that_lack_something_or_are_of_others_are_refused(no_compute):
    energy, outline = np.array(ENERGIES), xr.DataArray(np.ones((2, 5, 5), bool), dims=("particle", "y", "x"))
    tracks = made_tracks(np.full((2, len(energy), 2), 50.0), energy)
    normalized = xr.Dataset({"optical_density": (("frame", "y", "x"), np.zeros((len(energy), 240, 250), np.float32))},
                            coords={"energy": ("frame", energy)})
    candidates = propose_particles(tracks, outline)
    located = locate_particles(normalized, candidates)
    unlike = candidates.assign_coords(energy=candidates["energy"] + 1)
    for stage, given, sentence in (
        (propose_particles, (tracks.drop_vars("area"), outline), r"area is missing; .* It comes from gather_tracks"),
        (propose_particles, (tracks.drop_vars("energy"), outline), "energy is missing; need energy"),
        (propose_particles, (tracks.drop_attrs(), outline), "frame_shape is missing; it comes from refine_rois"),
        (propose_particles, (tracks, outline[:1]), "there are 2 and 1 along particle"),
        (propose_particles, (tracks, xr.Dataset({"contour": outline})), r'take one of its .* such as \["contour"\]'),
        (locate_particles, (normalized, tracks.assign(contour=outline)), r"start is missing; .* from propose_par"),
        (locate_particles, (normalized, unlike), "energy differs along frame"),
        (confirm_particles, (candidates.drop_vars("doubtful"), located), r"doubtful is missing; .* propose_particles"),
        (confirm_particles, (candidates.drop_attrs(), located), "frame_shape is missing"),
        (confirm_particles, (candidates.isel(particle=[0]), located), r"located has shape .* need \(2, 10, 6\)"),
        (confirm_particles, (unlike, located), "energy differs along frame"),
    ):
        with pytest.raises(ValueError, match=sentence):
            stage(*given)


def test_without_layers_the_centres_of_mass_stay(scene):
    frames, _, rough, phantom = scene
    contour = phantom.truth()["contour"].values
    nothing = make_layers(np.zeros((0, 240, 250), np.float32), np.zeros((4, 0, 2)), *np.zeros((2, 4, 0), bool),
                          np.zeros((0, 2)), np.zeros(0), contour)
    start, guessed = rough[:, :1].copy(), np.zeros((4, 1), bool)
    rows = locate_block(frames[:1], start, guessed, np.zeros((1, 2)), np.ones(1), nothing)
    assert np.isnan(rows).all()
    tracks = made_candidates(start, np.array([8250.0]))
    np.testing.assert_array_equal(confirm_particles(tracks, rows)["position"].values, start)


def test_a_doubtful_place_that_no_fit_confirms_is_as_uncertain_as_the_guesses_differ():
    centre = np.array([[[50.0, 60.0]] * 4, [[100.0, 90.0]] * 4])
    start = centre.copy()
    start[1, :2] += [3.0, -2.0]
    tracks = made_candidates(centre, np.full(4, 8400.0), start)
    rows = np.full((3, 4, 6), 0.1)
    rows[..., 4] = 1.0
    rows[:2, :, :2] = centre + 0.5
    rows[1, 0, :4] = rows[0, 0, :4] = np.nan
    found = confirm_particles(tracks, rows)
    np.testing.assert_array_equal(found["position"].values[:, 0], start[:, 0])
    np.testing.assert_allclose(found["position_sigma"].values[:, 0], [[np.nan, np.nan], [3.0, 2.0]], atol=0.02)
    np.testing.assert_array_equal(found["position"].values[:, 1:], centre[:, 1:] + 0.5)
    assert (found["position_sigma"].values[:, 1:] == 0.1).all()
    # A region that lacks half of the particle's area may be off by half its radius.
    tracks["area"].values[1, 0] /= 2
    sigma = confirm_particles(tracks, rows)["position_sigma"].values[1, 0]
    np.testing.assert_allclose(sigma, np.hypot([3.0, 2.0], 17.84 / 2), rtol=0.02)


def test_what_no_particle_can_be_is_no_fit_of_a_doubtful_sighting():
    centre = np.array([[[50.0, 60.0]] * 4, [[100.0, 90.0]] * 4, [[120.0, 240.0]] * 4])
    start = centre.copy()
    start[1, 0] += [3.0, -2.0]
    start[2, 1:] += [0.0, 4.0]                   # the frame, 250 px wide, cuts it
    tracks = made_candidates(centre, np.full(4, 8400.0), start)
    tracks["cut"].values[2, 1:] = True
    rows = np.full((4, 4, 6), 0.1)
    rows[..., 4], rows[:3, :, :2] = 1.0, start
    rows[1, 0, 4] = 1.9                          # of a contrast that it never has
    rows[2, 2, 1] = 232.0                        # much farther inward than what is seen of it
    rows[1, 0, :2] = [90.0, 80.0]
    found = confirm_particles(tracks, rows)
    np.testing.assert_array_equal(found["position"].values, start)
    refused = found["position_sigma"].values[..., 1] != 0.1
    assert np.argwhere(refused).tolist() == [[1, 0], [2, 2]]


def test_what_is_detected_in_every_frame_stays_though_its_picture_fits_badly():
    centre = np.array([[[50.0, 60.0]] * 4, [[100.0, 90.0]] * 4])
    tracks = made_candidates(centre, np.full(4, 8400.0))
    rows = np.full((3, 4, 6), 0.02)
    rows[:2, :, :2], rows[..., 4] = centre, 1.0
    rows[1, :, :4], rows[1, :, 4] = np.nan, -0.4
    np.testing.assert_array_equal(confirm_particles(tracks, rows)["position"].values, centre)


def test_a_detection_in_a_frame_that_denies_the_particle_is_uncertain():
    centre = np.array([[[50.0, 60.0]] * 4, [[100.0, 90.0]] * 4])
    tracks = made_candidates(centre, np.full(4, 8400.0))
    rows = np.full((3, 4, 6), 0.02)
    rows[:2, :, :2], rows[:2, :, 4] = centre, 1.0
    rows[1, 0, :5] = [np.nan] * 4 + [0.01]
    found = confirm_particles(tracks, rows)
    np.testing.assert_array_equal(found["position"].values, centre)
    np.testing.assert_allclose(found["position_sigma"].values[1, 0], 17.84 / 2, rtol=0.01)
    assert (found["position_sigma"].values[1, 1:] == 0.02).all()


@pytest.mark.parametrize(("cut", "kept"), [(True, 3), (False, 2)])
def test_a_particle_that_has_left_is_not_denied(cut, kept):
    centre = np.full((3, 12, 2), [[[50.0, 60.0]], [[100.0, 90.0]], [[3.0, 160.0]]])
    start = centre.copy()
    centre[2, 4:] = np.nan
    tracks = made_candidates(centre, np.full(12, 8400.0), start)
    tracks["cut"].values[2, 2] = cut
    rows = np.full((4, 12, 6), 0.02)
    rows[:3, :, :2], rows[:3, :, 4] = start, 1.0
    rows[2, 4:, :5] = [np.nan] * 4 + [0.0]
    found = confirm_particles(tracks, rows)
    assert found.sizes["particle"] == kept
    assert np.isnan(found["position"].values[2:, 4:]).all()


@pytest.mark.parametrize(("contrast", "kept"), [(1.9, 4), (0.1, 3)])
def test_a_denial_weighs_what_is_missing(contrast, kept):
    """Seen before the edge alone; behind it less of it is there than of the others, or nearly nothing."""
    centre = np.full((4, 6, 2), [[[50.0, 60.0]], [[100.0, 90.0]], [[60.0, 160.0]], [[150.0, 120.0]]])
    start = centre.copy()
    centre[3, 3:] = np.nan
    tracks = made_candidates(centre, np.repeat([8300.0, 8400.0], 3), start)
    rows = np.full((5, 6, 6), 0.02)
    rows[:4, :, :2], rows[:3, :, 4] = start, [1, 1, 1, 4, 4, 4]
    rows[3, :, 4], rows[3, 3:, 5] = [1, 1, 1, *[contrast] * 3], 0.05
    found = confirm_particles(tracks, rows)
    assert found.sizes["particle"] == kept
    assert np.isnan(found["position"].values[3:, 3:]).all()


def test_the_edge_jump_is_that_of_the_outlines_where_both_sides_of_the_edge_have_them():
    centre = np.array([[[50.0, 60.0]] * 4, [[100.0, 90.0]] * 4])
    centre[1, :2] = np.nan
    tracks = made_candidates(centre, np.array([8250.0, 8300.0, 8400.0, 8500.0]))
    tracks = tracks.assign(significance=tracks["contrast"] * 100)
    rows = np.full((3, 4, 6), 0.01)
    rows[:2, :, 4] = [0.5, 0.5, 1.0, 1.0]
    found = confirm_particles(tracks, rows)
    np.testing.assert_allclose(found["edge_jump"], [0.7, 0.5])


def test_no_particles_no_positions():
    tracks = made_candidates(np.empty((0, 3, 2)), np.array([8250.0, 8400.0, 8500.0]))
    expected = expect_positions(tracks)
    assert expected["start"].shape == (0, 3, 2)
    assert confirm_particles(tracks.assign(expected), np.full((1, 3, 6), np.nan)).sizes["particle"] == 0


def test_where_a_particle_is_expected():
    energy = np.full(5, 8400.0)
    shared = np.array([[0, 0], [1, 0], [2, 1], [2, 2], [3, 3.0]])
    position = np.array([[50, 60], [100, 90], [20, 30.0]])[:, None] + shared
    position[0, 1:3] = np.nan
    position[2, 2:] = np.nan
    position[2, :2] -= [19.5, 0]
    expected = expect_positions(made_tracks(position, energy))
    np.testing.assert_allclose(expected["start"].values[0], np.array([50, 60]) + shared, atol=0.05)
    np.testing.assert_array_equal(expected["guessed"].values.sum(1), [2, 0, 3])
    np.testing.assert_allclose(expected["stage"].values, shared, atol=0.05)


def test_frames_that_show_no_particle_are_looked_at_between_those_that_do():
    shared = np.array([[0, 0], [0, 0], [2, 1], [3, 0], [4, -1], [4, -1.0]])
    position = np.array([[50, 60], [100, 90]])[:, None] + shared
    expected = expect_positions(made_tracks(np.where(np.isin(range(6), [0, 3, 5])[:, None], np.nan, position),
                                            np.full(6, 8300.0)))
    np.testing.assert_allclose(expected["start"], position, atol=0.05)
    np.testing.assert_allclose(expected["stage"].values, shared, atol=0.05)
    np.testing.assert_array_equal(expected["guessed"].values, [[True, False, False, True, False, True]] * 2)


def test_a_particle_that_the_field_cuts_is_expected_where_the_whole_of_it_would_be():
    energy, shared = np.full(6, 8400.0), np.array([[0, 0], [3, 1], [-2, 2], [4, 0], [1, -3], [0, 2.0]])
    position = np.array([[50, 60], [100, 90], [120, 200], [20, 30], [3, 100.0]])[:, None] + shared
    true = position.copy()
    position[4] -= [0.5, 0.0] * shared          # never whole: its centre moves half as much across a line 15 px away
    position[3, :2] += 7.0                      # whole later on
    tracks = made_tracks(position, energy)
    tracks["area"].values[4] *= np.exp(0.5 * shared[:, 0] / 15)
    tracks["cut"].values[4], tracks["cut"].values[3, :2] = True, True
    outline = xr.DataArray(np.ones((5, 9, 9), bool), dims=("particle", "y", "x"))
    found = propose_particles(tracks, outline)
    error = found["start"].values - true
    np.testing.assert_allclose(error - np.median(error, axis=1, keepdims=True), 0, atol=0.05)
    np.testing.assert_array_equal(found["start"].values[:3], position[:3])
    np.testing.assert_array_equal(found["position"], position)
    np.testing.assert_array_equal(found["doubtful"].values.sum(1), [0, 0, 0, 2, 0])


def test_of_two_divisions_of_one_place_the_better_seen_is_kept():
    y, x = np.mgrid[-30:31, -30:31]
    contour = np.array([np.hypot(y, x) < 20, np.hypot(y, x) < 9, np.hypot(y, x) < 9])
    position = np.full((3, 8, 2), 100.0)
    position[1] += 6                            # a piece of the first, seen when the first is not
    position[0, :3] = np.nan
    position[1, 3:] = np.nan
    position[2] += [30, 0]                      # a neighbour
    tracks = made_tracks(position, np.full(8, 8400.0))
    outline = xr.DataArray(contour, dims=("particle", "y", "x"))
    assert propose_particles(tracks, outline)["particle"].values.tolist() == [0, 2]
    # Seen together, a small particle in front of a large one is a particle.
    position[1] = 106.0
    tracks = made_tracks(position, np.full(8, 8400.0))
    assert propose_particles(tracks, outline)["particle"].values.tolist() == [0, 1, 2]


def test_template_frames_are_of_high_contrast_and_of_low():
    energy = np.tile(np.linspace(8200, 8700, 100), 3)
    contrast = np.where(energy > 8340, 1.0, 0.3)[None].repeat(5, 0)
    contrast[:, 7] = np.nan
    chosen = choose_template_frames(contrast, energy)
    assert len(chosen) == 16
    assert (energy[chosen] > 8500).sum() == 8
    assert (energy[chosen] < 8340).sum() == 8
    assert chosen.min() < 100
    assert chosen.max() >= 200
    assert len(choose_template_frames(contrast, energy, most=3)) == 3
    # Specks that never change have no say, and frames in which most particles are lost are damaged.
    specks = np.concatenate([contrast, np.full((7, 300), 0.2)])
    specks[:4, chosen] = np.nan
    others = choose_template_frames(specks, energy)
    assert not np.intersect1d(others, chosen).size
    assert [(energy[others] > 8500).sum(), (energy[others] < 8340).sum()] == [8, 8]
    assert choose_template_frames(np.full((2, 4), np.nan), np.arange(4.0)).size == 0
    assert choose_template_frames(np.ones((2, 1)), np.array([8333.0])).tolist() == [0]
