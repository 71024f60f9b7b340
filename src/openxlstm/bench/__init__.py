"""Measures openxlstm beside its peers and beside the machine's limits, for `openxlstm bench`."""
