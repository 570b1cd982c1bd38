"""Personalization that shows: what an expert gains from a person's documents, alone and together with the core."""
