"""The Beta distribution for arrays: what numpy lacks of it.

Series after Abramowitz and Stegun, 6.1.41 and 6.3.18, after shifting the argument up by recurrence; absolute errors are
below 1e-11 times the magnitude for arguments of 1e-8 and more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_SHIFT = 8  # from there on the series have the precision stated above


def log_gamma(x: Floats) -> Floats:
    """Logarithm of Gamma(x) for positive x up to 1e38."""
    product = x
    for step in range(1, _SHIFT):
        product = product * (x + step)
    z = x + _SHIFT
    square = 1.0 / (z * z)
    series = (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0))) / z
    return np.asarray((z - 0.5) * np.log(z) - z + 0.5 * np.log(2.0 * np.pi) + series - np.log(product))


def log_beta(a: Floats, b: Floats) -> Floats:
    """Logarithm of B(a, b) for positive a and b."""
    return log_gamma(a) + log_gamma(b) - log_gamma(a + b)


def digamma(x: Floats) -> Floats:
    """Derivative of ln Gamma(x) for positive x."""
    shift = np.zeros_like(x)
    for step in range(_SHIFT):
        shift = shift + 1.0 / (x + step)
    z = x + _SHIFT
    square = 1.0 / (z * z)
    series = square * (1.0 / 12.0 - square * (1.0 / 120.0 - square * (1.0 / 252.0 - square / 240.0)))
    return np.asarray(np.log(z) - 1.0 / (2.0 * z) - series - shift)
