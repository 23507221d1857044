"""A name that is not in the build."""

import pytest
from avatar_kernels import names


def test_another_name_is_refused_and_the_known_ones_are_told():
    names.check_name("xla", ("xla", "triton"))
    with pytest.raises(NotImplementedError, match="'cuda' is not in .* xla, triton."):
        names.check_name("cuda", ("xla", "triton"))
