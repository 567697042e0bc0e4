"""The phantom: raw detector counts of a deforming electrode whose every truth is known analytically.

A `Phantom` draws a handful of particles once, from a seed. Everything else is computed per frame on request: thickness
and chemistry are analytic functions of a particle's own coordinates, evaluated at the particle's exact sub-pixel place
in that frame, so nothing is ever resampled, and 6435 frames need no more memory than one.

The order of the optics: particles and background texture absorb (`optical_density`), the zone plate blurs the beam
behind them, the capillary's illumination with its crackle pattern is multiplied in, and the detector adds photon
noise, read noise, a dark level and hot pixels (`counts`). Open-beam references (`flat`) see another illumination than
the sample, as real ones do.
"""

from xreg.synthetic.config import DISTORTIONS as DISTORTIONS
from xreg.synthetic.config import PhantomConfig as PhantomConfig
from xreg.synthetic.phantom import Phantom as Phantom
from xreg.synthetic.spectra import edge_spectrum as edge_spectrum
from xreg.synthetic.spectra import ni_energies as ni_energies
