"""Calibration: what some methods read from a file, computed here from a corpus, without training."""
