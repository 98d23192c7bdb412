"""The round loop and what it needs on the server."""
