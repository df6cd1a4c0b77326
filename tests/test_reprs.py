"""Values show themselves in a few lines, in a terminal and in a notebook."""

import numpy as np

import accelnet as an


def test_values_print_themselves_in_twelve_lines():
    data = an.data.from_arrays(np.eye(300, 2, dtype=np.float32), np.arange(300) % 2, num_classes=2, test=0.2)
    experiment = an.Experiment(
        data=data,
        model=lambda rngs: an.models.MLP(2, (3,), 2, rngs=rngs),
        optimizer=an.optim.adam(1e-2),
        objective=an.objectives.softmax_cross_entropy(),
        batch_size=32,
        steps=3,
        name="toy",
    )
    run = an.fit(experiment, progress=False)
    found = an.assess(run, latency=False)
    plan = an.plan(experiment, ["v5e", "h100"], compile=False, remedies=False, progress=False)
    deep = an.models.summary(lambda rngs: an.models.MLP(2, (3,) * 9, 2, rngs=rngs), np.ones((1, 2), np.float32))
    assert "print(summary) shows all" in repr(deep) and "total" in repr(deep)
    for value in (experiment, run, found, plan, data, data.folds(3), deep):
        lines = repr(value).splitlines()
        assert 1 <= len(lines) <= 12 and max(map(len, lines)) <= 120, repr(value)
    assert "3 updates of 32 examples" in repr(experiment) and "data        " in repr(experiment)
    assert f"accuracy {run.metrics['test']['accuracy']:.4g}" in repr(run) and "17 numbers" in repr(run)
    assert "accuracy" in repr(found) and "v5e" in repr(plan)
    for value in (found, plan):
        html = value._repr_html_()
        assert html.startswith('<div class="accelnet"><style>@scope{') and "<body" not in html
