"""The Redis contract: keys, jobs as pushed, transitions."""
