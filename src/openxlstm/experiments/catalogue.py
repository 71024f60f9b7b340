"""The experiments by name, with their claims. Plain Python: listing them imports no torch."""

from openxlstm.experiments.claims import Claim, Curve, Experiment

XLSTM = "arXiv:2405.04517"
SUITE = "arXiv:2207.02098"
ZOOLOGY = "arXiv:2312.04927"

LEARNERS = ("sLSTM", "mLSTM", "nn.LSTM", "Transformer")


def state_tracking(title: str, task: str, chance: float, fails_below: float) -> Experiment:
    """An experiment on a formal language, which memory mixing solves at any length."""
    at, longest = ", at 256 symbols after training on up to 40", 256
    return Experiment(
        title=title,
        task=task,
        module="state_tracking",
        contenders=LEARNERS,
        claims=(
            Claim(
                words="an sLSTM, which mixes its memories, tracks the state" + at,
                source=f"{XLSTM}, section 4.1", contender="sLSTM", at=longest, at_least=0.99,
            ),
            Claim(
                words="an mLSTM, which does not, cannot track it" + at,
                source=f"{XLSTM}, section 4.1", contender="mLSTM", at=longest, below=fails_below,
            ),
            Claim(
                words="a Transformer cannot track it either" + at,
                source=f"{SUITE}, table 1", contender="Transformer", at=longest, below=fails_below,
            ),
            Claim(
                words="an LSTM tracks it as the sLSTM does" + at,
                source=f"{SUITE}, table 1", contender="nn.LSTM", at=longest, at_least=0.99,
            ),
        ),
        curves=(
            Curve(
                name="accuracy", x="symbols read", y="accuracy of the state after so many",
                columns=(16, 40, 64, 128, 256), trained_up_to=40, chance=chance,
            ),
        ),
    )  # fmt: skip


EXPERIMENTS: dict[str, Experiment] = {
    "parity": state_tracking(
        "Parity: is the number of ones odd?",
        "Read bits, and say after each whether the ones so far are odd in number.",
        0.5, 0.6,
    ),
    "cycle-navigation": state_tracking(
        "Cycle navigation: where on a ring of five?",
        "Read steps (back, stay, forth), and say after each where on a ring of five one is.",
        0.2, 0.5,
    ),
    "modular-arithmetic": state_tracking(
        "Modular arithmetic: what is it modulo 5?",
        "Read a calculation such as 1+3−1×4, worked from left to right, and say after each number "
        "what it comes to, modulo 5.",
        0.2, 0.5,
    ),
    "recall": Experiment(
        title="Associative recall: which value had that key?",
        task="Read 64 pairs of a key and a value, of 8192 tokens, then say the value of each key.",
        module="recall",
        contenders=("mLSTM", "sLSTM", "nn.LSTM", "Transformer"),
        claims=(
            Claim(
                words="an mLSTM's matrix memory recalls 64 pairs",
                source=f"{XLSTM}, section 4.1", contender="mLSTM", at=64, at_least=0.95,
            ),
            Claim(
                words="an LSTM of the same width does not",
                source=f"{XLSTM}, section 1", contender="nn.LSTM", at=64, below=0.5,
            ),
            Claim(
                words="an sLSTM of that width does not either",
                source=f"{XLSTM}, section 2.3", contender="sLSTM", at=64, below=0.5,
            ),
            Claim(
                words="a Transformer, which keeps every token, does",
                source=f"{ZOOLOGY}, section 4", contender="Transformer", at=64, at_least=0.95,
            ),
        ),
        curves=(
            Curve(
                name="accuracy", x="pairs", y="accuracy of the values", columns=(4, 16, 32, 64),
                chance=1 / 4096,
            ),
        ),
    ),
    "memory": Experiment(
        title="Long memory: what were the first four symbols?",
        task="Read 4 symbols, then noise for thousands of steps, then say the 4 symbols.",
        module="long_memory",
        contenders=LEARNERS,
        claims=(
            Claim(
                words="an mLSTM keeps them over 4096 steps after training on up to 1024",
                source=f"{XLSTM}, section 4.3", contender="mLSTM", at=4096, at_least=0.9,
            ),
            Claim(
                words="an sLSTM keeps them as well",
                source=f"{XLSTM}, section 2.2", contender="sLSTM", at=4096, at_least=0.9,
            ),
            Claim(
                words="a Transformer does not go beyond the lengths it was trained on",
                source=f"{XLSTM}, section 4.3", contender="Transformer", at=4096, below=0.5,
            ),
        ),
        curves=(
            Curve(
                name="accuracy", x="steps of noise", y="accuracy of the symbols",
                columns=(64, 256, 1024, 4096), trained_up_to=1024, chance=1 / 8,
            ),
        ),
    ),
    "throughput": Experiment(
        title="Throughput: what does a token cost in a long text?",
        task="Train on sequences of a length, and generate a token after a context of a length.",
        module="throughput",
        contenders=LEARNERS,
        claims=(
            Claim(
                words="an mLSTM's training costs as much per token at 8192 steps as at 512",
                source=f"{XLSTM}, section 2.3", contender="mLSTM", curve="training",
                at=8192, over=512, at_least=0.75,
            ),
            Claim(
                words="an sLSTM's training does as well",
                source=f"{XLSTM}, section 2.2", contender="sLSTM", curve="training",
                at=8192, over=512, at_least=0.75,
            ),
            Claim(
                words="a Transformer's training becomes slower",
                source="arXiv:1706.03762, table 1", contender="Transformer", curve="training",
                at=8192, over=512, below=0.5,
            ),
            Claim(
                words="a token of an mLSTM costs the same after 16,384 tokens as after 256",
                source=f"{XLSTM}, section 4.3", contender="mLSTM", curve="generation",
                at=16384, over=256, below=1.25,
            ),
            Claim(
                words="a token of an sLSTM does as well",
                source=f"{XLSTM}, section 4.3", contender="sLSTM", curve="generation",
                at=16384, over=256, below=1.25,
            ),
            Claim(
                words="a token of a Transformer costs more with a longer context",
                source=f"{XLSTM}, section 4.3", contender="Transformer", curve="generation",
                at=16384, over=256, at_least=2.0,
            ),
        ),
        curves=(
            Curve(
                name="training", x="steps of a sequence", y="training, tokens/s",
                columns=(512, 2048, 8192), log_y=True,
            ),
            Curve(
                name="generation", x="tokens before", y="generation, µs per token",
                columns=(256, 4096, 16384), log_y=True,
            ),
        ),
        together=True,
    ),
}  # fmt: skip
"""All experiments, in the order in which `openxlstm experiment all` runs them."""
