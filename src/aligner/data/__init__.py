"""Reads data files that people wrote, turns them into rows of token ids, and reports on their quality."""
