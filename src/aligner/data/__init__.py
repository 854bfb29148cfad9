"""In: files that people wrote. Out: rows of token ids, and a report of what the files are like."""
