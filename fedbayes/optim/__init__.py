"""Local training: the one batch loop, and optimisers with a client axis."""
