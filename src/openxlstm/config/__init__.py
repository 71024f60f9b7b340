"""Every choice that defines a run, as frozen dataclasses: the model, its data, its training and how
it is computed. Reading a configuration does not import torch.
"""

from openxlstm.config.blocks import (
    BLOCK_CONFIGS,
    BareBlockConfig,
    BlockConfig,
    BlockKind,
    LargeBlockConfig,
    PaperBlockConfig,
    round_up,
)
from openxlstm.config.model_config import LAYER_KINDS, ModelConfig, StackConfig
from openxlstm.config.run_config import ComputeConfig, DataConfig, TrainConfig

__all__ = [
    "BLOCK_CONFIGS",
    "LAYER_KINDS",
    "BareBlockConfig",
    "BlockConfig",
    "BlockKind",
    "ComputeConfig",
    "DataConfig",
    "LargeBlockConfig",
    "ModelConfig",
    "PaperBlockConfig",
    "StackConfig",
    "TrainConfig",
    "round_up",
]
