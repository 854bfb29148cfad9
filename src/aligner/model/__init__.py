"""In: a checkpoint folder. Out: a chat renderer, a loaded model with its adapters, and answers."""
