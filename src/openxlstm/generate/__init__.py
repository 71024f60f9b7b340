"""From a model to text: `sampling` picks tokens, `engine` keeps the state, `text` joins strings."""

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """Python binds `openxlstm.generate` to this package as soon as a part of it is imported; but
    the library's public function is called so too. Calling the package calls the function."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from openxlstm.generate.text import generate

        return generate(*args, **options)


sys.modules[__name__].__class__ = _Room
