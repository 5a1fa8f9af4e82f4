"""What heads add to their logits: one file per term."""
