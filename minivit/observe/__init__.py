"""Watching a model: windows and their masks, attention, Grad-CAM, a step of training part by part, and positions.

The layers know nothing of it. A model is run stage by stage, and what its parts would compute is computed again from
their own parameters; or a copy of it runs whose parts report. The model that is watched stays as it was.

`windows.py` explains Swin's windows; `attention.py` and `gradcam.py` show what a model attended to
(docs/classify_an_image.md); `hooks.py`, `formulas.py`, `trace.py` and `debugging.py` follow a step of training
(docs/trace.md); `positions.py` compares position vectors. `minivit/draw/` makes pictures of it.
"""
