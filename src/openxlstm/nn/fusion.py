"""When fused code may stand in for modules.

A fused op, or the native step, reads the weights of several modules and calls none of them. It
gives their answer only while each is exactly of the class that it was built with, and nothing else
happens when it is called. Adapters, hooks, parametrizations, pruning, quantised layers and wrappers
all change that. Then the modules are called one by one.
"""

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

Kinds = type[nn.Module] | tuple[type[nn.Module], ...]

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""The attributes that hold a module's hooks; those for all modules have _global before the name."""

WEIGHTS = (nn.Parameter, Tensor, type(None))
"""Types of weights that fused code may read. A subclass of Tensor has arithmetic of its own."""

FAKE = "torch._subclasses.fake_tensor"
"""The module of torch's tensors without values, which trace what the real ones would do. It is not
imported for that, since it takes half a second."""


class Fault(NamedTuple):
    """Why fused code may not stand in for a module."""

    name: str
    """The module, by its name in the one that was looked at."""
    reason: str

    def __str__(self) -> str:
        return f"{self.name} {self.reason}"


def are_plain(*parts: tuple[nn.Module | None, Kinds]) -> bool:
    """Whether fused code may stand in for all these modules, each given with its expected class.

    A module that is None was left out and passes. The children of a module are checked as well,
    against the classes in its class attribute `PARTS`.
    """
    return global_hook() is None and not any(find_fault("", *part) for part in parts)


def children_are_plain(module: nn.Module) -> bool:
    """Whether fused code may stand in for the children of a module that is being called itself."""
    return global_hook() is None and _fault_of_children(module, "") is None


def find_fault(name: str, module: nn.Module | None, kinds: Kinds) -> Fault | None:
    """The first module in `module`, called `name`, that fused code may not stand in for."""
    if module is None:
        return None
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if type(module) not in kinds:
        names = [kind.__name__ for kind in kinds]
        found = type(module).__name__
        found = f"{type(module).__module__}.{found}" if found in names else found
        return Fault(name, f"is of class {found}, not {' or '.join(names)}")
    if is_watched(module):
        return Fault(name, "has hooks, or a forward that was replaced or compiled")
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return Fault(name, "has a max_norm, which changes its weights when it is called")
    for key, weight in module._parameters.items():
        if type(weight) not in WEIGHTS and type(weight).__module__ != FAKE:
            return Fault(_join(name, key), f"is of class {type(weight).__name__}")
    return _fault_of_children(module, name)


def is_watched(module: nn.Module) -> bool:
    """Whether calling a module does more, or something else, than the `forward` of its class."""
    return (
        any(getattr(module, name) for name in HOOKS)
        or "forward" in module.__dict__  # replaced on this object, as accelerate does
        or module._compiled_call_impl is not None
    )


def global_hook() -> str | None:
    """Why no module is plain: a hook for all modules. None where there is none."""
    if any(getattr(torch_modules, f"_global{name}") for name in HOOKS):
        return "there are hooks for all modules"
    return None


def any_weight(module: nn.Module) -> Tensor:
    """A weight of a module, a floating-point one if there is any: it tells dtype and device.

    Replicas, as `torch.nn.DataParallel` makes them, have plain tensors for parameters, which
    `parameters()` does not list. Where accelerate has offloaded the weights, the result is an empty
    tensor on the device that it computes on.

    Raises:
        ValueError: if the module has no weight.
    """
    for weight in module.parameters():
        if weight.is_floating_point() and not weight.is_meta:
            return weight
    parts = list(module.modules())
    plain = (value for part in parts for value in part.__dict__.values())
    weights = [value for value in (*module.parameters(), *plain) if isinstance(value, Tensor)]
    weight = next((x for x in weights if x.is_floating_point()), weights[0] if weights else None)
    if weight is None:
        raise ValueError(f"{type(module).__name__} has no weight that tells its dtype and device")
    if not weight.is_meta:
        return weight
    hooks = (getattr(part, "_hf_hook", None) for part in parts)
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    device = next((device for device in devices if device is not None), None)
    return weight if device is None else weight.new_empty(0, device=device)


def _fault_of_children(module: nn.Module, name: str) -> Fault | None:
    expected: dict[str, Any] = getattr(type(module), "PARTS", {})
    for key, child in module._modules.items():
        if key not in expected:
            return Fault(_join(name, key), "was added")
        fault = find_fault(_join(name, key), child, expected[key])
        if fault is not None:
            return fault
    return None


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
