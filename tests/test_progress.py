"""What a finished run's diagnostics say against it."""

import torch

from fedbayes.evaluation import Evaluation
from fedbayes.inference.predictive import Predictive
from fedbayes.messages import to_record
from fedbayes.progress import Progress


def finished(ratio, saturation):
    nothing = torch.zeros(1, dtype=torch.long)
    said = Predictive(torch.full((1, 2), 0.5), torch.zeros(1))
    final = Evaluation(1, "test", said, nothing, nothing, nothing, {} if ratio is None else {"mixing_ratio": ratio})
    train = {} if saturation is None else {"bound_saturation": saturation}
    return Progress(to_record({}), final=final, train=train).warnings()


def test_a_collapsed_mixing_and_a_bound_limited_by_k_are_said_with_a_remedy():
    assert finished(0.3, 0.5) == finished(None, None) == []
    (collapsed,) = finished(0.03, 0.5)
    assert "mixing ratio 0.030, below 0.05" in collapsed
    assert "generator.init_scale" in collapsed
    (limited,) = finished(0.3, 0.92)
    assert "saturation 0.92, above 0.8" in limited
    assert "inference.reverse=gaussian" in limited
