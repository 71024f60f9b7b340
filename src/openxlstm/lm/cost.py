"""The arithmetic of a language model, counted from its mathematics, whatever code runs it.

Matrix products count, a multiply-add as two operations. Embeddings, which are lookups, element-wise
arithmetic, norms, softmax, the optimizer, masked halves, and recomputation do not count. These are
the model's FLOPs; MFU (arXiv:2204.02311, appendix B) is their share of a device's peak.

arXiv:2503.13427, appendix D, also counts an embedding's product with one-hot vectors, 2·V·D per
token, the masked half of a chunk, and an operation per exponential, maximum and sigmoid.
"""

from openxlstm.config import LargeBlockConfig, ModelConfig, PaperBlockConfig

CHUNK = 64
"""Chunk size L of the chunkwise mLSTM, in steps."""


def flops_per_token(config: ModelConfig) -> int:
    """FLOPs of the forward pass per token, with every cell in its recurrent form."""
    D, NH = config.embedding_dim, config.num_heads
    block, multiply_adds = config.block, D * config.vocab_size  # head
    for kind in config.layers:
        if isinstance(block, LargeBlockConfig):
            QK, V = block.mlstm_dims(D)
            multiply_adds += D * 2 * (QK + V)  # q, k, v, o
            multiply_adds += 2 * NH * D  # gates
            multiply_adds += V * D  # out
            multiply_adds += 3 * D * block.ff_dim(D)
        elif kind == "s":
            assert isinstance(block, PaperBlockConfig)
            multiply_adds += D * block.slstm_conv_kernel_size
            multiply_adds += 2 * 4 * D * (D // NH)  # gates from the input and from the state
            multiply_adds += 3 * D * block.slstm_ff_dim(D)
            continue
        else:
            assert isinstance(block, PaperBlockConfig)
            E = block.mlstm_inner_dim(D)
            multiply_adds += E * block.mlstm_conv_kernel_size
            multiply_adds += D * 2 * E + E * D  # up, down
            multiply_adds += 3 * E * block.mlstm_qkv_block_size  # q, k, v
            multiply_adds += 2 * NH * 3 * E  # gates
        DQK, DHV = config.mlstm_head_dims
        multiply_adds += 3 * NH * DQK * DHV  # decay the memory, write k vᵀ, read Cᵀ q
    return 2 * multiply_adds


def training_flops_per_token(config: ModelConfig) -> int:
    """FLOPs of a training step per token: a forward pass, and a backward pass with two products per
    product of the forward pass, with every mLSTM in chunks of 64 steps."""
    flops = flops_per_token(config)
    DQK, DHV = config.mlstm_head_dims
    # The recurrent form decays the memory in each step, the chunkwise form once per chunk.
    in_chunks = mlstm_chunk_flops(DQK, DHV) - 2 * DQK * DHV
    return 3 * (flops + config.layers.count("m") * config.num_heads * in_chunks)


def mlstm_chunk_flops(DQK: int, DHV: int) -> int:
    """FLOPs per head and step within a chunk, forward: the causal half of q kᵀ and of the weighted
    sum of v."""
    return CHUNK * (DQK + DHV)
