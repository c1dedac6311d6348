"""How near generated pictures are to real ones, and how much that number can be trusted."""
