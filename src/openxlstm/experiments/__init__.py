"""Claims about xLSTM and its rivals as small experiments, each with figures and a verdict."""
