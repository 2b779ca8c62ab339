"""The distilled weights of `quality_preset: turbo`: two LoRAs, one for each expert, put on for the run.

Weights into which they were fused (`builder.prepare --turbo`) are a model of their own and need none; nor does the
demo model. With `turbo_variant: hybrid` the high-noise expert stays as it is. The steps are in `schedules`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from worker.base.errors import InputFailed, InputInvalid, ModelUnavailable, Unsupported
from worker.engine.techniques.base import Adapter, Run, Technique


class Turbo(Technique):
    @contextmanager
    def applied(self, run: Run) -> Iterator[None]:
        request = run.request
        if request.quality_preset != "turbo":
            yield
            return
        path = request.at("quality_preset")
        run.parameters["turbo_variant"] = request.turbo_variant
        if run.spec.fused:
            run.parameters["distilled_weights"] = "fused"
        if (files := run.distilled) is not None:
            run.parameters["distilled_weights"] = files.repo
            if request.turbo_variant == "full":
                run.adapters.append(Adapter(files.high.path, files.high.name, 1.0, "high", path))
            run.adapters.append(Adapter(files.low.path, files.low.name, 1.0, "low", path))
        try:
            yield
        except (Unsupported, InputInvalid, InputFailed) as failure:
            if failure.path != path:
                raise
            raise ModelUnavailable(f"the distilled weights do not serve this model: {failure.message}") from failure
