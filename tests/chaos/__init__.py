"""The chaos suite: everything that may fail does, at random moments, and nothing may be lost or done twice."""
