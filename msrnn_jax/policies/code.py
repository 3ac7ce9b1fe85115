"""The code that a policy is made of, as a hash: two of one name are told apart by it."""

import hashlib
import os
import sys

from msrnn_jax.policies.base import Policy
from msrnn_jax.policies.helpers import LIBRARIES, file_of, helpers_of
from msrnn_jax.policies.text import POLICIES
from msrnn_jax.policies.unfiled import compiled


def code_of(policy: Policy) -> str | None:
    """Hash of the code that a user's own policy is made of; None for the library's.

    That is the files in which it and the classes under it are written, and all modules of the user's that these
    import, see `helpers_of`. What was defined in no file (a notebook, a prompt) counts by what it was compiled to,
    which is another in another version of Python. Files that a policy reads as data are not seen.
    """
    if type(policy) in POLICIES.values():
        return None
    kinds = [kind for kind in type(policy).__mro__ if kind.__module__.split(".")[0] not in LIBRARIES]
    modules = {kind.__module__: sys.modules.get(kind.__module__) for kind in kinds}
    filed = {name: helper for name, module in modules.items() if (helper := file_of(module)) is not None}
    digest = hashlib.sha256()
    for helper in dict.fromkeys(filed.values()):
        digest.update(helper.content)
    known, used = compiled([kind for kind in kinds if kind.__module__ not in filed])
    digest.update(known)
    roots = {os.path.realpath(helper.file) for helper in filed.values()}
    for name, helper in sorted(helpers_of(filter(None, modules.values()), used).items()):
        if os.path.realpath(helper.file) not in roots:
            digest.update(f"\0{name}\0{hashlib.sha256(helper.content).hexdigest()}".encode())
    return digest.hexdigest()[:16]
