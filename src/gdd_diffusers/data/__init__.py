"""What one learns from and measures on: benchmark layouts, training batches, simulated camera noise."""
