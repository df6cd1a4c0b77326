"""Whatever form rows come in, the answer is what `Model.predict` gives for them."""

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import accelnet as an
from accelnet.serving.limits import Limits
from accelnet.serving.sizes import Sizes
from tests.artifact.conftest import DOUBLE, IMAGES, LENGTHS, SERIES, kjv, table_run, trained
from tests.serving.conftest import close

ROWS = [{"size": 4.5, "hue": "red"}, {"size": 6, "hue": "blue"}]


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0]).save(buffer, "png")
    return buffer.getvalue()


def form(**files):
    parts = (
        f'--x\r\ncontent-disposition: form-data; name="{name}"; filename="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in files.items()
    )
    return b"".join(parts) + b"--x--\r\n"


IN_FORM = {"kind": "multipart/form-data; boundary=x"}
FORMS = {
    "a row": (1, IMAGES[0].tolist, {}),
    "rows": (3, IMAGES[:3].tolist, {}),
    "more rows than a batch": (20, IMAGES[:20].tolist, {}),
    "npy": (3, lambda: npy(IMAGES[:3]), {"kind": "application/octet-stream"}),
    "npy of columns": (3, lambda: npy(np.asfortranarray(IMAGES[:3])), {}),
    "PNG": (1, lambda: png(IMAGES[0]), {"kind": "image/png"}),
    "PNG without a type": (1, lambda: png(IMAGES[0]), {"kind": "application/x-www-form-urlencoded"}),
    "base64": (2, lambda: [base64.b64encode(png(one)).decode() for one in IMAGES[:2]], {}),
    "form of PNG": (2, lambda: form(a=png(IMAGES[0]), b=png(IMAGES[1])), IN_FORM),
    "form of npy": (3, lambda: form(a=npy(IMAGES[:3])), IN_FORM),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_arrays_and_pictures_gives_what_predict_gives(name, pictures):
    count, body, options = FORMS[name]
    expected = pictures.model.predict(IMAGES[:count])
    found = pictures.predict(body(), **options)
    rows = found.get("predictions", [found])
    assert [row["label"] for row in rows] == expected.labels.tolist()
    close([[row["probabilities"][name] for name in ("cat", "dog", "owl")] for row in rows], expected.probabilities)
    close([row["probability"] for row in rows], expected.probabilities.max(axis=1))


def test_tensors_of_the_open_inference_protocol_give_what_predict_gives(pictures):
    status, facts = pictures.ask("GET", "/v2/models/experiment")
    assert status == 200 and facts["inputs"] == [{"name": "inputs", "datatype": "UINT8", "shape": [-1, 12, 12, 1]}]
    tensor = {"name": "inputs", "datatype": "UINT8", "shape": [3, 12, 12, 1], "data": IMAGES[:3].reshape(-1).tolist()}
    path = "/v2/models/experiment/infer"
    status, found = pictures.ask("POST", path, {"id": "seven", "inputs": [tensor]})
    expected = pictures.model.predict(IMAGES[:3])
    assert status == 200 and found["id"] == "seven" and found["model_name"] == "experiment"
    outputs = {one["name"]: one for one in found["outputs"]}
    assert set(outputs) == {one["name"] for one in facts["outputs"]}
    assert outputs["labels"] == {
        "name": "labels", "datatype": "BYTES", "shape": [3], "data": expected.labels.tolist(),
    }  # fmt: skip
    close(np.reshape(outputs["outputs"]["data"], outputs["outputs"]["shape"]), expected.outputs)
    for change, code, text in (
        ({"datatype": "FP31"}, 400, "needs a shape, a datatype such as FP32"),
        ({"shape": [4, 12, 12, 1]}, 400, "cannot reshape"),
        ({"data": [300] * 432}, 400, "UINT8 cannot hold its values"),
        ({"name": "other"}, 422, "expected 'inputs'"),
    ):
        status, found = pictures.ask("POST", path, {"inputs": [tensor | change]})
        assert status == code and text in found["error"], found
    status, found = pictures.ask("POST", path, {"inputs": [tensor], "outputs": [{"name": "none"}]})
    assert status == 422 and "a name of 'classes'" in found["error"]
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/experiment/ready"):
        assert pictures.ask("GET", path)[0] == 200


def test_rows_of_a_table_give_numbers_in_the_units_of_the_file(serving):
    served = serving(table_run(), "table")
    expected = served.model.predict(ROWS).numbers.reshape(-1)
    close(served.predict(ROWS[0])["prediction"], expected[0])
    close([row["prediction"] for row in served.predict(ROWS)["predictions"]], expected)
    close([row["prediction"] for row in served.predict([[4.5, "red"], [6, "blue"]])["predictions"]], expected)
    tensors = [
        {"name": "size", "datatype": "FP64", "shape": [2], "data": [4.5, 6]},
        {"name": "hue", "datatype": "BYTES", "shape": [2], "data": ["red", "blue"]},
    ]
    status, found = served.ask("POST", "/v2/models/experiment/infer", {"inputs": tensors})
    assert status == 200
    close(next(one["data"] for one in found["outputs"] if one["name"] == "numbers"), expected)
    for body, text in (
        ({"size": 4, "hue": "pink"}, "hue is 'pink', expected one of"),
        ({"size": 4}, "no column 'hue'"),
        ({"size": "much", "hue": "red"}, "size is 'much', expected a finite number"),
        ({"size": [4], "hue": "red"}, "column 'size' is [4], expected a number or text"),
        ([4], "row 0 has 1 values, expected 2"),
        ("/etc/passwd", "the body is '/etc/passwd', expected a list"),
        ([], "the body is []"),
    ):
        status, found = served.ask("POST", "/predict", body)
        assert status == 422 and text in found["error"], found


def test_sequences_of_any_length_share_batches(sequences):
    """Sixteen clients at once send other numbers of steps each, and get what each gets alone."""

    def row(number):
        steps = int(LENGTHS[number])
        return {"inputs": SERIES[number, :steps].tolist()} | ({"lengths": steps} if number % 2 else {})

    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda number: sequences.predict(row(number)), range(48)))
    expected = sequences.model.predict({"inputs": SERIES[:48], "lengths": LENGTHS[:48]})
    close([list(one["probabilities"].values()) for one in found], expected.probabilities)
    several = sequences.predict([row(number) for number in range(5)])["predictions"]
    close([list(one["probabilities"].values()) for one in several], expected.probabilities[:5])
    in_form = form(inputs=npy(SERIES[:4]), lengths=npy(LENGTHS[:4]))
    found = sequences.predict(in_form, kind="multipart/form-data; boundary=x")["predictions"]
    close([list(one["probabilities"].values()) for one in found], expected.probabilities[:4])
    for body, text in (
        ({"inputs": np.zeros((17, 4)).tolist()}, "inputs have 17 steps, expected 1 to 16"),
        ({"inputs": np.zeros((3, 4)).tolist(), "lengths": 4}, "lengths are [4], expected 1 to 3"),
        ({"inputs": np.zeros((3, 5)).tolist()}, "expected {'inputs': ['batch', 'steps', 4]"),
        ({"input": []}, "a row has 'input', expected 'inputs', 'lengths'"),
        ([{"lengths": 3}], "row 0 lacks 'inputs'"),
    ):
        status, found = sequences.ask("POST", "/predict", body)
        assert status == 422 and text in found["error"], found


