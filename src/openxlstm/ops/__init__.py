"""The recurrent operations: shapes checked, a backend chosen, the answers of `reference`."""

from openxlstm.ops.check import state_dtype
from openxlstm.ops.conv import BACKENDS as CONV_BACKENDS
from openxlstm.ops.conv import causal_conv
from openxlstm.ops.feedforward import BACKENDS as FEEDFORWARD_BACKENDS
from openxlstm.ops.feedforward import gated_feedforward
from openxlstm.ops.mlstm import BACKENDS as MLSTM_BACKENDS
from openxlstm.ops.mlstm import mlstm
from openxlstm.ops.slstm import BACKENDS as SLSTM_BACKENDS
from openxlstm.ops.slstm import slstm

TABLE = {
    "mlstm": MLSTM_BACKENDS,
    "slstm": SLSTM_BACKENDS,
    "causal_conv": CONV_BACKENDS,
    "gated_feedforward": FEEDFORWARD_BACKENDS,
}
"""Every operation's backends, in order of preference."""

__all__ = ["TABLE", "causal_conv", "gated_feedforward", "mlstm", "slstm", "state_dtype"]
