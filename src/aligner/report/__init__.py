"""In: scored answers and the figures of every stage. Out: the page and the tables that people read."""
