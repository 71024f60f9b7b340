"""Compares generation with other implementations: one stream, greedy.

One repetition reads one token and then generates TOKENS tokens. Small models, of width 128 with 4
blocks and 4 heads:
    openxlstm         LanguageModel with layers mmmm, ssss, msmm, through its engine
    NX-AI             package xlstm, xLSTMLMModel with the same blocks, through its `step`
and models of about 12.9 million parameters, of width 512 with 4 heads, larger than most caches:
    openxlstm         LanguageModel with 4 large blocks, and with 8 mLSTM blocks of the paper's
    Hugging Face      xLSTMForCausalLM, 4 large blocks, token by token with its cache
Before timing, the tokens of openxlstm are compared with a forward pass over the whole sequence.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from openxlstm.bench import peers
from openxlstm.bench.comparison import Comparison, Entry, Verdict
from openxlstm.bench.goals import find_goal
from openxlstm.bench.peers import Absent
from openxlstm.bench.training_speed import (
    BLOCKS,
    HEADS,
    HUGGING_FACE,
    LARGE,
    STACKS,
    VOCAB,
    large_model,
    openxlstm_model,
    size,
)
from openxlstm.bench.training_speed import WIDTH as SMALL
from openxlstm.bench.work import generation_work
from openxlstm.generation.engine import stream_tokens
from openxlstm.generation.sampling import Sampling
from openxlstm.lm.model import LanguageModel
from openxlstm.lm.summary import summarize

TOKENS = 128
"""Tokens per repetition."""
WIDE, WIDE_LAYERS = 512, "m" * 8
"""Width of the larger models, and paper blocks with as many parameters as BLOCKS large ones."""
ROUNDING = 1e-3
"""How far the logit of a generated token may be below the largest one, relative to the range of the
logits: rounding may swap two nearly equal tokens."""

Generate = Callable[[], list[int]]
Player = tuple[nn.Module, Generate]
"""A model, and a repetition that generates with it."""


def comparisons(quick: bool) -> list[tuple[str, Callable[[], Comparison]]]:
    """The title and the constructor of each comparison."""
    return [("generation", generation)]


def generation() -> Comparison:
    """The comparison of all models."""
    players: dict[str, Player | Absent] = {}
    beside: dict[str, str] = {}
    for layers in STACKS:
        mine, theirs = f"openxlstm {layers}", f"NX-AI {layers}"
        players[mine] = openxlstm_player(openxlstm_model(layers))
        players[theirs] = peers.find("xlstm", lambda layers=layers: nxai_player(layers))
        beside[theirs] = mine
    players[LARGE] = openxlstm_player(large_model(WIDE))
    players[HUGGING_FACE] = peers.find("transformers", hugging_face_player)
    beside[HUGGING_FACE] = LARGE
    players[f"openxlstm {len(WIDE_LAYERS)} × m"] = openxlstm_player(
        openxlstm_model(WIDE_LAYERS, WIDE)
    )
    here = {name: player for name, player in players.items() if not isinstance(player, Absent)}
    return Comparison(
        part="generation",
        name="generation",
        sizes={"tokens": TOKENS, "vocabulary": VOCAB},
        tokens=TOKENS,
        entries=tuple(
            generation_entry(name, player, beside.get(name)) for name, player in players.items()
        ),
        repetitions={name: repetition for name, (_, repetition) in here.items()},
        check=lambda: check_tokens(here),
    )


def openxlstm_player(model: LanguageModel) -> Player:
    return model.eval(), partial(openxlstm_generate, model, TOKENS)


def openxlstm_generate(model: LanguageModel, num_tokens: int) -> list[int]:
    greedy = Sampling(temperature=0.0)
    return list(stream_tokens(model, [0], max_tokens=num_tokens, sampling=greedy))


def nxai_player(layers: str) -> Player:
    model = peers.nxai_model(layers, VOCAB, SMALL, HEADS, context_length=256).eval()
    return model, partial(peers.nxai_generate, model, TOKENS)


def hugging_face_player() -> Player:
    model = peers.hugging_face_model(BLOCKS, VOCAB, WIDE, HEADS, "inference").eval()
    return model, partial(peers.hugging_face_generate, model, TOKENS)


def generation_entry(name: str, player: Player | Absent, beside: str | None) -> Entry:
    """The entry of a model."""
    goal = find_goal("generation", name)
    if isinstance(player, Absent):
        return Entry(name=name, beside=beside, absent=player.why, goal=goal)
    model, _ = player
    if not isinstance(model, LanguageModel):
        return Entry(name=name, beside=beside, parameters=size(model), goal=goal)
    summary = summarize(model)
    work = generation_work(
        model.config, summary.num_parameters, summary.state_bytes, num_tokens=TOKENS
    )
    return Entry(name=name, ours=True, parameters=summary.num_parameters, work=work)


def check_tokens(players: dict[str, Player]) -> Verdict:
    """Whether all models generated tokens, and whether those of openxlstm are correct."""
    wrong: list[str] = []
    for name, (model, repetition) in players.items():
        tokens = repetition()
        if len(tokens) != TOKENS:
            wrong.append(f"{name}: {len(tokens)} tokens")
        elif isinstance(model, LanguageModel):
            worst = shortfall(model, tokens)
            if not worst <= ROUNDING:
                wrong.append(f"{name}: not the likeliest tokens, by {worst:.1e}")
    return Verdict(not wrong, "; ".join(wrong) or "tokens as from the whole sequence")


@torch.inference_mode()
def shortfall(model: LanguageModel, tokens: list[int]) -> float:
    """How far the logits of the tokens are at most below the largest at their positions.

    The model reads the tokens as one sequence. Relative to the range of the logits; 0 if each token
    is the likeliest.
    """
    logits = model(torch.tensor([[0, *tokens[:-1]]]))[0][0]  # (T, V)
    chosen = logits.gather(1, torch.tensor(tokens).unsqueeze(1)).squeeze(1)
    best, least = logits.max(1).values, logits.min(1).values
    return float(((best - chosen) / (best - least)).max())
