"""Inspecting a model: windows and masks, attention, Grad-CAM, a step of training part by part, and positions.

The layers need no code for it. Either the model runs stage by stage, and intermediate values are computed from the
parameters of its parts; or a copy of the model runs whose parts report. The model itself is not changed.

`windows.py` explains Swin's windows; `attention.py` and `gradcam.py` show what a model attended to
(docs/classify_an_image.md); `hooks.py`, `formulas.py`, `trace.py` and `debugging.py` follow a step of training
(docs/trace.md); `positions.py` compares position vectors. `minivit/draw/` draws the results.
"""
