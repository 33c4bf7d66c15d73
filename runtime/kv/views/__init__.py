"""What models see of pages: sequences, tensors without numbers, masks."""
