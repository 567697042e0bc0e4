"""The conventional ways to register a stack, for comparison: one name each, on whole frames or per region.

Each method measures the shift between two pictures with scikit-image or pystackreg; `register` applies it to
a stack against the first frame or against the previous one. None of them models what changes between energies,
and that is the point of comparing. Shifts say where the content of a frame lies: shift[k] = (y, x) of a feature
in frame k less that in frame 0, in px.

The names and their sources: absolute and relative template (cross-correlation through the Fourier transform,
Guizar-Sicairos et al. 2008, doi:10.1364/OL.33.000156); phase correlation; fast normalised cross-correlation
(Yoo & Han 2009, doi:10.1007/s00034-009-9130-7); sum of squared differences; mutual information (the
normalised one of Studholme et al. 1999, doi:10.1016/S0031-3203(98)00091-0); SIFT (Lowe 2004); ORB (Rublee et
al. 2011); optical flow TV-L1 (Zach et al. 2007) and iterative Lucas-Kanade (Le Besnerais & Champagnat 2005);
StackReg (Thevenaz et al. 1998, doi:10.1109/83.650848); total variation of the difference map (Xiao et al.
2022, J. Synchrotron Rad. 29, 1085).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from skimage.feature import ORB, SIFT, match_descriptors, match_template
from skimage.filters import threshold_otsu, window
from skimage.measure import ransac
from skimage.metrics import normalized_mutual_information
from skimage.registration import optical_flow_ilk, optical_flow_tvl1, phase_cross_correlation
from skimage.transform import EuclideanTransform, downscale_local_mean

#: Measures where `moving` lies relative to `reference`: (y, x) in px, or None where it finds nothing.
Measure = Callable[[np.ndarray, np.ndarray], np.ndarray | None]

#: Shifts of up to this many px between the two pictures are looked for where a method searches.
REACH_PX = 24
_UPSAMPLING = 50
_COARSE = 4


@dataclass(frozen=True)
class Baseline:
    """A method: how it measures a shift, and the frame that it is measured from by default."""

    measure: Measure
    reference: str


def register(stack: np.ndarray, method: str, reference: str | None = None) -> np.ndarray:
    """Measure the shift of every frame of a stack by one conventional method.

    Parameters
    ----------
    stack : array, shape (frame, y, x)
        Optical density or any other picture; read frame by frame, so that a lazy array will do. NaN is
        filled with the frame's median.
    method : str
        A name in `METHODS`.
    reference : {"first", "previous"}, optional
        Whether a frame is compared with the first one, or with the one before it and the shifts are added
        up; by default what is customary for the method (`METHODS[method].reference`).

    Returns
    -------
    shift : array, shape (frame, 2), px
        (y, x) of the content less that in frame 0. A frame in which the method finds nothing keeps the shift
        of the frame before.

    Raises
    ------
    ValueError
        If the method or the reference is unknown, or the stack has other than three dimensions or no frame.
    ImportError
        If the method is StackReg and pystackreg is not installed.
    """
    if method not in METHODS:
        msg = f"method is {method!r}; need one of {', '.join(METHODS)}."
        raise ValueError(msg)
    reference = reference or METHODS[method].reference
    if reference not in ("first", "previous"):
        msg = f"reference is {reference!r}; need 'first' or 'previous'."
        raise ValueError(msg)
    if len(stack.shape) != 3 or not stack.shape[0]:
        msg = f"stack has shape {tuple(stack.shape)}; need (frame, y, x) with at least one frame."
        raise ValueError(msg)
    low, high = _range(stack)
    before = first = _picture(stack[0], low, high)
    shift = np.zeros((stack.shape[0], 2))
    for k in range(1, stack.shape[0]):
        now = _picture(stack[k], low, high)
        measured = METHODS[method].measure(first if reference == "first" else before, now)
        if measured is None:
            shift[k] = shift[k - 1]
        else:
            shift[k] = measured + (shift[k - 1] if reference == "previous" else 0)
        before = now
    return shift


def register_rois(
    stack: np.ndarray, centres: np.ndarray, half: int, method: str, reference: str | None = None
) -> np.ndarray:
    """Measure the shift of every region of a stack by one conventional method.

    The window of a region stays where the region is in the first frame, so `half` must leave room for the
    motion.

    Parameters
    ----------
    stack : array, shape (frame, y, x)
    centres : array, shape (roi, 2), px
        (y, x) of every region in the first frame.
    half : int, px
        The window reaches this far to each side of the centre's pixel, less where the frame ends.
    method, reference
        As for `register`.

    Returns
    -------
    shift : array, shape (roi, frame, 2), px
        (y, x) of the region less that in frame 0.

    Raises
    ------
    ValueError
        As `register`, or if a centre lies outside the frame.
    """
    centres = np.asarray(centres, dtype=np.float64)
    shifts = np.zeros((len(centres), stack.shape[0], 2))
    for shift, centre in zip(shifts, centres, strict=True):
        if not ((centre >= -0.5) & (centre <= np.array(stack.shape[1:]) - 0.5)).all():
            msg = f"centre {centre.tolist()} lies outside frames of shape {tuple(stack.shape[1:])}; need one inside."
            raise ValueError(msg)
        rows, columns = (slice(max(0, round(c) - half), round(c) + half + 1) for c in centre.tolist())
        shift[:] = register(stack[:, rows, columns], method, reference)
    return shifts


def _range(stack: np.ndarray) -> tuple[float, float]:
    """Low and high value of some frames, so that one scale holds for all and changes of contrast stay."""
    some = np.linspace(0, stack.shape[0] - 1, min(8, stack.shape[0])).round().astype(int)
    values = np.concatenate([np.asarray(stack[k], dtype=np.float32).ravel() for k in some])
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, [0.5, 99.5]) if values.size else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))


def _picture(frame: np.ndarray, low: float, high: float) -> np.ndarray:
    """Frame on a scale of about 0 to 1 without gaps."""
    frame = np.asarray(frame, dtype=np.float64)
    valid = np.isfinite(frame)
    if not valid.all():
        frame = np.where(valid, frame, np.median(frame[valid]) if valid.any() else low)
    return (frame - low) / (high - low)


def _fourier(normalization: str | None) -> Measure:
    """Make a method of a correlation through the Fourier transform.

    Mean and rim are taken off, since they stay where they are and would draw every shift towards zero.
    """

    def measure(reference: np.ndarray, moving: np.ndarray) -> np.ndarray | None:
        if np.ptp(reference) == 0 or np.ptp(moving) == 0:
            return None
        rim = window(("tukey", 0.3), reference.shape)
        pair = [(picture - picture.mean()) * rim for picture in (reference, moving)]
        return -phase_cross_correlation(*pair, upsample_factor=_UPSAMPLING, normalization=normalization)[0]

    return measure


def _margin(shape: tuple[int, ...]) -> int:
    """Rim of the reference that is left out so that shifted pictures still cover the rest."""
    return min(REACH_PX, min(shape) // 4)


def _normalised_correlation(reference: np.ndarray, moving: np.ndarray) -> np.ndarray | None:
    margin = _margin(reference.shape)
    template = reference[margin:-margin, margin:-margin] if margin else reference
    if np.ptp(template) == 0:
        return None
    score = match_template(moving, template)
    peak = np.unravel_index(np.argmax(score), score.shape)
    return np.array([p + _parabola(score, peak, axis) for axis, p in enumerate(peak)]) - margin


def _parabola(score: np.ndarray, peak: tuple, axis: int) -> float:
    """Place of the top of a parabola through a peak and its two neighbours, -0.5 to 0.5."""
    if not 0 < peak[axis] < score.shape[axis] - 1:
        return 0.0
    line = np.moveaxis(score, axis, 0)[(slice(None), *peak[:axis], *peak[axis + 1 :])]
    left, middle, right = line[peak[axis] - 1 : peak[axis] + 2]
    bend = left - 2 * middle + right
    return float(0.5 * (left - right) / bend) if np.isfinite(bend) and bend < 0 else 0.0


def _searched(cost: Callable[[np.ndarray, np.ndarray], float]) -> Measure:
    """Make a method of a cost of two pictures: the shift of least cost.

    All whole shifts within reach are tried on pictures that are `_COARSE` times smaller, then a walk downhill over
    the full picture's whole shifts, then a parabola through the least cost and its neighbours. No picture is
    interpolated: interpolation smooths noise, which by itself lowers such costs between the pixels.
    """

    def measure(reference: np.ndarray, moving: np.ndarray) -> np.ndarray:
        small = [downscale_local_mean(p, (_COARSE, _COARSE)) for p in (reference, moving)]
        margin = min(REACH_PX // _COARSE, min(small[0].shape) // 4)
        steps = range(-margin, margin + 1)
        place = _cost_at(cost, *small, margin)
        start = min(((dy, dx) for dy in steps for dx in steps), key=place)
        place = _cost_at(cost, reference, moving, _COARSE * margin)
        best = (_COARSE * start[0], _COARSE * start[1])
        while True:
            around = [[(best[0] + i, best[1] + j) for j in (-1, 0, 1)] for i in (-1, 0, 1)]
            least = min((p for line in around for p in line), key=place)
            if place(least) >= place(best):
                break
            best = least
        score = -np.array([[place(p) for p in line] for line in around])
        return np.array([b + _parabola(score, (1, 1), axis) for axis, b in enumerate(best)])

    return measure


def _cost_at(
    cost: Callable[[np.ndarray, np.ndarray], float], reference: np.ndarray, moving: np.ndarray, margin: int
) -> Callable[[tuple[int, int]], float]:
    """Cost as a function of a whole shift (y, x), remembered; infinite beyond the margin."""
    height, width = (n - 2 * margin for n in reference.shape)
    template = reference[margin : margin + height, margin : margin + width]

    @functools.cache
    def at(shift: tuple[int, int]) -> float:
        top, left = margin + shift[0], margin + shift[1]
        if max(abs(shift[0]), abs(shift[1])) > margin:
            return np.inf
        return cost(template, moving[top : top + height, left : left + width])

    return at


def _squared_difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.mean((one - other) ** 2))


def _lost_information(one: np.ndarray, other: np.ndarray) -> float:
    return -float(normalized_mutual_information(one, other, bins=32))


def _variation_of_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Total variation of the difference map, per pixel."""
    return float(np.hypot(*np.gradient(one - other)).mean())


