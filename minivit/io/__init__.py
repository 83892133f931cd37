"""Reading and writing files: arrays by name, whatever the format. Nothing here knows a model.

`atomic.py` writes files so that a crash loses nothing, `safetensors.py` is the format of the library's own files,
`torch_file/` reads PyTorch's without running anything in them, and `weights.py` reads whatever a path holds.
"""
