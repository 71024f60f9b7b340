"""The native CPU backend: what Python tells torch about the operators in `ops/cpu/`."""
