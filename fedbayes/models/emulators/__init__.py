"""Emulators: lossy stand-ins for the lower blocks of a ViT that its owner does not give away."""
