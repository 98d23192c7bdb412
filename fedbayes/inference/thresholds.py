"""Where a diagnostic begins to speak against a posterior; without torch, for pages that only quote it."""

COLLAPSED = 0.05
"""Mixing ratio below which a posterior is called collapsed."""

SATURATED = 0.8
"""Bound saturation above which more draws, or a reverse model, would tighten the bound."""
