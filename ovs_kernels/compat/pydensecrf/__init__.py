"""pydensecrf (as pydensecrf2 1.1 has it) on `ovs_kernels.dense_crf`: `densecrf`, `utils` and `eigen`."""

from . import densecrf, eigen, utils

__all__ = ["densecrf", "eigen", "utils"]
