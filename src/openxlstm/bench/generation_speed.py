"""Generation beside the peers: one stream, greedy.

One turn reads one token and then produces TOKENS, each from the one before. The small models, 128
wide with 4 blocks and 4 heads:
    openxlstm         LanguageModel with layers mmmm, ssss, msmm, through its engine
    NX-AI             package xlstm, xLSTMLMModel with the same blocks, through its `step`
and some of about 12.9 million parameters, 512 wide with 4 heads, more than most caches hold:
    openxlstm         LanguageModel with 4 large blocks, and with 8 mLSTM blocks of the paper's
    Hugging Face      xLSTMForCausalLM, 4 large blocks, token by token with its cache
Before anything is timed, the tokens of openxlstm are compared with what its model says when it
reads them as one sequence.
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
"""Tokens of one turn."""
WIDE, WIDE_LAYERS = 512, "m" * 8
"""Width of the larger models, and the paper's blocks that are as large as BLOCKS large ones."""
ROUNDING = 1e-3
"""How far below the likeliest a token's logit may be, over the range of the logits: two that are
as good as equal come in either order."""

Generate = Callable[[], list[int]]
Player = tuple[nn.Module, Generate]
"""A model, and the turn that lets it write."""


def comparisons(quick: bool) -> list[tuple[str, Callable[[], Comparison]]]:
    """A title, and what makes the contest."""
    return [("generation", generation)]


def generation() -> Comparison:
    """All the models."""
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
        turns={name: turn for name, (_, turn) in here.items()},
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
    """The line of a model."""
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
    """Whether all wrote, and whether ours wrote what it should."""
    wrong: list[str] = []
    for name, (model, turn) in players.items():
        tokens = turn()
        if len(tokens) != TOKENS:
            wrong.append(f"{name}: {len(tokens)} tokens")
        elif isinstance(model, LanguageModel):
            worst = shortfall(model, tokens)
            if not worst <= ROUNDING:
                wrong.append(f"{name}: not the likeliest tokens, by {worst:.1e}")
    return Verdict(not wrong, "; ".join(wrong) or "tokens as from the whole sequence")


@torch.inference_mode()
def shortfall(model: LanguageModel, tokens: list[int]) -> float:
    """How far the least likely of the tokens is below the likeliest in its place.

    The model reads them as one sequence. In parts of the range of its logits; 0 if each is the
    likeliest.
    """
    logits = model(torch.tensor([[0, *tokens[:-1]]]))[0][0]  # (T, V)
    chosen = logits.gather(1, torch.tensor(tokens).unsqueeze(1)).squeeze(1)
    best, least = logits.max(1).values, logits.min(1).values
    return float(((best - chosen) / (best - least)).max())
