"""The bench: one entry point, ratios measured side by side, quality with intervals."""
