"""Mammography DICOMs to model-ready images."""
