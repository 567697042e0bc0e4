"""Settings of the phantom; every distortion can be switched on alone."""

import reprlib
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real

import numpy as np

from xreg.synthetic.spectra import NI_K_EDGE, ni_energies

#: Distortions that `PhantomConfig.only` can switch on alone.
DISTORTIONS = (
    "jitter", "walk", "jumps", "deformation", "texture", "crackle", "illumination", "flat_drift", "noise",
    "hot_pixels", "blur", "fringe", "substrate", "magnification", "bad_frames",
)
#: What a pixel of the simulated detector can count to.
FULL_WELL = 65535
_RANGES = ("radius", "edge_step", "elongation", "profile")
_MANY = ("shape", "energies", *_RANGES)
_ABOVE_ZERO = ("shape", "energies", "radius", "edge_step", "elongation", "counts", "exposure", "flat_exposure",
               "flats_per_energy", "pixel_size_nm", "reference_energy")
_WHOLE = ("shape", "n_scans", "n_particles", "touching", "overlapping", "cut", "flats_per_energy", "n_darks", "seed")
_SHARES = ("facets", "hot_pixels", "bad_frames")
#: In turn: which settings (none named: all), what must hold for all of a setting's numbers, and what is asked for.
_RULES = (
    ((), lambda n: isinstance(n, Real | np.bool) and 0 <= n < np.inf, "a number that is not below zero"),
    (_ABOVE_ZERO, lambda n: n > 0, "more than zero"),
    (_WHOLE, lambda n: isinstance(n, Integral), "whole numbers"),
    (_SHARES, lambda n: n <= 1, "a share from 0 to 1"),
    (("energies", "reference_energy"), lambda n: n >= 100, "eV, at least 100: multiply keV by 1000"),
)


@dataclass(frozen=True)
class PhantomConfig:
    """All of the phantom's settings. Lengths in px at the reference energy, optical densities in nepers.

    An amplitude of zero switches its distortion off; `only` keeps a single one. ValueError names what cannot be.
    """

    shape: tuple[int, int] = (460, 460)
    n_scans: int = 2
    energies: tuple[float, ...] = tuple(ni_energies())
    n_particles: int = 9
    radius: tuple[float, float] = (18.0, 42.0)
    edge_step: tuple[float, float] = (0.35, 0.8)     # optical density of the edge at a particle's thickest point
    irregularity: float = 0.10                       # relative roughness of outlines
    facets: float = 0.3                              # probability that a particle is faceted (single crystal)
    elongation: tuple[float, float] = (1.0, 1.0)     # factor by which length over width is raised, range
    profile: tuple[float, float] = (0.35, 0.7)       # exponent of the thickness profile: 0 a plate, 0.5 a sphere
    inner_texture: float = 0.12                      # relative thickness variations inside a particle
    touching: int = 1                                # how many particles touch an earlier one
    overlapping: int = 0                             # how many overlap an earlier one by up to 20 % of their diameter
    cut: int = 0                                     # how many are cut by the field of view
    counts: float = 9000.0                           # mean open-beam counts per pixel and sample exposure
    exposure: float = 0.5                            # s
    flat_exposure: float = 0.3                       # s
    flats_per_energy: int = 2
    n_darks: int = 4
    jitter: float = 0.5                              # px, standard deviation of the stage's frame-to-frame shake
    walk: float = 0.12                               # px per sqrt(frame), the stage's random walk
    jumps: float = 1.0                               # stage jumps per scan, each of up to 12 px
    deformation: float = 4.0                         # px, amplitude of each particle's smooth own motion
    texture: float = 0.03                            # optical density, background fixed to the stage
    crackle: float = 0.05                            # relative depth of the illumination's crackle pattern
    crackle_shift: float = 0.4                       # px between a reference's and the sample's crackle
    illumination: float = 0.5                        # fall of the capillary's spot towards the corners
    flat_drift: float = 0.015                        # relative drift and tilt between reference and sample
    noise: bool = True                               # photon noise
    read_noise: float = 3.0                          # counts
    dark_level: float = 100.0                        # counts
    hot_pixels: float = 1e-4                         # fraction of pixels
    blur: float = 0.9                                # px, standard deviation of the zone plate's point spread
    fringe: float = 0.0                              # strength of the Fresnel fringe along edges
    substrate: float = 0.4                           # optical density of cell and substrate at the edge
    magnification: bool = False                      # whether pixel size grows with energy, as at SSRL 6-2C
    bad_frames: float = 0.0                          # fraction of frames that are blank, blurred or corrupt
    pixel_size_nm: float = 31.2
    reference_energy: float = NI_K_EDGE
    seed: int = 0

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            many = f.name in _MANY and isinstance(value, tuple | list | np.ndarray)
            numbers = tuple(value) if many else (value,)
            for names, holds, wanted in _RULES:
                if (not names or f.name in names) and not all(map(holds, numbers)):
                    msg = f"{f.name} is {reprlib.repr(value)}; need {wanted}."
                    raise ValueError(msg)
            if f.name in _MANY:
                # Settings are compared and looked up; lists and arrays cannot be.
                object.__setattr__(self, f.name, numbers)
        for name in ("shape", *_RANGES):
            numbers = getattr(self, name)
            if len(numbers) != 2:
                msg = f"{name} is {reprlib.repr(numbers)}; need two numbers, such as {getattr(PhantomConfig, name)}."
                raise ValueError(msg)
            low, high = numbers
            if name in _RANGES and low > high:
                msg = f"{name} is from {low:g} to {high:g}; need the smaller number first."
                raise ValueError(msg)
        if not self.n_frames:
            msg = f"the phantom has {self.n_scans} scans of {len(self.energies)} energies; need at least one of each."
            raise ValueError(msg)
        if self.counts + self.dark_level > FULL_WELL:
            msg = (f"counts {self.counts:g} and dark_level {self.dark_level:g} are more than the simulated detector "
                   f"counts to; need at most {FULL_WELL} together.")
            raise ValueError(msg)

    @classmethod
    def only(cls, *names: str, **settings) -> "PhantomConfig":
        """A phantom without distortions but for the named ones (see `DISTORTIONS`).

        Raises
        ------
        ValueError
            If a name is not a distortion.
        """
        unknown = sorted(set(names) - set(DISTORTIONS))
        if unknown:
            msg = f"unknown distortions {unknown}; choose from {', '.join(DISTORTIONS)}."
            raise ValueError(msg)
        defaults = cls()
        off = {n: type(getattr(defaults, n))(0) for n in DISTORTIONS if n not in names}
        if "noise" not in names:
            off["read_noise"] = 0.0
        if "bad_frames" in names:
            off["bad_frames"] = 0.05
        if "fringe" in names:
            off["fringe"] = 0.3
        if "magnification" in names:
            off["magnification"] = True
        return replace(defaults, **{**off, **settings})

    @property
    def n_frames(self) -> int:
        """Number of frames, scans times energies."""
        return self.n_scans * len(self.energies)

    def to_dict(self) -> dict[str, object]:
        """Settings as plain values, for a store's attributes."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "energies"}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}
