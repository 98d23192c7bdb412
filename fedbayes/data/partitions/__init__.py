"""Which client has which image."""