@pytest.mark.parametrize("bidirectional", [False, True])
def test_text_is_padded_only_where_that_changes_nothing(bidirectional, tmp_path):
    data = an.data.text(kjv(tmp_path, "a.txt"), window=16)
    symbols = data.info["num_classes"]
    run = trained(
        data,
        lambda rngs: an.models.RNN(
            6, 8, symbols, num_symbols=symbols, output="steps", bidirectional=bidirectional, rngs=rngs
        ),
        an.objectives.token_cross_entropy(),
    )
    model = an.load(run.save(tmp_path / "a.accelnet"))
    sizes = Sizes(model, Limits(batch_rows=2, steps=32))
    sizes.compile(lambda done, whole: None, lambda: False)
    tokens = data.encode(["the word was"])
    if bidirectional:
        with pytest.raises(an.UserError, match=r"12 steps, and this model looks ahead: expected one of \(16, 32\)"):
            sizes.padded(tokens)
    else:
        (found,) = sizes.compute([sizes.padded(tokens)])
        close(found["outputs"], model.predict(["the word was"]).outputs)


def test_labels_are_yes_or_no(serving):
    data = an.data.table({**DOUBLE, "left": np.where(DOUBLE["left"] == "yes", 1, 0)}, target="left", features=["size"])
    run = trained(
        data, lambda rngs: an.models.MLP(1, (), 1, rngs=rngs), an.objectives.sigmoid_cross_entropy(), batch_size=8
    )
    served = serving(run, "labels")
    found, expected = served.predict({"size": 4.0}), served.model.predict([{"size": 4.0}])
    assert found["label"] == expected.labels[0] and json.dumps(found)
    close(found["probability"], expected.probabilities[0])
