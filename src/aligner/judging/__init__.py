"""Verdicts of a language model and of people on the answers that score compares.

In: data/generated, data/prepared, replies of an endpoint, files of votes. Out: reports/judge.*, preference pairs."""
