"""Checkpoints of other libraries: NX-AI's `xlstm` and `xlstm_large`, and Hugging Face's xLSTM."""

from openxlstm.interop.opening import load, load_nxai_stack

__all__ = ["load", "load_nxai_stack"]
