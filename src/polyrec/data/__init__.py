"""Tables, splits, running statistics, sequences and batches."""
