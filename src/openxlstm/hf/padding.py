"""Attention masks: padding before or after a sequence does not change its results.

B batch · T columns of this call · D features
"""

import torch
from torch import Tensor

from openxlstm.nn.padding import Run, run_padded, take
from openxlstm.states import ModelState, map_state


def real_tokens(mask: Tensor | None, B: int, T: int, seen: int) -> Tensor | None:
    """True for tokens that are not padding (B, T); None if there is no padding.

    Args:
        mask: attention_mask, of these T columns or of all columns so far, these included; false or
            0 at padding. None for no padding.
        seen: number of columns in previous calls.

    Raises:
        ValueError: if the mask has another shape, or padding inside a sequence.
    """
    if mask is None:
        return None
    if mask.shape not in ((B, T), (B, seen + T)):
        also = f" or, with the columns before, {(B, seen + T)}," if seen else ""
        raise ValueError(f"attention_mask must be {(B, T)}{also} not {tuple(mask.shape)}")
    real = mask[:, -T:].bool()
    if bool(real.all()):
        return None
    begins = real[:, 1:] & ~real[:, :-1]
    parts = begins.sum(1) + real[:, 0]
    if int(parts.max()) > 1:
        row = int(parts.argmax())
        raise ValueError(
            "attention_mask may have padding before and after a sequence, not within: row "
            f"{row} has {int(parts[row])} parts"
        )
    return real


def restarts(position_ids: Tensor | None, real: Tensor | None, B: int, T: int) -> Tensor | None:
    """True where a new document begins (B, T): at position 0 right after another token. None if
    nowhere.

    At the first token of a call and after padding, the cache determines the state instead.

    Raises:
        ValueError: if position_ids is neither (B, T) nor (1, T).
    """
    if position_ids is None or T == 1:
        return None
    if position_ids.shape not in ((B, T), (1, T)):
        raise ValueError(f"position_ids must be {(B, T)}, not {tuple(position_ids.shape)}")
    reset = (position_ids == 0).expand(B, T).clone()
    reset[:, 0] = False
    if real is not None:
        reset[:, 1:] &= real[:, 1:] & real[:, :-1]
    return reset if bool(reset.any()) else None


def run_real(
    run: Run[ModelState],
    x: Tensor,
    state: ModelState | None,
    reset: Tensor | None,
    real: Tensor | None,
) -> tuple[Tensor, ModelState]:
    """Calls `run` on the real tokens (B, T) only: y (B, T, D'), and the state of each sample after
    its own last token.

    Padding after a sequence gets the y of its last token, so that the last column predicts the next
    token of every sample. Padding before a sequence gets the y of its first token.
    """
    if real is None:
        return run(x, state, reset)
    T = x.shape[1]
    steps = torch.arange(T, device=x.device)
    lengths, first = real.sum(1), real.int().argmax(1)
    from_left = (steps + first[:, None]).clamp(max=T - 1)
    moved_reset = None if reset is None else take(reset, from_left)
    sizes = lengths.clamp(min=1)  # an empty sample reads one token; its state is restored below
    y, after = run_padded(run, take(x, from_left), state, moved_reset, sizes)
    nothing = lengths == 0
    if bool(nothing.any()):
        before = map_state(torch.zeros_like, after) if state is None else state
        after = map_state(
            lambda new, old: torch.where(_like(nothing, new), old, new), after, before
        )
    back = (steps - first[:, None]).clamp(min=0).minimum(sizes[:, None] - 1)
    return take(y, back), after


def _like(samples: Tensor, part: Tensor) -> Tensor:
    return samples.view(-1, *(1,) * (part.dim() - 1))
