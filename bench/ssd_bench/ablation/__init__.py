"""What each part of the core's training is worth: the same text and compute with one part changed at a time."""
