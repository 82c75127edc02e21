"""The suite of loading: images per second of readers and generators against what training eats."""
