"""What pair tasks share and what they keep apart: one file per layer."""
