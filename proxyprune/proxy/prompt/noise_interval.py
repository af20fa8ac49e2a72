"""The work of a denoiser at a signal-to-noise ratio, in words."""

from __future__ import annotations

from proxyprune.proxy.prompt.templates import filled
from proxyprune.scoring.brief import NoiseInterval

_WHAT_IS_LEFT_TO_DO: tuple[tuple[float, str], ...] = (
    (20.0, "the sample is almost clean; what is left is fine texture and faint residues of noise."),
    (5.0, "shapes and colours are plain to see; edges and details are being sharpened."),
    (-5.0, "signal and noise are about equally strong; parts of objects take shape."),
    (-20.0, "noise dominates; the layout, large shapes and the overall colour are being decided."),
)
_BELOW_ALL = "almost nothing but noise; the answer is close to an average over the data, and only the coarsest layout is decided."


def describe_interval(interval: NoiseInterval) -> str:
    """Return the section of a prompt about one interval."""
    return filled(
        "interval",
        low=f"{interval.low_snr_db:.1f}",
        high=f"{interval.high_snr_db:.1f}",
        index=interval.index + 1,
        count=interval.count,
        noisy=_work_at(interval.low_snr_db),
        clean=_work_at(interval.high_snr_db),
    )


def _work_at(snr_db: float) -> str:
    return next((text for least, text in _WHAT_IS_LEFT_TO_DO if snr_db >= least), _BELOW_ALL)
