"""`is_unchanged` sees every change of a snapshot, and takes no other form for one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_cases import needs_native
from torch import nn

from openxlstm.ops.native.backend import extension

pytestmark = needs_native


def watched(modules: list[nn.Module]) -> Any:
    tables = [table for m in modules for table in (m._modules, m._parameters)]
    return extension().watched(
        torch.ops.openxlstm.watch([x for m in modules for x in m.parameters()]),
        (
            tuple((table, tuple(table.values())) for table in tables),
            tuple((m._forward_hooks, 0) for m in modules),
            tuple((m, type(m)) for m in modules),
            tuple(
                (vars(m), "in_features", m.in_features) for m in modules if isinstance(m, nn.Linear)
            ),
        ),
    )


def swap_data(model: nn.Sequential) -> None:
    model[0].weight.data = torch.zeros(3, 3)


CHANGES: dict[str, Callable[[nn.Sequential], Any]] = {
    "a child replaced": lambda model: model.__setitem__(1, nn.Linear(3, 3)),
    "a child added": lambda model: model.append(nn.Linear(3, 3)),
    "a child removed": lambda model: model.__delitem__(1),
    "a parameter replaced": lambda model: setattr(model[0], "weight", nn.Parameter(torch.ones(3))),
    "a parameter removed": lambda model: setattr(model[0], "bias", None),
    "a hook": lambda model: model[1].register_forward_hook(lambda *_: None),
    "another class": lambda model: setattr(model[0], "__class__", nn.Identity),
    "a setting": lambda model: setattr(model[0], "in_features", 4),
    "other memory": swap_data,
    "another dtype": lambda model: model.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    before = watched([model, *model])
    with torch.no_grad():
        model[0].weight.add_(1.0)  # pyright: ignore  # training in place is no change
    assert extension().is_unchanged(before)
    CHANGES[change](model)
    assert not extension().is_unchanged(before)


@pytest.mark.parametrize("place", range(4))
def test_another_form_is_an_error(place: int) -> None:
    for wrong in (None, 1, [], (1,), ((),), ((1,),), ((1, 2, 3, 4),), (1, 2), ((1,), (2,))):
        tables: list[Any] = [(), (), (), ()]
        tables[place] = wrong
        with pytest.raises(TypeError):
            extension().watched(torch.ops.openxlstm.watch([torch.zeros(1)]), tuple(tables))
    with pytest.raises(ValueError, match="watch"):
        extension().watched(12345, ((), (), (), ()))
    with pytest.raises(TypeError):
        extension().is_unchanged(((), (), (), ()))


def test_watching_keeps_alive_for_as_long_as_it_lasts() -> None:
    """Memory and objects alike: no new one is taken for one that was watched."""
    before = watched([nn.Linear(3, 3) for _ in range(5)])
    new: list[Any] = [nn.Linear(3, 3) for _ in range(50)]
    assert extension().is_unchanged(before), new
