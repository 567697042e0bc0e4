"""Spectrum of a motion that is sampled frame by frame, with gaps and at uneven times."""

import numpy as np
from scipy import signal

#: Frequencies per independent one, so that a vibration between two of them is not lost.
OVERSAMPLED = 4
#: Independent frequencies on either side from which the level of the noise is taken, and fewest towards the ends.
_AROUND, _FEWEST = 25, 4
#: Bytes of the largest table of phases that is made at once.
_TABLE = 2**25
#: Frequencies of a spectrum at most: those of half a million frames.
_MOST = 2**20


def frequencies(when: np.ndarray) -> np.ndarray:
    """Frequencies at which a record sampled at some times can be asked.

    Parameters
    ----------
    when : array, shape (n,)
        Times (s, or frame numbers), ascending.

    Returns
    -------
    array, shape (m,)
        Cycles per unit of `when`: from one cycle per record to half the usual sampling rate, in steps of a quarter
        cycle per record; empty for fewer than four times.

    Raises
    ------
    ValueError
        If the record is so much longer than its usual step that these would be more than a million: a time is wrong, or
        a pause is too long.
    """
    if len(when) < 4:
        return np.zeros(0)
    step = float(np.median(np.diff(when)))
    record = float(when[-1] - when[0]) + step
    count = np.floor(OVERSAMPLED * record / (2 * step))
    if not count <= _MOST:
        msg = (f"times run over {record:g} in steps of {step:g}, which calls for {count:.0f} frequencies; need at most "
               f"{_MOST}. Check the first and the last time, or leave out what lies behind a long pause.")
        raise ValueError(msg)
    return np.arange(OVERSAMPLED, int(count) + 1) / (OVERSAMPLED * record)


def periodogram(when: np.ndarray, motion: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """Lomb-Scargle power of a motion, less its mean and linear drift.

    Parameters
    ----------
    when : array, shape (n,)
        Times, ascending.
    motion : array, shape (n,)
        NaN where unknown: such samples are left out, none are made up.
    frequency : array, shape (m,)
        Cycles per unit of `when`, positive.

    Returns
    -------
    array, shape (m,)
        Power (square of the motion's unit): its mean is the variance for white noise, and a quarter of the number of
        samples times the squared amplitude at the frequency of a sine. NaN for fewer than four known samples.

    References
    ----------
    Lomb 1976, doi:10.1007/BF00648343; Scargle 1982, doi:10.1086/160554.
    """
    known = np.isfinite(motion) & np.isfinite(when)
    if known.sum() < 4 or not len(frequency):
        return np.full(len(frequency), np.nan)
    t, x = when[known] - when[known][0], motion[known]
    x = x - np.polynomial.Polynomial.fit(t, x, 1)(t)
    if not x.any():
        return np.zeros(len(frequency))
    pieces = max(1, int(np.ceil(8 * len(t) * len(frequency) / _TABLE)))
    return np.concatenate([signal.lombscargle(t, x, 2 * np.pi * f) for f in np.array_split(frequency, pieces)])


def false_alarm_power(power: np.ndarray, probability: float) -> np.ndarray:
    """Power that noise alone exceeds, anywhere in a spectrum, with the given probability.

    The level of the noise is the running median of the spectrum, because the motion of a stage is no white noise: it
    wanders. Powers of noise about their mean are exponentially distributed (Scargle 1982), with the median at ln 2 of
    it; their ratio to a level that is itself estimated from n powers has the heavier tail (1 + z / k)^-k, with
    k = n ln(2)^2 for a median. Every frequency of the oversampled spectrum counts as a trial, a little too many.

    Parameters
    ----------
    power : array, shape (m,)
        From `periodogram`, at `frequencies`.
    probability : float
        Of a false alarm, for all frequencies together.

    Returns
    -------
    array, shape (m,)
        Highest at both ends of the spectrum, where the level is known least. NaN where `power` is.
    """
    if not np.isfinite(power).any():
        return np.full(len(power), np.nan)
    log = np.log(np.maximum(power, 1e-12 * power.max() + 1e-300))
    level, used = np.empty(len(log)), np.empty(len(log))
    reach = _AROUND * OVERSAMPLED
    for k in range(len(log)):
        # As many on one side as on the other, so that a slope does not shift the median, but never just a few.
        near = max(min(k, len(log) - 1 - k, reach), _FEWEST * OVERSAMPLED)
        part = log[max(k - near, 0) : k + near + 1]
        level[k], used[k] = np.exp(np.median(part)) / np.log(2), len(part) / OVERSAMPLED
    freedom = np.maximum(used, 1) * np.log(2) ** 2
    single = -np.expm1(np.log1p(-probability) / len(power))
    return level * freedom * np.expm1(-np.log(single) / freedom)
