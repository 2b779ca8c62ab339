"""Which distilled weights the catalogue names for turbo, and which model serves it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.kits.engine_kit import image_request, request
from worker.base.errors import Unsupported
from worker.request import CATALOGUE, ModelSpec, choose
from worker.request.catalogue import I2V_A14B, T2V_A14B, with_distilled_fused

TURBO = request(quality_preset="turbo")
HYBRID = request(quality_preset="turbo", turbo_variant="hybrid")


def test_fused_weights_serve_full_turbo_and_nothing_else() -> None:
    fused = [with_distilled_fused(spec) for spec in (I2V_A14B, T2V_A14B)]
    for catalogue in ((*CATALOGUE, *fused), (*fused, *CATALOGUE)):
        keys = {
            "t2v": [request(), HYBRID, request(quality_preset="draft")],
            "i2v": [image_request(), image_request(quality_preset="turbo", turbo_variant="hybrid")],
            "t2v-turbo": [TURBO],
            "i2v-turbo": [image_request(quality_preset="turbo")],
        }
        for key, videos in keys.items():
            assert {choose(catalogue, video).key for video in videos} == {key}
    assert choose(CATALOGUE, TURBO).key == "t2v"


def test_fused_weights_alone_serve_no_hybrid() -> None:
    """As the trained demo model, whose distilled weights come fused."""
    catalogue = (replace(T2V_A14B, turbo=False, distilled=()), with_distilled_fused(T2V_A14B))
    assert choose(catalogue, TURBO).fused
    with pytest.raises(Unsupported, match="use full") as caught:
        choose(catalogue, HYBRID)
    assert caught.value.path == "turbo_variant"


@pytest.mark.parametrize("spec", [spec for spec in CATALOGUE if spec.turbo], ids=lambda spec: spec.key)
def test_the_catalogue_names_a_file_for_each_expert(spec: ModelSpec) -> None:
    assert [found.repo for found in spec.distilled] == ["lightx2v/Wan2.2-Lightning", "lightx2v/Wan2.2-Distill-Loras"]
    for found in spec.distilled:
        assert found.high.replace("high", "low") == found.low
        assert spec.key in found.high.lower()
        assert found.high.endswith(".safetensors")
    assert spec.boundary_ratio is not None
