"""The operations. Each checks its inputs and selects a backend; all backends give the results of
`reference`."""

from openxlstm.ops.check import state_dtype
from openxlstm.ops.conv import BACKENDS as CONV
from openxlstm.ops.conv import causal_conv
from openxlstm.ops.dispatch import Table
from openxlstm.ops.feedforward import BACKENDS as FEEDFORWARD
from openxlstm.ops.feedforward import gated_feedforward
from openxlstm.ops.large_block import BACKENDS as LARGE_BLOCK
from openxlstm.ops.large_block import LargeInputs, large_input, large_output, soft_cap
from openxlstm.ops.mlstm import BACKENDS as MLSTM
from openxlstm.ops.mlstm import mlstm
from openxlstm.ops.mlstm_block import BACKENDS as MLSTM_BLOCK
from openxlstm.ops.mlstm_block import MLSTMInputs, mlstm_block, mlstm_input, mlstm_output
from openxlstm.ops.norm import BACKENDS as NORM
from openxlstm.ops.norm import layer_norm, rms_norm
from openxlstm.ops.slstm import BACKENDS as SLSTM
from openxlstm.ops.slstm import slstm
from openxlstm.ops.slstm_block import BACKENDS as SLSTM_BLOCK
from openxlstm.ops.slstm_block import slstm_block, slstm_layer
from openxlstm.ops.weights import (
    FeedForwardWeights,
    LargeInputWeights,
    LargeOutputWeights,
    MLSTMBlockWeights,
    MLSTMInputWeights,
    MLSTMOutputWeights,
    SLSTMBlockWeights,
    SLSTMLayerWeights,
)

TABLE: Table = {
    **MLSTM,
    **MLSTM_BLOCK,
    **SLSTM,
    **SLSTM_BLOCK,
    **CONV,
    **LARGE_BLOCK,
    **NORM,
    **FEEDFORWARD,
}
"""Every op's backends, in order of preference."""

__all__ = [
    "TABLE",
    "FeedForwardWeights",
    "LargeInputWeights",
    "LargeInputs",
    "LargeOutputWeights",
    "MLSTMBlockWeights",
    "MLSTMInputWeights",
    "MLSTMInputs",
    "MLSTMOutputWeights",
    "SLSTMBlockWeights",
    "SLSTMLayerWeights",
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
