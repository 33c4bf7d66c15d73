"""A checkpoint becomes a bundle: formats, sizes, order, stripes, calibration."""
