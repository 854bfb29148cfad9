"""Answers of the models -> figures with intervals.

In: data/generated and data/prepared. Out: values that score, judge and votes write."""
