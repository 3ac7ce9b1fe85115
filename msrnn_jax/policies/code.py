"""The code that a policy is made of, as a hash: two of one name are told apart by it."""

import hashlib
import os
import sys

from msrnn_jax.policies.base import Policy
from msrnn_jax.policies.helpers import LIBRARIES, file_of, helpers_of
from msrnn_jax.policies.text import POLICIES


def code_of(policy: Policy) -> str | None:
    """Hash of the code that a user's own policy is made of; None for the library's.

    That is the files in which it and the classes under it are written, and all modules of the user's that these
    import, see `helpers_of`. What was defined in no file (a notebook, a prompt) is not seen, nor are files that a
    policy reads as data.
    """
    if type(policy) in POLICIES.values():
        return None
    kinds = [kind for kind in type(policy).__mro__ if kind.__module__.split(".")[0] not in LIBRARIES]
    modules = [sys.modules.get(name) for name in dict.fromkeys(kind.__module__ for kind in kinds)]
    files = list(dict.fromkeys(filter(None, map(file_of, modules))))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.content)
    roots = {os.path.realpath(file.file) for file in files}
    for name, helper in sorted(helpers_of(filter(None, modules)).items()):
        if os.path.realpath(helper.file) not in roots:
            digest.update(f"\0{name}\0{hashlib.sha256(helper.content).hexdigest()}".encode())
    return digest.hexdigest()[:16]
