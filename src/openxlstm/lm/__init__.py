"""Language models on a stack of xLSTM blocks, and the folder that holds one."""
