"""What the tests of training share."""

import pytest
from train_cases import Recorder


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()
