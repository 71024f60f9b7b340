"""The contenders: xLSTM's blocks and `torch.nn.LSTM`, with the same embedding, head and width.

Embedding and head have the same initialization for all; only the body differs.

B batch · T time · D width
"""

from typing import Any

from torch import Tensor, nn

from openxlstm.config import StackConfig
from openxlstm.nn.init import small_init_
from openxlstm.nn.stack import Stack

TIED_STD = 0.3
"""Standard deviation of an embedding tied to the head: small enough for uncertain predictions at
first, large enough for certain ones later without longer vectors."""


class StackBody(nn.Module):
    """xLSTM blocks. x (B, T, D) → (B, T, D)."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.stack = Stack(StackConfig.from_options(**options))

    def forward(self, x: Tensor) -> Tensor:
        return self.stack(x)[0]


class LSTMBody(nn.Module):
    """`torch.nn.LSTM`. x (B, T, D) → (B, T, D)."""

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, num_layers, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class Reader(nn.Module):
    """Embedding → body → head: ids (B, T) → logits."""

    def __init__(
        self, vocab_size: int, num_answers: int, width: int, body: nn.Module, *, tied: bool = False
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.body = body
        self.head = nn.Linear(width, num_answers, bias=False)
        if tied:
            nn.init.normal_(self.embedding.weight, std=TIED_STD)
            self.head.weight = self.embedding.weight
        else:
            small_init_(self.embedding.weight, width)
            small_init_(self.head.weight, width)

    def forward(self, ids: Tensor, asked: Tensor) -> Tensor:
        """Logits (N, num_answers) of the N steps where `asked` (B, T) bool is true, in order."""
        return self.head(self.body(self.embedding(ids))[asked])
