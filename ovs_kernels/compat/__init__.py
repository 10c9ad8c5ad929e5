"""Drop-ins for modules of other codebases: same names, same arguments, our kernels.

`patch` puts them under the original names; `python -m ovs_kernels.compat script.py` runs a script with them.
"""

from ._patch import Patch, Refusal, Replacement, patch

__all__ = ["Patch", "Refusal", "Replacement", "patch"]
