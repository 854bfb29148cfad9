"""In: data files that people wrote. Out: rows of token ids, and a report on the quality of the files."""
