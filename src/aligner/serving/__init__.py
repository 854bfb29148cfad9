"""In: a trained model. Out: a folder that other programs load, conversations in a terminal, a server with a page."""
