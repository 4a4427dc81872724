"""Fit the EO teacher, distil the SAR student, evaluate runs. Needs torch and Lightning Fabric."""
