"""What two or more stages share. The stages themselves are the scripts beside this folder."""
