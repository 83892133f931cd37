"""Code for speed only: fast implementations of functions of `minivit.functional`, threads, and freed memory.

`minivit/functional/` holds each function as its formula. A file in `numpy/` or `cupy/` implements a function under the
same name and signature; `dispatch.py` chooses between the two by the array. The formulas alone define what a function
computes.

- `dispatch.py`      the choice: `accelerated(formula)`, and `with minivit.plain():` for the formulas alone
- `numpy/`           implementations for the CPU
- `cupy/`            implementations for the GPU
- `precision.py`     how exactly a GPU multiplies: `minivit.matmul_precision`
- `blocks.py`        attention for a few queries at a time
- `threads.py`       work shared among threads
- `blas_threads.py`  how many threads the matrix products use
- `blas_kernel.py`   the kernel of the matrix products, and a warning where it is older than the processor
- `freed_memory.py`  freed memory kept for the next step
"""

from minivit.renamed import old_names

# version 0.1 had these in minivit.backend
__getattr__ = old_names(
    __name__,
    {name: f"minivit.device.{name}" for name in ("array_module", "gpu_available", "owner", "to_device", "to_numpy")}
    | {name: f"minivit.random.{name}" for name in ("as_generator", "copy_generator", "split_generator", "UNSET")},
)
