"""SAR radiometry, speckle filters and the preprocessing that travels with a model."""

from __future__ import annotations

from hfd_edge.sar.preprocessing import Preprocessing, signal_values
from hfd_edge.sar.radiometry import (
    amplitude_cu2,
    amplitude_to_intensity,
    check_units,
    complex_to_intensity,
    db_bias,
    db_to_intensity,
    dn_to_sigma0,
    enl,
    intensity_to_db,
    to_intensity,
    valid_mask,
)
from hfd_edge.sar.speckle import FILTERS

__all__ = [
    "FILTERS",
    "Preprocessing",
    "amplitude_cu2",
    "amplitude_to_intensity",
    "check_units",
    "complex_to_intensity",
    "db_bias",
    "db_to_intensity",
    "dn_to_sigma0",
    "enl",
    "intensity_to_db",
    "signal_values",
    "to_intensity",
    "valid_mask",
]
