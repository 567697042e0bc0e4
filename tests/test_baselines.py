import sys

import dask.array as da
import numpy as np
import pytest

from xreg import baselines

#: What each method reaches (px, RMS) on a clean scene; ORB finds whole pixels only.
CLEAN = {
    "absolute-template": 0.03, "relative-template": 0.03, "phase-correlation": 0.1,
    "normalised-cross-correlation": 0.06, "squared-difference": 0.06, "mutual-information": 0.15, "sift": 0.06,
    "orb": 0.4, "optical-flow-tvl1": 0.05, "optical-flow-ilk": 0.05, "stackreg": 0.03,
    "variation-of-difference": 0.1,
}
#: Methods that do not mind a change of contrast and offset.
CONTRAST_BLIND = ("absolute-template", "normalised-cross-correlation", "mutual-information", "sift")


def scene(frames=4, contrast=1.0, noise=0.01, shape=(80, 84), seed=0, size=(2, 5)):
    """Smooth blobs, drawn analytically at known shifts; contrast and offset change over the series."""
    rng = np.random.default_rng(seed)
    centre, size = rng.uniform(22, 60, (14, 2)), rng.uniform(*size, 14)
    height = rng.uniform(0.1, 0.5, 14)
    shift = np.concatenate([[[0, 0]], np.cumsum(rng.uniform(-1.5, 1.5, (frames - 1, 2)), axis=0)])
    y, x = np.mgrid[: shape[0], : shape[1]]
    stack = []
    for k, (dy, dx) in enumerate(shift):
        square = (y - dy - centre[:, 0, None, None]) ** 2 + (x - dx - centre[:, 1, None, None]) ** 2
        blobs = (height[:, None, None] * np.exp(-square / (2 * size[:, None, None] ** 2))).sum(axis=0)
        gain = 1 + (contrast - 1) * k / (frames - 1)
        stack.append(gain * blobs + 0.2 * (gain - 1) + rng.normal(0, noise, shape))
    return np.array(stack), shift


def rms(error):
    return np.sqrt(np.mean(error**2))


def need(method):
    if method == "stackreg":
        pytest.importorskip("pystackreg")


def test_every_method_has_a_tolerance():
    assert set(CLEAN) == set(baselines.METHODS)


@pytest.mark.parametrize("method", CLEAN)
def test_planted_shifts_come_back(method):
    need(method)
    # Phase correlation weighs all frequencies alike, and in a smooth scene most of them hold only noise.
    stack, shift = scene(size=(0.7, 1.2)) if method == "phase-correlation" else scene()
    found = baselines.register(stack, method)
    assert found.shape == shift.shape
    assert (found[0] == 0).all()
    assert rms(found - shift) < CLEAN[method]


@pytest.mark.parametrize("method", CONTRAST_BLIND)
def test_contrast_does_not_disturb_some(method):
    stack, shift = scene(contrast=3.0)
    assert rms(baselines.register(stack, method) - shift) < CLEAN[method]


def test_contrast_misleads_squared_differences():
    stack, shift = scene(contrast=3.0)
    assert rms(baselines.register(stack, "squared-difference") - shift) > 0.5


def test_reference_can_be_chosen():
    stack, shift = scene()
    for reference in ("first", "previous"):
        found = baselines.register(stack, "normalised-cross-correlation", reference)
        assert rms(found - shift) < 0.06


@pytest.mark.parametrize("method", CLEAN)
def test_blank_frame_and_gaps_are_survived(method):
    need(method)
    stack, shift = scene(frames=3)
    stack[0, :2] = np.nan
    found = baselines.register(np.concatenate([stack[:2], stack[1:2] * 0]), method)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= 2 * baselines.REACH_PX + np.abs(shift).max()


def test_method_that_finds_nothing_keeps_the_shift_before():
    stack, _ = scene(frames=2)
    found = baselines.register(np.concatenate([stack, np.zeros_like(stack[:1])]), "sift")
    assert (found[2] == found[1]).all()


def test_regions_move_on_their_own():
    left, shift = scene(frames=3, seed=1)
    right, other = scene(frames=3, seed=2)
    stack = np.concatenate([left, right], axis=2)
    centres = np.array([[40.0, 41.0], [40.0, 126.0]])
    found = baselines.register_rois(stack, centres, 38, "normalised-cross-correlation")
    assert found.shape == (2, 3, 2)
    assert rms(found - np.stack([shift, other])) < 0.05


def test_lazy_stacks_give_the_same():
    stack, _ = scene(frames=3)
    lazy = da.from_array(stack, chunks=(1, -1, -1))
    np.testing.assert_array_equal(
        baselines.register(lazy, "absolute-template"), baselines.register(stack, "absolute-template")
    )


def test_stackreg_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pystackreg", None)
    stack, _ = scene(frames=2)
    with pytest.raises(ImportError, match=r"StackReg needs the package pystackreg.*pip install pystackreg"):
        baselines.register(stack, "stackreg")


def test_errors_say_what_to_do():
    stack, _ = scene(frames=2)
    with pytest.raises(ValueError, match="method is 'surf'; need one of absolute-template, relative-template"):
        baselines.register(stack, "surf")
    with pytest.raises(ValueError, match="reference is 'mean'; need 'first' or 'previous'"):
        baselines.register(stack, "sift", "mean")
    with pytest.raises(ValueError, match=r"stack has shape \(80, 84\); need \(frame, y, x\) with at least one frame"):
        baselines.register(stack[0], "sift")
    with pytest.raises(ValueError, match=r"centre \[90.0, 3.0\] lies outside frames of shape \(80, 84\)"):
        baselines.register_rois(stack, np.array([[90.0, 3.0]]), 10, "sift")
