"""Splitting a particle map: one region per particle, touching ones too."""

import numpy as np
import pytest
from scipy import ndimage

from xreg.kernels.rois import region_pictures, region_windows, split_left_over, split_regions, split_waists


def cone(shape, centre, radius):
    y, x = np.indices(shape)
    depth = 1 - np.hypot(y - centre[0], x - centre[1]) / radius
    return np.where(depth > 0, 0.3 + 0.7 * depth, 0).astype(np.float32)


def cones(shape, *places):
    return np.maximum.reduce([cone(shape, (y, x), r) for y, x, r in places])


def test_isolated_and_touching_particles_are_one_region_each():
    found = cones((300, 320), (60, 70, 30), (60, 131, 30), (200, 100, 90), (220, 250, 14))
    labels = split_regions(found)
    assert labels.shape == found.shape
    assert labels.max() == 4
    middles = [(60, 70), (60, 131), (200, 100), (220, 250)]
    assert len({labels[m] for m in middles}) == 4


def test_noise_in_the_map_does_not_split_a_particle():
    rng = np.random.default_rng(0)
    found = np.clip(cone((200, 200), (100, 100), 60) + 0.05 * rng.standard_normal((200, 200)), 0, 1)
    assert split_regions(found.astype(np.float32)).max() == 1


def test_faint_and_tiny_blobs_are_no_particles():
    assert split_regions(0.4 * cone((90, 90), (45, 45), 20)).max() == 0
    assert split_regions(cone((90, 90), (45, 45), 4)).max() == 0
    assert split_regions(np.zeros((31, 47), np.float32)).shape == (31, 47)


def drawn(windows, *places):
    """A disc (y, x, radius) for each window, as its contour; None for an empty one."""
    contours = np.zeros((len(windows), 96, 96), np.float32)
    for contour, (y, x, step), place in zip(contours, windows, places, strict=True):
        rows, columns = np.indices(contour.shape) * step
        if place:
            away = np.hypot(rows + y - 47.5 * step - place[0], columns + x - 47.5 * step - place[1])
            contour[:] = np.clip((place[2] - away) / step + 0.5, 0, 1)
    return contours


def test_what_a_contour_leaves_over_becomes_a_region():
    pair, alone, edge = (60, 70, 30), (200, 90, 30), (295, 200, 24)
    small, _ = ndimage.label(cones((300, 321), pair, (60, 115, 20), alone, edge)[::3, ::3] > 0)
    labels = np.repeat(np.repeat(small, 3, axis=0), 3, axis=1)
    assert labels.max() == 3
    windows = region_windows(labels, 96)
    split = split_left_over(labels, windows, drawn(windows, pair, alone, edge))
    assert split.max() == 4
    y, x = ndimage.center_of_mass(split == 4)
    assert np.hypot(y - 60, x - 117) < 3
    assert (split[split < 4] == labels[split < 4]).all()
    # A rim is no particle, what a neighbour's contour has is his, and a refused contour says nothing.
    for places in (((60, 74, 39), (200, 90, 27), edge), (None, alone, edge)):
        np.testing.assert_array_equal(split_left_over(labels, windows, drawn(windows, *places)), labels)
    # Of a long one that is outlined in the middle both ends are left over.
    ends = drawn(windows, (60, 83, 25), alone, edge)
    assert (split_left_over(labels, windows, ends) == labels).all()
    two = np.concatenate([windows, windows[:1]])
    both = drawn(two, pair, alone, edge, (60, 115, 20))
    np.testing.assert_array_equal(split_left_over(labels, two, both), labels)


def test_a_contour_with_a_waist_where_the_map_dips_is_two_particles():
    found = cones((240, 280), (70, 80, 30), (70, 122, 22), (180, 140, 40))
    labels = np.repeat(np.repeat(ndimage.label(found[::3, ::3] > 0)[0], 3, axis=0), 3, axis=1)[:240, :280]
    windows = region_windows(labels, 96)
    (both, alone) = (np.maximum(drawn(windows, a, (180, 140, 40)), drawn(windows, b, (180, 140, 40)))
                     for a, b in (((70, 80, 30), (70, 122, 22)), ((70, 80, 30), (70, 80, 30))))
    split = split_waists(found, labels, windows, both)
    assert split.max() == 3
    assert split[70, 80] != split[70, 122]
    assert split[70, 80] == split[60, 70]
    assert (split[labels == 2] == 2).all()
    # Neither a waist alone nor a dip alone is enough, and what is outlined alone has no waist.
    flat = np.where(found > 0, 0.7, 0).astype(np.float32)
    np.testing.assert_array_equal(split_waists(flat, labels, windows, both), labels)
    np.testing.assert_array_equal(split_waists(found, labels, windows, alone), labels)
    # A shoulder is no dip, on whichever side it is.
    shoulder = np.where((found > 0) & (np.indices(found.shape)[1] > 101), 0.5, found).astype(np.float32)
    for turn in (slice(None), slice(None, None, -1)):
        turned = np.ascontiguousarray(np.where(labels == 1, 1, 0)[:120, 30:150][:, turn])
        window = region_windows(turned, 96)
        middles = (50, 92) if turn == slice(None) else (69, 27)
        both_here = np.maximum(drawn(window, (70, middles[0], 30)), drawn(window, (70, middles[1], 22)))
        for picture, pieces in ((found, 2), (shoulder, 1)):
            cut = np.ascontiguousarray(picture[:120, 30:150][:, turn])
            assert split_waists(cut, turned, window, both_here).max() == pieces
    y, x = np.indices((96, 96))
    rod = ((abs(y - 47.5) < 15) & (abs(x - 47.5) < 40)).astype(np.float32)
    np.testing.assert_array_equal(split_waists(found, labels, windows, np.stack([rod, both[1]])), labels)


def test_pictures_run_from_outside_to_inside_whatever_the_contrast():
    found = cones((200, 220), (100, 110, 40))
    labels = split_regions(found)
    windows = region_windows(labels, 96)
    for contrast, offset in ((0.1, 0.0), (1.5, 0.4)):
        density = (offset + contrast * (found > 0)).astype(np.float32)
        pictures, levels = region_pictures(density, found, labels, windows, 96)
        assert pictures.shape == (1, 3, 96, 96)
        assert pictures[0, 0, 48, 48] == pytest.approx(1, abs=0.02)
        assert pictures[0, 0, 2, 48] == pytest.approx(0, abs=0.02)
        np.testing.assert_allclose(levels, [[offset, offset + contrast]], atol=1e-3)
