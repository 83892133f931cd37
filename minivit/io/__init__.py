"""Reading and writing files: arrays by name, in several formats. Nothing here depends on a model.

`atomic.py` writes files that survive a crash, `safetensors.py` is the format of the library's own files, `torch_file/`
reads PyTorch's without running code in them, and `weights.py` reads any of these formats.
"""
