"""The recurrent operations: shapes checked, a backend chosen, the answers of `reference`."""

from openxlstm.ops.check import state_dtype
from openxlstm.ops.conv import BACKENDS as CONV_BACKENDS
from openxlstm.ops.conv import causal_conv
from openxlstm.ops.feedforward import BACKENDS as FEEDFORWARD_BACKENDS
from openxlstm.ops.feedforward import gated_feedforward
from openxlstm.ops.large import (
    INPUT_BACKENDS as LARGE_INPUT_BACKENDS,
)
from openxlstm.ops.large import (
    OUTPUT_BACKENDS as LARGE_OUTPUT_BACKENDS,
)
from openxlstm.ops.large import LargeInputs, large_input, large_output, soft_cap
from openxlstm.ops.mlstm import BACKENDS as MLSTM_BACKENDS
from openxlstm.ops.mlstm import mlstm
from openxlstm.ops.mlstm_block import BACKENDS as MLSTM_BLOCK_BACKENDS
from openxlstm.ops.mlstm_block import mlstm_block
from openxlstm.ops.mlstm_input import BACKENDS as MLSTM_INPUT_BACKENDS
from openxlstm.ops.mlstm_input import MLSTMInputs, mlstm_input
from openxlstm.ops.mlstm_output import BACKENDS as MLSTM_OUTPUT_BACKENDS
from openxlstm.ops.mlstm_output import mlstm_output
from openxlstm.ops.norm import BACKENDS as NORM_BACKENDS
from openxlstm.ops.norm import RMS_BACKENDS, layer_norm, rms_norm
from openxlstm.ops.slstm import BACKENDS as SLSTM_BACKENDS
from openxlstm.ops.slstm import slstm
from openxlstm.ops.slstm_block import BACKENDS as SLSTM_BLOCK_BACKENDS
from openxlstm.ops.slstm_block import slstm_block
from openxlstm.ops.slstm_layer import BACKENDS as SLSTM_LAYER_BACKENDS
from openxlstm.ops.slstm_layer import slstm_layer

TABLE = {
    "mlstm": MLSTM_BACKENDS,
    "mlstm_block": MLSTM_BLOCK_BACKENDS,
    "mlstm_input": MLSTM_INPUT_BACKENDS,
    "mlstm_output": MLSTM_OUTPUT_BACKENDS,
    "slstm": SLSTM_BACKENDS,
    "slstm_block": SLSTM_BLOCK_BACKENDS,
    "slstm_layer": SLSTM_LAYER_BACKENDS,
    "causal_conv": CONV_BACKENDS,
    "large_input": LARGE_INPUT_BACKENDS,
    "large_output": LARGE_OUTPUT_BACKENDS,
    "layer_norm": NORM_BACKENDS,
    "rms_norm": RMS_BACKENDS,
    "gated_feedforward": FEEDFORWARD_BACKENDS,
}
"""Every operation's backends, in order of preference."""

__all__ = [
    "TABLE",
    "LargeInputs",
    "MLSTMInputs",
    "causal_conv",
    "gated_feedforward",
    "large_input",
    "large_output",
    "layer_norm",
    "mlstm",
    "mlstm_block",
    "mlstm_input",
    "mlstm_output",
    "rms_norm",
    "slstm",
    "slstm_block",
    "slstm_layer",
    "soft_cap",
    "state_dtype",
]
