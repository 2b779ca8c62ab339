"""LoRA training: the data set, and the training itself."""
