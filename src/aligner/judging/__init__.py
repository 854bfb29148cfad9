"""Verdicts by a language model and by people on the answers that score compares.

In: data/generated, data/prepared, an endpoint's replies, vote files. Out: reports/judge.*, preference pairs."""
