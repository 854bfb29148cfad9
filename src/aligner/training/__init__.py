"""In: a loaded model and rows of token ids. Out: a trained adapter, its curves, and measures on held-out rows."""
