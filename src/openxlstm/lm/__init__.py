"""Language models: the model, presets, its folder on disk, and estimates of cost and memory."""
