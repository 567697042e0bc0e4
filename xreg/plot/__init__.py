"""Figures of a result, one function each: a Dataset in, a matplotlib Figure out.

The figures are made without pyplot, so nothing is registered globally and no window opens: save one with
`figure.savefig(path)`. Colours belong to particles and are the same in every figure. Each function reads only
what it draws.
"""

from xreg.plot.frames import plot_differences, plot_frame, plot_nonrigid, plot_tracks
from xreg.plot.maps import mean_spectrum, plot_edge_histograms, plot_edge_maps, plot_spectra
from xreg.plot.motion import plot_motion, plot_strain, plot_trajectories, plot_vibration
from xreg.plot.parts import drawn_particles, drawn_scans, first_last_frames, particle_colours

__all__ = [
    "drawn_particles",
    "drawn_scans",
    "first_last_frames",
    "mean_spectrum",
    "particle_colours",
    "plot_differences",
    "plot_edge_histograms",
    "plot_edge_maps",
    "plot_frame",
    "plot_motion",
    "plot_nonrigid",
    "plot_spectra",
    "plot_strain",
    "plot_tracks",
    "plot_trajectories",
    "plot_vibration",
]
