"""Making an expert: needs torch, and is imported only when that is asked for."""
