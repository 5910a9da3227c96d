"""What only a GPU shows. Without one these tests are skipped, each with this reason."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

REASON = "no CUDA device here: training, encoding and drawing are tried on one when there is"


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason=REASON))
