import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xreg.kernels import scoring


def walk(rng, n=3, frames=30, apart=40.0):
    start = apart * np.arange(n)[:, None, None] * np.ones(2)
    return start + np.cumsum(rng.normal(0, 0.5, (n, frames, 2)), axis=1)


@given(st.permutations(range(5)))
@settings(max_examples=20, deadline=None)
def test_matching_does_not_depend_on_numbers(order):
    truth = walk(np.random.default_rng(0), n=5)
    tracks = truth[list(order)] + 0.3
    assert scoring.match_tracks(tracks, truth, np.full(5, 8.0)) == {q: order.index(q) for q in range(5)}


def test_long_track_wins_over_nearer_fragment():
    truth = walk(np.random.default_rng(1), n=1)
    fragment, whole = truth[0].copy(), truth[0] + 0.5
    fragment[5:] = np.nan
    tracks = np.stack([fragment, whole])
    matches = scoring.match_tracks(tracks, truth, np.array([8.0]))
    assert matches == {0: 1}
    counts = scoring.count_mistakes(tracks, truth, np.array([8.0]), matches)
    assert counts == {"inventions": 0, "fragments": 1, "identity_switches": 0}


def test_far_track_is_an_invention_and_matches_nothing():
    truth = walk(np.random.default_rng(2), n=1)
    tracks = truth + 20.0
    assert scoring.match_tracks(tracks, truth, np.array([8.0])) == {}
    counts = scoring.count_mistakes(tracks, truth, np.array([8.0]), {})
    assert counts == {"inventions": 1, "fragments": 0, "identity_switches": 0}


def test_exchanged_tracks_are_two_switches():
    truth = walk(np.random.default_rng(3), n=2)
    tracks = truth.copy()
    tracks[:, 20:] = truth[::-1, 20:]
    radius = np.full(2, 8.0)
    matches = scoring.match_tracks(tracks, truth, radius)
    assert scoring.count_mistakes(tracks, truth, radius, matches)["identity_switches"] == 2


def test_offset_between_overlapping_particles_is_no_switch():
    truth = walk(np.random.default_rng(4), n=2, apart=3.0)
    tracks = truth.copy()
    tracks[0] += 2.4  # by now nearer to the other particle's centre in many frames
    radius = np.full(2, 12.0)
    counts = scoring.count_mistakes(tracks, truth, radius, {0: 0, 1: 1})
    assert counts["identity_switches"] == 0


def test_without_truth_or_tracks():
    none, some = np.empty((0, 4, 2)), np.zeros((1, 4, 2))
    assert scoring.match_tracks(none, some, np.ones(1)) == {}
    assert scoring.match_tracks(some, none, np.ones(0)) == {}
    assert scoring.count_mistakes(some, none, np.ones(0), {})["inventions"] == 1
    assert np.isnan(scoring.constant_offset(np.full((3, 2), np.nan))).all()
    assert scoring.rms(np.array([np.nan])) is None
    assert scoring.robust_sigma(np.array([])) is None


def test_seen_fraction_counts_frames_that_truth_shows():
    path = np.zeros((10, 2))
    path[8:] = np.nan
    track = np.zeros((10, 2))
    track[0] = np.nan
    track[1] = 5.0
    assert scoring.seen_fraction(track, path, 3.0) == pytest.approx(6 / 8)
    assert scoring.seen_fraction(None, path, 3.0) == 0


def test_histogram_medians_are_those_of_the_values():
    values = np.random.default_rng(5).normal(0.3, 1.2, 5001)
    histogram = scoring.Histogram(20, 0.001)
    histogram.add(values[:2000])
    histogram.add(np.append(values[2000:], np.nan))
    assert histogram.median() == pytest.approx(np.median(values), abs=0.001)
    assert histogram.spread(0.5) == pytest.approx(np.median(np.abs(values - 0.5)), abs=0.001)
    assert scoring.Histogram(1, 0.1).median() is None


def test_windows_of_different_size_meet_at_their_centres():
    ours, theirs = np.arange(-4.0, 5), np.arange(-7.0, 8)
    grid = (scoring.union_axis(ours, theirs),) * 2
    assert grid[0].tolist() == theirs.tolist()
    small, large = np.ones((9, 9)), np.full((15, 15), np.nan)
    large[3:12, 3:12] = 1
    placed = scoring.place_window(small, (-4, -4), grid, np.nan)
    sampled = scoring.sample_window(large, (-7, -7), grid, np.zeros(2))
    np.testing.assert_array_equal(placed, sampled)


def test_sampling_reads_between_pixels():
    ramp = np.add.outer(np.arange(9.0), 10 * np.arange(9.0))
    axis = np.arange(-3.0, 4)
    sampled = scoring.sample_window(ramp, (-4, -4), (axis, axis), np.array([0.25, -0.5]))
    expected = np.add.outer(axis + 4.25, 10 * (axis + 3.5))
    np.testing.assert_allclose(sampled, expected)
