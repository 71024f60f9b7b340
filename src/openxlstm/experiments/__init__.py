"""Experiments: claims about xLSTM and other models, tried on a CPU, with figures and verdicts."""
