"""What the tests of conversion check again and again."""

import jax
import numpy as np
import pytest
from checkpoints import NUMPY_DTYPES, flatten

from convert import convert
from convert.resolve import Resolved, read
from convert.tensors import Findings, deferred


def loaded(source, dtype=None, report=lambda line: None):
    """The config and the params that a conversion writes, without the writing."""
    found = read(Resolved(source, "of any kind"), dtype, report)
    params = deferred(found.config, found.names, found.stored, Findings(), lambda count: None)
    return found.config, jax.tree.map(lambda weight: weight.read(), params)


def facts_of(source):
    """What a conversion writes of the tokenizer."""
    return read(Resolved(source, "of any kind"), None, lambda line: None).facts


def check_equal(params, weights, dtype="float32"):
    """The params are these weights, as `make_weights` spells them, in that dtype."""
    found = flatten(params)
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        assert found[name].dtype == NUMPY_DTYPES[dtype], name
        np.testing.assert_array_equal(found[name], value.astype(NUMPY_DTYPES[dtype]), err_msg=name)


def refusal(source, destination, **options):
    """What the conversion is refused with; it must leave nothing behind."""
    with pytest.raises(ValueError) as caught:
        convert(source, destination, **options)
    assert not destination.exists()
    return str(caught.value)
