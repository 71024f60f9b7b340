"""Benchmarks: openxlstm compared with other implementations and with the machine's limits."""
