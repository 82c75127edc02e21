"""Procedural data sets: each image is a pure function of its index."""
