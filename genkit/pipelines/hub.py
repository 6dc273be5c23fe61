"""Models of the Hugging Face hub: fetched, or found in its cache; why not, in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from genkit.errors import ArtifactError, said
from genkit.models.registry import Location
from genkit.pipelines.parts import errors_only


def fetch(location: Location) -> Path:
    """The folder of a model; a hub id is downloaded (or found in the cache) first.

    Raises:
        ArtifactError: the hub has no such model, refuses it, or cannot be reached.
    """
    if location.path is not None:
        return location.path
    from diffusers import DiffusionPipeline

    return _from_hub(
        location,
        lambda: DiffusionPipeline.download(location.name, revision=location.revision, use_safetensors=True),
    )


def fetch_files(location: Location, patterns: tuple[str, ...]) -> Path:
    """The folder of a model of the hub with the files that fit patterns, and whatever the cache holds of it.

    Raises:
        ArtifactError: see :func:`fetch`.
    """
    from huggingface_hub import snapshot_download

    return _from_hub(
        location,
        lambda: snapshot_download(location.name, revision=location.revision, allow_patterns=list(patterns)),
    )


def _from_hub(location: Location, get: Callable[[], str]) -> Path:
    """The folder that ``get`` returns, or the cause in one line."""
    try:
        with errors_only():  # the cause is told below, once
            return Path(get())
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise ArtifactError(f"cannot get {location.name} from the Hugging Face hub: {_hub_reason(error)}") from error


def _hub_reason(error: BaseException) -> str:
    """One line out of the chain of errors that the hub client raises."""
    from huggingface_hub import constants

    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    names = {type(link).__name__ for link in chain}
    if constants.HF_HUB_OFFLINE or "OfflineModeIsEnabled" in names:
        return (
            "offline mode is on (HF_HUB_OFFLINE) and the cache does not hold it; "
            "download it first, or give a local folder"
        )
    if "GatedRepoError" in names:
        return "access is restricted; accept its terms on the model page and log in with 'hf auth login'"
    if "RevisionNotFoundError" in names:
        return "it has no such revision"
    if "RepositoryNotFoundError" in names:
        return "there is no such model, or it is private and you are not logged in"
    if names & {
        "ConnectError",
        "ConnectTimeout",
        "ConnectionError",
        "ProxyError",
        "LocalEntryNotFoundError",
        "ReadTimeout",
        "gaierror",
    }:
        return "the hub cannot be reached and the cache does not hold it; check the network, or give a local folder"
    return said(error)
