"""How much arithmetic a language model is: counted once, the same whatever code does it.

Counted are products, a multiply-add as two operations. Not counted are embeddings, which are looked
up, exponentials and other element-wise arithmetic, norms, softmax, the optimizer, masked halves,
and all that is computed twice, as `recompute_blocks` does. What is left are the model's FLOPs; MFU
(arXiv:2204.02311, appendix B) is their share of what a device could do at its peak.

arXiv:2503.13427, appendix D, counts the same but for three things: it adds an embedding's product
with one-hot vectors, 2·V·D a token; the masked half of a chunk; and an operation for each
exponential, maximum and sigmoid.
"""

from openxlstm.config import LargeBlockConfig, ModelConfig, PaperBlockConfig

CHUNK = 64
"""Steps in a chunk of the chunkwise mLSTM, L."""


def flops_per_token(config: ModelConfig) -> int:
    """Operations of the forward pass for one token, every cell in its recurrent form."""
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
    """Operations of a training step for one token: forward, and a backward pass that has two
    products for each of the forward's, every mLSTM in chunks of 64 steps."""
    flops = flops_per_token(config)
    DQK, DHV = config.mlstm_head_dims
    # The recurrent form decays the memory at each step, the chunkwise one at each chunk.
    in_chunks = mlstm_chunk_flops(DQK, DHV) - 2 * DQK * DHV
    return 3 * (flops + config.layers.count("m") * config.num_heads * in_chunks)


def mlstm_chunk_flops(DQK: int, DHV: int) -> int:
    """What a head and step adds to writing and reading the memory, forward: q kᵀ and the weighted
    sum of v within the chunk, the causal half."""
    return CHUNK * (DQK + DHV)
