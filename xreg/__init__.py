"""Particle-by-particle registration of operando X-ray microscopy stacks, out of core on Dask.

Follow one particle from raw counts to its deformation by opening the stages in the order of the data: `normalize`,
`detect`, `refine`, `link`, `locate`, `smooth`, `align`, `xanes`, `motion`. `register` runs them all out of core.
"""

from importlib import import_module

#: Public name -> the module it lives in. Importing xreg loads none of them, so that it costs neither torch nor dask.
_PUBLIC = {
    "open_frames": "store",
    "open_result": "result",
    "normalize_frames": "normalize",
    "detect_rois": "detect",
    "refine_rois": "refine",
    "measure_sharpness": "sharpness",
    "reject_blurred": "sharpness",
    "link_rois": "link",
    "gather_tracks": "link",
    "outline_particles": "align",
    "propose_particles": "locate",
    "locate_particles": "locate",
    "confirm_particles": "locate",
    "smooth_tracks": "smooth",
    "align_stacks": "align",
    "fit_edges": "xanes",
    "normalize_stack": "xanes",
    "fit_references": "chemistry",
    "oxidation_state": "chemistry",
    "summarize_particles": "chemistry",
    "decompose_spectra": "explore",
    "cluster_spectra": "explore",
    "calibrate_energy": "kernels.spectra",
    "measure_motion": "motion",
    "measure_strain": "motion",
    "measure_vibration": "motion",
    "register": "run",
    "evaluate": "evaluation",
    "measure_quality": "quality",
    "summarize_quality": "quality",
    "write_report": "report",
    "Phantom": "synthetic",
    "PhantomConfig": "synthetic",
}

__all__ = sorted(_PUBLIC)
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        msg = f"module 'xreg' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"xreg.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
