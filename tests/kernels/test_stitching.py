"""Pieces of a path are joined after a long absence, if they are where they would be."""

import numpy as np

from xreg.kernels.stitching import stitch


def sightings(paths, frames, *, areas=None, cut=()):
    """Arguments of `stitch`: paths (piece, frame, 2) seen in the given ranges of frames, each piece one chain."""
    rows = sorted((f, p) for p, (start, stop) in enumerate(frames) for f in range(start, stop))
    frame, piece = (np.array(c) for c in zip(*rows, strict=True))
    last, previous = {}, np.full(len(rows), -1)
    for n, (_, p) in enumerate(rows):
        previous[n] = last.get(p, -1)
        last[p] = n
    area = np.full(len(paths), 400.0) if areas is None else np.asarray(areas, float)
    order = list(dict.fromkeys(piece.tolist()))
    number = np.argsort(order)[piece]
    return frame, paths[piece, frame], area[piece], np.isin(piece, cut), previous, number


def walk(frames=200, jump_at=None):
    stage = np.cumsum(np.random.default_rng(0).normal(0, 1, (frames, 2)), axis=0)
    if jump_at:
        stage[jump_at:] += [150.0, -70.0]
    return stage


def at(*places):
    return np.array(places, dtype=float)[:, None, :]


def test_a_particle_that_left_and_came_back_is_known_by_its_place():
    paths = at([50, 50], [90, 200], [200, 90], [200, 90], [180, 120]) + walk()
    joined = stitch(*sightings(paths, [(0, 200), (0, 200), (0, 60), (120, 200), (125, 200)]))
    np.testing.assert_array_equal(joined, [0, 1, 2, 2, 4])


def test_another_size_or_place_or_an_overlap_is_another_particle():
    paths = at([50, 50], [200, 90], [200, 90], [230, 90], [200, 91]) + walk()
    spans = [(0, 200), (0, 60), (120, 200), (120, 200), (50, 110)]
    joined = stitch(*sightings(paths, spans, areas=[400, 400, 900, 400, 400]))
    np.testing.assert_array_equal(joined[:2], [0, 1])
    assert len(set(joined.tolist())) == 5


def test_a_piece_cut_throughout_may_have_another_size():
    paths = at([50, 50], [200, 90], [200, 90]) + walk()
    spans = [(0, 200), (0, 60), (120, 200)]
    np.testing.assert_array_equal(stitch(*sightings(paths, spans, areas=[400, 400, 800])), [0, 1, 2])
    np.testing.assert_array_equal(stitch(*sightings(paths, spans, areas=[400, 400, 800], cut=[2])), [0, 1, 1])


def test_a_break_in_all_particles_with_a_jump_is_bridged():
    paths = at(*[[50, 50], [90, 200], [200, 95], [140, 140]] * 2) + walk(jump_at=100)
    joined = stitch(*sightings(paths, [(0, 80)] * 4 + [(120, 200)] * 4))
    np.testing.assert_array_equal(joined, [0, 1, 2, 3, 0, 1, 2, 3])


def test_pieces_of_two_sightings_are_left_alone():
    paths = at([50, 50], [200, 90], [200, 90]) + walk()
    np.testing.assert_array_equal(stitch(*sightings(paths, [(0, 200), (0, 2), (120, 200)])), [0, 1, 2])


def test_a_particle_that_left_again_and_again_is_one():
    paths = at([50, 50], *[[200, 90]] * 4) + walk()
    paths += np.random.default_rng(1).normal(0, 1, paths.shape)
    joined = stitch(*sightings(paths, [(0, 200), (0, 30), (50, 70), (95, 130), (150, 200)]))
    np.testing.assert_array_equal(joined, [0, 1, 1, 1, 1])
