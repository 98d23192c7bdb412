"""Protocols on secret shares: two servers that do not collude and a dealer that is awake only beforehand."""
