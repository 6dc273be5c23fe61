"""What several tests of training share."""

import pytest


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    """A file of two prompts, to distill from."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a red circle moves right\na blue square spins\n")
    return path
