"""Modules: layers, blocks, stacks, `XLSTM` and the cells. The state is an argument and a result."""
