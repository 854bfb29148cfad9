"""Turns data in other projects' layouts and file types into the strict JSON lines that prepare reads."""
