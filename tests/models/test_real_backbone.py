"""A real pre-trained ViT on real photographs, against values computed elsewhere; needs both, so it is run by hand.

FEDBAYES_DATA names the folder with `office_caltech10/`, FEDBAYES_CHECKPOINT the file of timm's
`vit_tiny_patch16_224.augreg_in21k_ft_in1k`.
"""

import os
from pathlib import Path

import pytest
import torch

from fedbayes.data.sources.image_folder import image_folder
from fedbayes.models.zoo import from_timm

DATA, CHECKPOINT = os.environ.get("FEDBAYES_DATA"), os.environ.get("FEDBAYES_CHECKPOINT")


@pytest.mark.slow
@pytest.mark.needs_data
@pytest.mark.skipif(
    not (DATA and CHECKPOINT),
    reason="needs FEDBAYES_DATA with office_caltech10/, and timm's file in FEDBAYES_CHECKPOINT",
)
def test_linear_probes_across_domains_reach_the_known_accuracies():
    from sklearn.linear_model import LogisticRegression

    photos = image_folder(str(Path(str(DATA)) / "office_caltech10"), 224)
    assert len(photos) == 958 + 1123 + 157 + 295
    backbone = from_timm("vit_tiny_patch16_224", 224, checkpoint=CHECKPOINT)
    chosen = {name: photos.domains == i for i, name in enumerate(photos.domain_names) if name in ("dslr", "webcam")}
    features = {
        name: torch.cat([backbone.features(batch) for batch in photos.images[mask].split(32)]).numpy()
        for name, mask in chosen.items()
    }
    labels = {name: photos.labels[mask].numpy() for name, mask in chosen.items()}
    for source, target, known in (("dslr", "webcam", 0.983), ("webcam", "dslr", 1.0)):
        probe = LogisticRegression(max_iter=2000).fit(features[source], labels[source])
        assert probe.score(features[target], labels[target]) == pytest.approx(known, abs=0.015)
