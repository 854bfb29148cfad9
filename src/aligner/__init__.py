"""What the stages share: a room for each thing that flows. See the docstring of each folder."""
