"""How a stage runs: parameters in, records, signals and messages out. No output depends on this room."""
