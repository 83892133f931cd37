"""The ground floor: which library an array belongs to, where it lives, random draws, and the fused kernels.

Only files in this folder may import CuPy; everything above asks here and is the same code on CPU and GPU.

- `devices.py`        which module does this array belong to; moving arrays between host and GPU
- `random.py`         generators: splitting, copying for a replay, dropout masks
- `kernels_numpy.py`  the hot loops for NumPy, in place and without temporaries
- `kernels_cupy.py`   the same names and signatures for CuPy
- `special.py`        the error function, to double precision
- `threads.py`        work shared among threads
- `blas.py`           how many threads the matrix products use
- `memory.py`         keeping freed memory for the next step
"""

from minivit.backend.devices import array_module, gpu_available, kernels, owner, to_device, to_numpy
from minivit.backend.random import UNSET, as_generator, copy_generator, keep_mask, split_generator

__all__ = [
    "UNSET",
    "array_module",
    "as_generator",
    "copy_generator",
    "gpu_available",
    "keep_mask",
    "kernels",
    "owner",
    "split_generator",
    "to_device",
    "to_numpy",
]
