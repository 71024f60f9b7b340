"""Layers, blocks and stacks of xLSTM, with the state going in and coming out."""
