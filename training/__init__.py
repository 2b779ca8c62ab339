"""Trains the demo model on clips that are drawn here: `python -m training.train_demo`. The worker does without."""
