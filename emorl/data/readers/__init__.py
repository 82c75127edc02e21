"""Data sets that are read from files, in the formats they were published in."""
