"""`DistributedDataParallel` around XLSTM: two processes have the gradients that one has."""

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from openxlstm import XLSTM

SAMPLES = 4


def gradients(rank: int = 0, world_size: int = 1) -> dict[str, Tensor]:
    """Of a process's share of the samples, after a step on the same share from another state."""
    torch.manual_seed(0)
    rnn = XLSTM(4, 16, num_heads=2, layers="ms", batch_first=True)
    module = nn.parallel.DistributedDataParallel(rnn) if world_size > 1 else rnn
    x = torch.randn(SAMPLES, 9, 4)[rank::world_size]
    state = None
    for _ in range(2):  # a stream: the state is an argument and a result of the wrapper too
        module.zero_grad()
        y, state = module(x, state)
        y.pow(2).mean().backward()
        state = state.detach()
    return {name: part.grad for name, part in rnn.named_parameters() if part.grad is not None}


def test_gradients_are_those_of_one_process(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in processes:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    expected = gradients()
    for rank in range(2):
        ours = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert ours.keys() == expected.keys()
        for name, grad in expected.items():
            torch.testing.assert_close(ours[name], grad, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(gradients(rank, 2), folder / f"{rank}.pt")
    dist.destroy_process_group()
