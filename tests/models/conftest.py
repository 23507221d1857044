"""A network with every part on."""

import pytest
from dit_cases import FULL, random_params


@pytest.fixture(scope="session")
def full():
    return random_params(FULL)
