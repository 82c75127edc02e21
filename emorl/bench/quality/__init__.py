"""The suite of quality: what every model has learned after how many minutes, at laptop size."""
