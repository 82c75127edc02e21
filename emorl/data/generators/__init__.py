"""Data sets that are programs: each image is a pure function of its index."""
