"""The training loop: measures in the log, curves, and the check for divergence."""

import json
import math

import pytest

from aligner.run.errors import InputError
from aligner.training.loop import curve, first_measures, require_finite


def test_the_base_is_measured_once_and_a_resumed_run_has_it_in_its_log():
    """Neither a later measurement nor a line of the trainer's own counts."""
    log = [{"step": 1, "loss": 9.0}, {"step": 0, "a": 1.0, "b": 2.0}, {"step": 4, "a": 3.0, "b": 4.0}]
    assert first_measures(json.loads(json.dumps(log)), {"a": 3.0, "b": 4.0}) == {"a": 1.0, "b": 2.0}


def test_curve_has_the_wanted_series_in_order_by_step():
    log = [
        {"step": 2, "loss": 0.5, "grad_norm": 9.0},
        {"step": 0, "held": 3.0},
        {"step": 1, "loss": 1.0},
        {"step": 2, "held": 2.0},
    ]
    assert curve(log, {"held": "held out", "loss": "training"}) == [
        [0, "held out", 3.0],
        [2, "held out", 2.0],
        [1, "training", 1.0],
        [2, "training", 0.5],
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_require_finite_refuses_a_training_that_diverged(value):
    require_finite("sft", {"validation_loss": 0.0, "token_accuracy": 1.0})
    with pytest.raises(InputError, match=r"sft diverged \(token_accuracy is not finite\); lower models\.<name>\.sft"):
        require_finite("sft", {"validation_loss": 0.0, "token_accuracy": value})
