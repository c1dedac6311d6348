"""Device and precision, the state of a run, distributed work."""
