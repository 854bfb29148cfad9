"""In: answers of several models to the same prompts, and the prompts' keywords. Out: figures with intervals, and verdicts."""
