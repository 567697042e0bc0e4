"""Separating background and particles where that is hard: particles that overlap, and particles that were missed."""

import numpy as np
from scipy import ndimage

from xreg.kernels.layers import locate_in_frame, paint
from xreg.kernels.separation import make_layers

SHAPE, HALF = (170, 180), 32
CONTRAST = np.repeat([0.25, 1.0], 6)
N = len(CONTRAST)
NONE = np.zeros((2, N), bool)


def smooth(rng, shape, length, spread):
    noise = ndimage.gaussian_filter(rng.normal(size=shape), length)
    return spread * noise / noise.std()


def scene(place, stage, seed=0):
    """Frames of textured discs at places (particles, n, 2) in front of a textured background; the discs' outlines."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-HALF:HALF + 1, -HALF:HALF + 1]
    outline = np.stack([np.hypot(y, x / (1 + 0.2 * p)) < 17 + 2 * p for p in range(len(place))])
    pictures = [ndimage.gaussian_filter(o * (0.5 + smooth(rng, o.shape, 3, 0.05)), 1) for o in outline]
    wide = smooth(rng, (SHAPE[0] + 40, SHAPE[1] + 40), 2.5, 0.03)
    frames = np.empty((N, *SHAPE), np.float32)
    for k in range(N):
        frame = ndimage.shift(wide, stage[k], order=3)[20:-20, 20:-20] + rng.normal(0, 0.01, SHAPE)
        for picture, centre in zip(pictures, place[:, k], strict=True):
            first = np.floor(centre).astype(int) - HALF
            box = tuple(slice(a, a + 2 * HALF + 1) for a in first)
            frame[box] += CONTRAST[k] * ndimage.shift(picture, centre - first - HALF, order=3)
        frames[k] = frame
    return frames, outline


def located(frames, outline, start, guessed, stage, rounds, doubtful=None):
    doubtful = np.zeros_like(guessed) if doubtful is None else doubtful
    layers = make_layers(frames, start, guessed, doubtful, stage, np.ones(N), outline, rounds)
    unsure = guessed | doubtful
    fits = [locate_in_frame(frames[k], start[:, k], unsure[:, k], stage[k], 1.0, layers) for k in range(N)]
    return layers, np.stack([f.position for f in fits], axis=1)


def test_particles_that_overlap_while_they_pass_each_other_are_told_apart():
    rng = np.random.default_rng(1)
    place = np.array([[80.0, 70.0], [84.0, 104.0]])[:, None] + np.zeros((1, N, 1))
    place[0] += np.stack([1.8 * np.sin(np.arange(N)), np.linspace(-3, 3, N)], axis=-1)
    stage = rng.normal(0, 1, (N, 2))
    frames, outline = scene(place, stage)
    assert (paint(SHAPE, place[:1, -1], 1.0, outline[:1]) & paint(SHAPE, place[1:, -1], 1.0, outline[1:])).sum() > 30
    rough = place + rng.normal(0, 0.3, place.shape)
    # Contours that touch pull each other's centres of mass along.
    rough += 0.1 * (place[::-1] - place[::-1].mean(1, keepdims=True))
    _, position = located(frames, outline, rough, np.zeros((2, N), bool), stage, 5)
    error = position - place
    error -= error.mean(axis=1, keepdims=True)
    assert np.sqrt((error**2).sum(-1).mean()) < 0.06


def test_a_doubtful_place_is_looked_for_with_a_picture_from_the_others():
    rng = np.random.default_rng(4)
    place = np.array([[60.0, 60.0], [100.0, 125.0]])[:, None] + rng.normal(0, 0.7, (2, N, 2))
    stage = rng.normal(0, 1, (N, 2))
    frames, outline = scene(place, stage)
    start, guessed, doubtful = place + rng.normal(0, 0.3, place.shape), np.zeros((2, N), bool), np.zeros((2, N), bool)
    start[1, :6] += [5.0, -3.0]                  # of low contrast, and detected with something else
    doubtful[1, :6] = True

    def worst(doubtful):
        position = located(frames, outline, start, guessed, stage, 3, doubtful)[1][1]
        return np.abs(position - place[1] - np.nanmean((position - place[1])[6:], axis=0)).max()

    assert worst(doubtful) < 0.25
    assert not worst(guessed) < 1


def test_a_particle_that_was_missed_leaves_no_ghost_in_the_background():
    rng = np.random.default_rng(2)
    place = np.array([[60.0, 60.0], [100.0, 125.0]])[:, None] + rng.normal(0, 0.7, (2, N, 2))
    stage = rng.normal(0, 1, (N, 2))
    frames, outline = scene(place, stage)
    guessed = np.zeros((2, N), bool)
    guessed[1, :6] = True                        # of low contrast, and not detected there
    layers, position = located(frames, outline, place + rng.normal(0, 0.3, place.shape), guessed, stage, 3)
    middle = np.rint(place[1].mean(0) - stage.mean(0)).astype(int) + layers.margin
    behind = layers.background[middle[0] - 8:middle[0] + 9, middle[1] - 8:middle[1] + 9].mean()
    beside = layers.background[middle[0] - 8:middle[0] + 9, middle[1] - 50:middle[1] - 33].mean()
    assert abs(behind - beside) < 0.2 * CONTRAST[0] * 0.5
    error = position[1] - place[1]
    assert np.abs(error - error.mean(0)).max() < 0.3


def test_what_the_frame_cuts_a_little_is_separated_like_the_others():
    rng = np.random.default_rng(6)
    place = np.array([[60.0, 60.0], [100.0, 125.0]])[:, None] + rng.normal(0, 0.3, (2, N, 2))
    stage = rng.normal(0, 0.4, (N, 2))
    frames, outline = scene(place, stage)
    start = place + rng.normal(0, 0.2, place.shape)
    start[1, :6] += [0.0, 3.0]
    frames[:, 113:] = np.nan                     # the second one reaches to row 119
    layers = make_layers(frames, start, NONE, NONE, stage, np.ones(N), outline)
    fits = [locate_in_frame(frames[k], start[:, k], NONE[:, k], stage[k], 1.0, layers) for k in range(N)]
    error = np.stack([f.position[1] - place[1, k] for k, f in enumerate(fits)])
    assert np.abs(error - np.nanmean(error[6:], axis=0)).max() < 0.4