def _features(make: Callable[[], SIFT | ORB]) -> Measure:
    """Make a method of a feature detector: the median shift of the matches that one rigid motion explains."""
    last: list[tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]] = []

    def features(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        detector = make()
        try:
            detector.detect_and_extract(np.clip(picture, 0, 1))
        except RuntimeError:  # scikit-image's way to say that there is no feature
            return None
        return getattr(detector, "positions", detector.keypoints), detector.descriptors  # SIFT's between the pixels

    def measure(reference: np.ndarray, moving: np.ndarray) -> np.ndarray | None:
        # The same reference comes again and again, and its features take as long as those of the moving picture.
        if not last or last[0][0] is not reference:
            last[:] = [(reference, features(reference))]
        pair = (last[0][1], features(moving))
        if pair[0] is None or pair[1] is None or min(len(descriptors) for _, descriptors in pair) < 3:
            return None
        (here, mine), (there, theirs) = pair
        pairs = match_descriptors(mine, theirs, cross_check=True, max_ratio=0.9)
        if len(pairs) < 3:
            return None
        here, there = here[pairs[:, 0]], there[pairs[:, 1]]
        _, agree = ransac((here, there), EuclideanTransform, 3, 1.5, max_trials=200, rng=0)
        if agree is None or agree.sum() < 3:
            return None
        return np.median((there - here)[agree], axis=0)

    return measure


def _flow(method: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Measure:
    """Make a method of an optical flow: its median where the reference is bright."""

    def measure(reference: np.ndarray, moving: np.ndarray) -> np.ndarray | None:
        if np.ptp(reference) == 0:
            return None
        flow = method(reference, moving)
        return np.median(flow[:, reference > threshold_otsu(reference)], axis=1)

    return measure


def _stackreg(reference: np.ndarray, moving: np.ndarray) -> np.ndarray:
    try:
        from pystackreg import StackReg
    except ImportError as error:
        msg = "StackReg needs the package pystackreg, which is not installed. Run: pip install pystackreg"
        raise ImportError(msg) from error
    matrix = StackReg(StackReg.TRANSLATION).register(reference, moving)
    return np.array([matrix[1, 2], matrix[0, 2]])


#: Every method by name.
METHODS: dict[str, Baseline] = {
    "absolute-template": Baseline(_fourier(None), "first"),
    "relative-template": Baseline(_fourier(None), "previous"),
    "phase-correlation": Baseline(_fourier("phase"), "first"),
    "normalised-cross-correlation": Baseline(_normalised_correlation, "first"),
    "squared-difference": Baseline(_searched(_squared_difference), "first"),
    "mutual-information": Baseline(_searched(_lost_information), "first"),
    "sift": Baseline(_features(lambda: SIFT()), "first"),
    "orb": Baseline(_features(lambda: ORB(n_keypoints=300, fast_threshold=0.02)), "first"),
    "optical-flow-tvl1": Baseline(_flow(optical_flow_tvl1), "previous"),
    "optical-flow-ilk": Baseline(_flow(optical_flow_ilk), "previous"),
    "stackreg": Baseline(_stackreg, "first"),
    "variation-of-difference": Baseline(_searched(_variation_of_difference), "previous"),
}
