"""Every editing pipeline on tiny models of every kind: it makes a picture of its input's size or says why not."""

import numpy as np
import pytest
from tiny_edits import CALLS, consistent

import genkit
from genkit.errors import UnsupportedError

KINDS = ("sd", "sdxl", "lcm", "flux", "sd3", "wan")
#: What cannot be, with words of the reason.
REFUSED = {
    **{("flowedit", kind): "takes flow models" for kind in ("sd", "sdxl", "lcm")},
    **{(name, "wan"): "makes videos" for name in ("vimaedit", "inpaint", "rasg", "style", "consistent")},
    **{("rasg", kind): "joint attention" for kind in ("flux", "sd3")},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_every_pipeline_runs_on_every_kind_or_says_why_not(call, kind, pipe_of):
    pipe, reason = pipe_of(kind), REFUSED.get((call.__name__, kind))
    if reason is not None:
        with pytest.raises(UnsupportedError, match=reason):
            call(pipe)
    else:
        made = call(pipe)
        size = (2, 16, 32, 3) if call is consistent else (1, 20, 28, 3)
        assert made.frames.shape == size and made.frames.dtype == np.uint8
        assert made.frames.std() > 1
    assert not genkit.patches(pipe)
