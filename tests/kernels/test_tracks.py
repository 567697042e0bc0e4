"""Blocks merge to the same tracks in any grouping; particles are named canonically."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from regions import portrait, snapshot

from xreg.kernels.tracks import LinkSettings, Tracks, finish, leaf, merge

_RNG = np.random.default_rng(0)
_LOOKS = np.stack([snapshot(_RNG, portrait(_RNG), 0.1) for _ in range(3)])
_AREAS = np.array([300.0, 320.0, 700.0])
_SLOTS = 4


def tables(frames):
    """Arguments of `leaf` for frames given as lists of (look, y, x) of integers."""
    n = len(frames)
    position, area = np.full((n, _SLOTS, 2), np.nan), np.zeros((n, _SLOTS))
    thumbnail = np.zeros((n, _SLOTS, 32, 32), dtype=np.uint8)
    for f, seen in enumerate(frames):
        for s, (look, y, x) in enumerate(seen):
            position[f, s], area[f, s], thumbnail[f, s] = (y, x), _AREAS[look], _LOOKS[look]
    return position, area, np.zeros((n, _SLOTS), dtype=bool), thumbnail


def grown(frames, start, stop, rules):
    return leaf(*(t[start:stop] for t in tables(frames)), start=start, settings=rules)


def assert_same(a: Tracks, b: Tracks) -> None:
    for field in fields(Tracks):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


_REGION = st.tuples(st.integers(0, 2), st.integers(0, 60), st.integers(0, 60))
_SERIES = st.lists(st.lists(_REGION, max_size=_SLOTS), min_size=3, max_size=12)


@settings(max_examples=30, deadline=None)
@given(frames=_SERIES, data=st.data(), max_gap=st.integers(0, 4))
def test_merging_associates_and_equals_one_block(frames, data, max_gap):
    rules = LinkSettings(max_gap)
    first = data.draw(st.integers(0, len(frames)))
    second = data.draw(st.integers(first, len(frames)))
    a, b, c = (
        grown(frames, *ends, rules) for ends in ((0, first), (first, second), (second, len(frames)))
    )
    left, right = merge(merge(a, b, rules), c, rules), merge(a, merge(b, c, rules), rules)
    assert_same(left, right)
    assert_same(left, grown(frames, 0, len(frames), rules))


def test_a_block_keeps_pictures_of_its_ends_only():
    frames = [[(0, 10, 10), (2, 50, 50)]] * 20
    tracks = merge(grown(frames, 0, 11, LinkSettings(2)), grown(frames, 11, 20, LinkSettings(2)), LinkSettings(2))
    assert (tracks.head.shape, tracks.tail.shape) == ((6, 32, 32), (6, 32, 32))


def test_short_gaps_are_linked_and_longer_ones_joined_only_on_demand():
    here = [(0, 10, 10), (2, 90, 90)]
    frames = [here] * 5 + [here[1:]] * 4 + [here] * 5
    for rules, join_pieces, particles in ((4, False, 2), (3, False, 3), (3, True, 2)):
        tracks = grown(frames, 0, 14, LinkSettings(rules))
        assert finish(tracks, join_pieces=join_pieces).max() + 1 == particles


def test_particles_are_numbered_by_frame_then_y_then_x_of_the_first_sighting():
    late, low, high, right = (1, 5, 5), (0, 80, 40), (2, 40, 10), (1, 40, 90)
    frames = [[low, right, high]] * 3 + [[late, low, right, high]] * 3
    tracks = grown(frames, 0, 6, LinkSettings())
    np.testing.assert_array_equal(finish(tracks)[:3], [2, 1, 0])
    np.testing.assert_array_equal(finish(tracks)[-4:], [3, 2, 1, 0])


def test_rare_and_sparse_chains_are_dropped():
    always = (2, 90, 90)
    frames = [[always, (0, 10, 10)] if f in (0, 1) else [always] for f in range(30)]
    assert finish(grown(frames, 0, 30, LinkSettings()), 2).max() == 1
    assert finish(grown(frames, 0, 30, LinkSettings()), 3).max() == 0
    sparse = [[always, (0, 10, 10)] if f % 6 == 0 else [always] for f in range(30)]
    assert finish(grown(sparse, 0, 30, LinkSettings()), 2).max() == 0
    blank = [[always, (0, 10, 10)] if f % 6 == 0 else [] for f in range(30)]
    assert finish(grown(blank, 0, 30, LinkSettings()), 2).max() == 1


def test_nothing_gives_no_particles():
    tracks = grown([[], [], []], 0, 3, LinkSettings())
    assert finish(tracks).shape == (0,)


def test_blocks_out_of_order_are_refused():
    frames = [[(0, 10, 10)]] * 6
    a, b = grown(frames, 0, 3, LinkSettings()), grown(frames, 4, 6, LinkSettings())
    with pytest.raises(ValueError, match=r"frames 0\.\.\.2 and 4\.\.\.5 are not neighbours; merge blocks in order"):
        merge(a, b)
