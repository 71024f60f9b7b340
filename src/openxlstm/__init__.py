"""openxlstm: xLSTM for PyTorch that installs anywhere and is fast on a plain CPU.

The public names below are imported on first use, so that `import openxlstm` and `openxlstm --help`
load neither torch nor matplotlib.
"""

import importlib
from typing import TYPE_CHECKING, Any

from openxlstm._version import __version__

if TYPE_CHECKING:
    from openxlstm import ops
    from openxlstm.config import (
        BareBlockConfig,
        ComputeConfig,
        DataConfig,
        LargeBlockConfig,
        ModelConfig,
        PaperBlockConfig,
        StackConfig,
        TrainConfig,
    )
    from openxlstm.data.tokenizer import load_tokenizer
    from openxlstm.errors import UserError
    from openxlstm.generation.text import generate
    from openxlstm.lm.model import LanguageModel
    from openxlstm.lm.stack_folder import load_stack, save_stack
    from openxlstm.lm.summary import summarize
    from openxlstm.nn.cells import MLSTMCell, SLSTMCell
    from openxlstm.nn.parameters import parameter_groups
    from openxlstm.nn.rnn import XLSTM
    from openxlstm.nn.stack import Stack
    from openxlstm.onnx_export import export_onnx
    from openxlstm.runs.run import open_run
    from openxlstm.saved_states import load_state, save_state
    from openxlstm.states import MLSTMState, ModelState, SLSTMState, XLSTMState

_PLACES = {
    "BareBlockConfig": "openxlstm.config",
    "ComputeConfig": "openxlstm.config",
    "DataConfig": "openxlstm.config",
    "LanguageModel": "openxlstm.lm.model",
    "LargeBlockConfig": "openxlstm.config",
    "MLSTMCell": "openxlstm.nn.cells",
    "MLSTMState": "openxlstm.states",
    "ModelConfig": "openxlstm.config",
    "ModelState": "openxlstm.states",
    "PaperBlockConfig": "openxlstm.config",
    "SLSTMCell": "openxlstm.nn.cells",
    "SLSTMState": "openxlstm.states",
    "Stack": "openxlstm.nn.stack",
    "StackConfig": "openxlstm.config",
    "TrainConfig": "openxlstm.config",
    "UserError": "openxlstm.errors",
    "XLSTM": "openxlstm.nn.rnn",
    "XLSTMState": "openxlstm.states",
    "export_onnx": "openxlstm.onnx_export",
    "generate": "openxlstm.generation.text",
    "load_stack": "openxlstm.lm.stack_folder",
    "load_state": "openxlstm.saved_states",
    "load_tokenizer": "openxlstm.data.tokenizer",
    "open_run": "openxlstm.runs.run",
    "ops": "openxlstm",
    "parameter_groups": "openxlstm.nn.parameters",
    "save_stack": "openxlstm.lm.stack_folder",
    "save_state": "openxlstm.saved_states",
    "summarize": "openxlstm.lm.summary",
}

__all__ = [
    "XLSTM",
    "BareBlockConfig",
    "ComputeConfig",
    "DataConfig",
    "LanguageModel",
    "LargeBlockConfig",
    "MLSTMCell",
    "MLSTMState",
    "ModelConfig",
    "ModelState",
    "PaperBlockConfig",
    "SLSTMCell",
    "SLSTMState",
    "Stack",
    "StackConfig",
    "TrainConfig",
    "UserError",
    "XLSTMState",
    "__version__",
    "export_onnx",
    "generate",
    "load_stack",
    "load_state",
    "load_tokenizer",
    "open_run",
    "ops",
    "parameter_groups",
    "save_stack",
    "save_state",
    "summarize",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'openxlstm' has no attribute {name!r}")
    if name == "ops":
        return importlib.import_module("openxlstm.ops")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
