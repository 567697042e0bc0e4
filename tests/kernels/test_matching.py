"""The rigid jump is found by voting; regions are assigned by place, size and look."""

import numpy as np
import pytest
from regions import portrait, snapshot

from xreg.kernels.matching import MatchSettings, Regions, match_regions, neighbours_jump, rigid_jump, vote


def regions(position, *, pictures, radius=20.0, noise=0.05, cut=False, seed=0):
    rng = np.random.default_rng(seed)
    n = len(position)
    look = np.stack([snapshot(rng, p, noise) for p in pictures])
    return Regions(np.asarray(position, float), np.full(n, np.pi * radius**2), np.full(n, cut), look)


@pytest.fixture
def portraits():
    rng = np.random.default_rng(3)
    return [portrait(rng) for _ in range(9)]


@pytest.fixture
def home():
    points = np.stack(np.indices((3, 3)), axis=-1).reshape(-1, 2) * 100.0
    return points + np.random.default_rng(1).uniform(-9, 9, (9, 2))


def test_jump_beyond_the_spacing_is_found_when_some_left(home, portraits):
    jump = np.array([130.0, -20.0])
    here = regions(home, pictures=portraits)
    there = regions(home[:6] + jump, pictures=portraits[:6], seed=1)
    np.testing.assert_allclose(rigid_jump(here, there), jump, atol=1e-6)


def test_jump_of_look_alikes_is_not_taken_for_one_lattice_spacing_less(home, portraits):
    jump = np.array([104.0, 3.0])
    here = regions(home, pictures=portraits[:1] * 9)
    there = regions(home[:6] + jump, pictures=portraits[:1] * 6, seed=1)
    np.testing.assert_allclose(rigid_jump(here, there), jump, atol=1e-6)


def test_jump_with_own_motion_of_half_a_diameter(home, portraits):
    angle = np.random.default_rng(2).uniform(0, 2 * np.pi, 9)
    own = 20.0 * np.column_stack([np.sin(angle), np.cos(angle)])
    jump = np.array([60.0, 80.0])
    there = regions(home + own + jump, pictures=portraits, seed=1)
    assert np.linalg.norm(rigid_jump(regions(home, pictures=portraits), there) - jump) < 15


def test_jump_is_zero_where_nothing_or_one_unlike_region_is_seen(home, portraits):
    one = regions(home[:1], pictures=portraits[:1])
    other = regions(home[8:], pictures=portraits[8:])
    np.testing.assert_array_equal(rigid_jump(one.take(np.array([], int)), one), 0)
    np.testing.assert_array_equal(rigid_jump(one, other), 0)


def test_vote_prefers_the_denser_place_then_the_nearer():
    displacement = np.array([[5.0, 5.0], [5.2, 5.0], [-80.0, 0.0]])
    modes, support = vote(displacement, np.ones(3), 2.0)
    np.testing.assert_allclose(modes[0], [5.1, 5.0], atol=0.05)
    assert support[0] == pytest.approx(2, abs=0.05)
    modes, _ = vote(np.array([[60.0, 0.0], [-8.0, 0.0]]), np.ones(2), 2.0)
    np.testing.assert_allclose(modes, [[-8, 0], [60, 0]])
    assert vote(displacement, np.zeros(3), 2.0)[0].shape == (0, 2)


def test_each_region_is_found_in_any_order(home, portraits):
    order = np.random.default_rng(5).permutation(9)
    there = regions(home[order] + 4.0, pictures=[portraits[k] for k in order], seed=1)
    i, j, similarity = match_regions(regions(home, pictures=portraits), there, np.full(2, 4.0))
    np.testing.assert_array_equal(i, np.arange(9))
    np.testing.assert_array_equal(order[j], i)
    assert similarity.min() > 0.7


def test_look_alike_neighbours_are_told_apart_by_distance(portraits):
    home = np.array([[0.0, 0.0], [0.0, 41.0], [0.0, 82.0]])
    here, there = (regions(home + d, pictures=portraits[:1] * 3, seed=d) for d in (0, 9))
    i, j, _ = match_regions(here, there, np.zeros(2))
    np.testing.assert_array_equal(i, j)


def test_a_region_in_its_place_is_linked_however_noisy(home, portraits):
    here, there = (regions(home, pictures=portraits, noise=2.0, seed=s) for s in (0, 1))
    i, j, similarity = match_regions(here, there, np.zeros(2))
    np.testing.assert_array_equal(i, j)
    assert i.size == 9
    assert similarity.max() < 0.3


def test_too_far_too_big_and_unlike_are_not_linked(portraits):
    here = regions([[0.0, 0.0]], pictures=portraits[:1])
    far = regions([[31.0, 0.0]], pictures=portraits[:1])
    assert match_regions(here, far, np.zeros(2))[0].size == 0
    assert match_regions(here, far, np.zeros(2), gap=2)[0].size == 1
    assert match_regions(here, far, np.zeros(2), settings=MatchSettings(reach=1.0))[0].size == 1
    big = regions([[0.0, 0.0]], pictures=portraits[:1], radius=36.0)
    assert match_regions(here, big, np.zeros(2))[0].size == 0
    unlike = regions([[26.0, 0.0]], pictures=portraits[4:5])
    assert match_regions(here, unlike, np.zeros(2))[0].size == 0
    assert match_regions(here, regions([[26.0, 0.0]], pictures=portraits[:1]), np.zeros(2))[0].size == 1


def test_a_region_cut_by_the_border_may_have_another_size(portraits):
    here = regions([[0.0, 0.0]], pictures=portraits[:1])
    part = regions([[8.0, 0.0]], pictures=portraits[:1], radius=11.0, cut=True)
    assert match_regions(here, part, np.zeros(2))[0].size == 1


def test_nothing_matches_nothing(home, portraits):
    some = regions(home, pictures=portraits)
    none = some.take(np.array([], int))
    for a, b in ((some, none), (none, some), (none, none)):
        assert [x.size for x in match_regions(a, b, np.zeros(2))] == [0, 0, 0]


def test_regions_that_move_with_their_neighbours_are_sought_there(portraits):
    """A field stretched by 15 % moves its rim by more than the reach, but each particle as those around it."""
    home = np.stack(np.indices((9, 9)), axis=-1).reshape(-1, 2) * 45.0
    here = regions(home, pictures=portraits * 9)
    there = regions(home * 1.15, pictures=portraits * 9, seed=1)
    i, j, _ = match_regions(here, there, np.array([27.0, 27.0]))
    np.testing.assert_array_equal(i, j)
    assert i.size > 70


def test_neighbours_jump_is_local_and_leaves_out_the_region_itself():
    start = np.column_stack([np.arange(12.0), np.zeros(12)])
    moved = np.column_stack([np.where(np.arange(12) < 6, 1.0, 5.0), np.zeros(12)])
    moved[0] = 99.0
    jump = neighbours_jump(start, start, moved)
    np.testing.assert_array_equal(jump[[0, 11]], [[1, 0], [5, 0]])
    np.testing.assert_array_equal(neighbours_jump(start, start[:3], moved[:3]), np.broadcast_to([1.0, 0.0], (12, 2)))
