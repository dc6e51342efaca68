"""A partition's state as it was just after a commit, so that a restart replays seconds of the log and not a window."""
