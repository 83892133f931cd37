"""The served lab refuses what is malformed with a plain error, and goes on."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from lab_tools import build, image

from minivit.lab import Lab
from minivit.lab.lab import Digits
from minivit.lab.server import PAGE, Server
from minivit.lab.wire import packed


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((1, 28, 28), dtype=np.float32)


def encoded(array: np.ndarray) -> str:
    return base64.b64encode(array.astype("<f4").tobytes()).decode()


def make(report: object = None) -> Lab:
    rng = np.random.default_rng(0)
    digits = Digits(rng.integers(0, 256, (30, 28, 28), dtype=np.uint8), np.arange(30) % 10, "random images")
    return Lab(build("vit"), list("0123456789"), (0.5,), (0.25,), digits, "a test")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(make) as server:
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        for _ in range(200):
            if server.lab is not None:
                break
            threading.Event().wait(0.02)
        yield server
        server.shutdown()
        thread.join()


def ask(server, name="read", body=None, method="POST", path=None, **headers):
    """Status and parsed answer."""
    body = json.dumps({"pixels": encoded(pixels())}).encode() if body is None else body
    sent = {"Content-Type": "application/json", "X-Lab-Token": server.token, **headers}
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        connection.request(method, path or f"/api/{name}", body, {k: v for k, v in sent.items() if v is not None})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def raw(server, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received


def refused(server, status, reason, **request):
    got, body, headers = ask(server, **request)
    assert got == status, body
    assert headers["Content-Type"] == "application/json"
    assert reason in json.loads(body)["error"], body
    assert b"Traceback" not in body
    assert ask(server)[0] == 200  # the lab goes on


def unpacked(value):
    if isinstance(value, dict) and "float32" in value:
        return np.frombuffer(base64.b64decode(value["float32"]), "<f4").reshape(value["shape"])
    return value


def test_a_drawing_is_read_as_predict_reads_it(server):
    status, body, _ = ask(server)
    answer = json.loads(body)
    model, x = build("vit"), (pixels()[None] - np.float32(0.5)) / np.float32(0.25)
    assert status == 200
    np.testing.assert_allclose(unpacked(answer["probabilities"]), model.predict_proba(x)[0], atol=1e-6)
    logits, back = model(x)
    from minivit import functional as F

    _, back_loss = F.softmax_cross_entropy(logits, logits.argmax(axis=1))
    np.testing.assert_allclose(unpacked(answer["dpixels"]), back(back_loss())[0] / 0.25, atol=1e-6)


def test_the_page_is_served_with_strict_headers(server):
    for path in ("/", "/lab.js", "/lab.css"):
        status, body, headers = ask(server, method="GET", path=path, body=b"")
        assert status == 200 and body
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
    assert server.token not in (PAGE / "index.html").read_text() and len(server.token) >= 32
    assert server.address == f"http://127.0.0.1:{server.server_port}/#{server.token}"


def test_it_listens_on_this_machine_alone(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("token", ["", "x" * 32, "é", None])
def test_a_wrong_token(server, token):
    coded = token if token is None else token.encode()
    refused(server, 403, "token", **{"X-Lab-Token": coded})


@pytest.mark.parametrize(
    "path", ["/../lab.py", "/%2e%2e/lab.py", "/page/lab.js", "/etc/passwd", "/lab.js?x", "/..\\lab.py", "/lab"]
)
def test_a_path_outside_of_the_page(server, path):
    refused(server, 404, "no such file", method="GET", path=path, body=b"")


def test_another_host_or_site(server):
    refused(server, 421, "this server is", Host="example.org")
    refused(server, 421, "this server is", Host=f"localhost:{server.server_port}")
    refused(server, 403, "other sites", Origin="http://example.org")
    refused(server, 403, "other sites", Origin="null")
    refused(server, 421, "this server is", method="GET", path="/", body=b"", Host="example.org")
    assert ask(server, Origin=f"http://127.0.0.1:{server.server_port}")[0] == 200
    twice = raw(server, f"GET / HTTP/1.1\r\nHost: {server.host}\r\nHost: example.org\r\n\r\n".encode())
    assert twice.startswith(b"HTTP/1.1 421")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 5000, "not JSON"),
        (b"[1]", "JSON object"),
        (b'{"pixels": NaN}', "not a number"),
        (b'{"pixels": 1}', "got int"),
        (b"{}", "got NoneType"),
        (b'{"pixels": "???"}', "not base64"),
        (b'{"pixels": "AAAA"}', "got 3 bytes"),
    ],
)
def test_broken_json_and_pixels(server, body, reason):
    refused(server, 400, reason, body=body)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.01, 1.01])
def test_pixels_that_are_no_brightness(server, value):
    bad = pixels()
    bad[0, 3, 4] = value
    refused(server, 400, "from 0 to 1", body=json.dumps({"pixels": encoded(bad)}).encode())


@pytest.mark.parametrize(
    ("name", "request_", "reason"),
    [
        ("read", {"target": 10}, "target must be an integer from 0 to 9"),
        ("read", {"target": True}, "target must be"),
        ("read", {"switches": "scale"}, "a list of names"),
        ("read", {"switches": ["all"]}, "unknown"),
        ("read", {"switches": ["heads"], "head": -1}, "head must be"),
        ("read", {"patch": [9, 9]}, "not on the grid"),
        ("read", {"patch": [0.5, 1]}, "patch must be"),
        ("step", {}, "label must be"),
        ("attend", {"reading": 10**9}, "no longer kept"),
        ("tensor", {"reading": None}, "no longer kept"),
        ("undo", {}, "no training step"),
        ("example", {"digit": "7"}, "digit must be"),
    ],
)
def test_requests_that_make_no_sense(server, name, request_, reason):
    body = json.dumps({"pixels": encoded(pixels()), **request_}).encode()
    refused(server, 400, reason, name=name, body=body)


def test_a_huge_body_is_not_read(server):
    refused(server, 413, "at most", **{"Content-Length": str(10**9)})
    refused(server, 413, "at most", **{"Content-Length": "9" * 5000})
    refused(server, 411, "Content-Length", **{"Content-Length": "-1"})
    refused(server, 411, "Content-Length", **{"Content-Length": "²".encode()})
    chunked = f"POST /api/read HTTP/1.1\r\nHost: {server.host}\r\nX-Lab-Token: {server.token}\r\nContent-Type: "
    answer = raw(server, (chunked + "application/json\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").encode())
    assert answer.startswith(b"HTTP/1.1 411")


def test_other_methods_types_and_names(server):
    refused(server, 415, "application/json", **{"Content-Type": "text/plain"})
    refused(server, 404, "no 'eval'", name="eval")
    refused(server, 404, "no '__init__'", name="__init__")
    refused(server, 404, "below /api/", path="/read")
    refused(server, 501, "Unsupported method", method="DELETE")
    answer = raw(server, b"\x00\x01\x02\r\n\r\n")
    assert b"Traceback" not in answer and ask(server)[0] == 200
    long = raw(server, b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n")
    assert long.split(b" ")[1] == b"414" and ask(server)[0] == 200


def test_a_browser_that_leaves_is_no_error(server, capfd):
    with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
        connection.sendall(f"POST /api/read HTTP/1.1\r\nHost: {server.host}\r\nContent-Length: 500\r\n".encode())
    assert ask(server)[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_fault_of_the_program_is_one_line_and_the_lab_goes_on(server, monkeypatch):
    def broken(self, images):
        raise ZeroDivisionError("a planted fault")

    with monkeypatch.context() as patched:
        patched.setattr(Lab, "_normalized", broken)
        status, body, _ = ask(server)
    assert status == 500 and json.loads(body)["error"] == "ZeroDivisionError: a planted fault"
    assert ask(server)[0] == 200


def test_several_browsers_together_get_their_own_answers(server):
    answers: dict[int, bytes] = {}

    def draw(seed: int) -> None:
        answers[seed] = ask(server, body=json.dumps({"pixels": encoded(pixels(seed))}).encode())[1]

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, body in answers.items():
        x = (pixels(seed)[None] - np.float32(0.5)) / np.float32(0.25)
        found = unpacked(json.loads(body)["probabilities"])
        np.testing.assert_allclose(found, build("vit").predict_proba(x)[0], atol=1e-6)


def test_until_the_lab_is_made_it_says_why():
    begun, go_on = threading.Event(), threading.Event()

    def slowly(report):
        report("epoch 1 of 2\x1b[0m")
        begun.set()
        go_on.wait(10)
        raise RuntimeError("training failed: no data")

    with Server(slowly) as server:
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        assert begun.wait(10)
        state = json.loads(ask(server, "state", b"{}")[1])
        assert not state["ready"] and state["progress"].startswith("epoch 1 of 2") and "\x1b" not in state["progress"]
        status, body, _ = ask(server)
        assert status == 503 and "epoch 1 of 2" in json.loads(body)["error"]
        go_on.set()
        for _ in range(200):
            if server.failure:
                break
            threading.Event().wait(0.02)
        assert json.loads(ask(server, "state", b"{}")[1])["failure"] == "training failed: no data"
        server.shutdown()
        thread.join()


# --- the answers, without a server ----------------------------------------------------------------------------------


def test_a_training_step_changes_the_lab_alone_and_is_undone_exactly():
    model = build("vit")
    given = model.state_dict()
    lab = Lab(model, list("0123456789"), (0.5,), (0.25,))
    before, request = lab.model.state_dict(), {"pixels": encoded(pixels()), "label": 4}
    read = lab.answer("read", {**request, "target": 4})["loss"]  # whose copy of the layers reads after the steps too
    for count in (1, 2):
        done = lab.answer("step", request)
        assert count == 2 or read == pytest.approx(done["before"], abs=1e-6)
        assert done["after"] < done["before"] and done["steps"] == count
    assert lab.answer("read", {**request, "target": 4})["loss"] == pytest.approx(done["after"], abs=1e-6)
    assert lab.answer("undo", {}) == {"steps": 1} and lab.answer("undo", {}) == {"steps": 0}
    assert all(np.array_equal(before[name], array) for name, array in lab.model.state_dict().items())
    assert all(np.array_equal(given[name], array) for name, array in model.state_dict().items())


def test_a_step_with_switches_leaves_switched_off_parameters():
    lab = Lab(build("vit"), list("0123456789"), (0.5,), (0.25,))
    before = lab.model.state_dict()
    lab.answer("step", {"pixels": encoded(pixels()), "label": 4, "switches": ["positions", "heads"], "head": 1})
    after = lab.model.state_dict()
    np.testing.assert_array_equal(before["pos_embed"], after["pos_embed"])
    assert not np.array_equal(before["head.weight"], after["head.weight"])


@pytest.mark.parametrize("kind", ["vit", "average", "hybrid", "swin", "swin_v2"])
def test_every_tensor_can_be_shown_and_is_the_readings(kind):
    lab = Lab(build(kind), list("0123456789"), (0.5,), (0.25,))
    answer = lab.answer("read", {"pixels": encoded(pixels()), "target": 2})
    found = lab._readings[answer["reading"]]
    for part in answer["parts"]:
        shown = lab.answer("tensor", {"reading": answer["reading"], "name": part["name"], "which": "y"})
        value = found.parts[part["name"]].y
        assert shown["value"]["shape"] == list(value.shape)
        np.testing.assert_array_equal(shown["value"]["matrix"].ravel(), value.ravel()[: shown["value"]["matrix"].size])
        json.dumps(packed(shown), allow_nan=False)
    for name in lab.model.parameters():
        shown = lab.answer("tensor", {"reading": answer["reading"], "name": name, "which": "parameter"})
        np.testing.assert_array_equal(shown["gradient"]["matrix"].ravel(), found.gradients[name].ravel()[:16_384])
    with pytest.raises(ValueError, match="no parameter 'x'"):
        lab.answer("tensor", {"reading": answer["reading"], "name": "x", "which": "parameter"})
    with pytest.raises(ValueError, match="take the name of a part"):
        lab.answer("tensor", {"reading": answer["reading"], "name": "x"})
    about = lab.answer("about", {})
    assert about["windows"] == kind.startswith("swin") and about["positions"] == (kind in ("vit", "hybrid"))
    if about["windows"]:
        assert lab.answer("windows", {"reading": answer["reading"], "block": 1})["shift"] == [2, 2]
    else:
        with pytest.raises(ValueError, match="without windows"):
            lab.answer("windows", {"reading": answer["reading"], "block": 1})


def test_accuracy_is_computed_again_after_a_step():
    lab = make()
    first = lab.answer("accuracy", {})
    assert first["count"] == 30
    images = (lab.digits.images[:, None].astype("float32") / 255 - 0.5) / 0.25
    expected = (build("vit").predict(images.astype("float32")).argmax(axis=1) == lab.digits.labels).mean()
    assert first["accuracy"] == pytest.approx(expected)
    lab.answer("step", {"pixels": encoded(pixels()), "label": 4})
    assert not lab._correct
    example = lab.answer("example", {"digit": 3, "nth": 1})
    np.testing.assert_allclose(example["pixels"][0], lab.digits.images[13] / 255, atol=1e-7)


def test_accuracy_in_parts_is_that_of_all():
    rng = np.random.default_rng(0)
    digits = Digits(rng.integers(0, 256, (300, 28, 28), dtype=np.uint8), np.arange(300) % 10, "random images")
    lab = Lab(build("vit"), list("0123456789"), (0.5,), (0.25,), digits)
    parts = [lab.answer("accuracy", {"start": start}) for start in (0, 125, 250)]
    assert [part["next"] for part in parts] == [125, 250, None] and parts[0]["accuracy"] is None
    images = ((digits.images[:, None].astype("float32") / 255 - 0.5) / 0.25).astype("float32")
    expected = (build("vit").predict(images).argmax(axis=1) == digits.labels).mean()
    assert parts[2]["accuracy"] == pytest.approx(expected)


def test_what_the_lab_cannot_show_is_refused():
    model = build("vit")
    model.reset_classifier(0)
    with pytest.raises(ValueError, match="needs a classifier"):
        Lab(model, [], (0.5,), (0.25,))
    with pytest.raises(ValueError, match="no test images"):
        Lab(build("vit"), list("0123456789"), (0.5,), (0.25,)).answer("accuracy", {})


def test_answers_are_finite_for_a_blank_drawing():
    lab = make()
    answer = lab.answer("read", {"pixels": encoded(np.zeros((1, 28, 28)))})
    json.dumps(packed(answer), allow_nan=False)
    assert image().shape == (1, 1, 28, 28)
