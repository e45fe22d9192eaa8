"""Label runs, the label store and its review."""
