"""A paper with one figure, small enough to test the whole core with."""
