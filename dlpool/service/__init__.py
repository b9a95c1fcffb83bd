"""Processes: the supervisor, its workers, the private Redis, the node's own folder."""
