"""Files of a hub repository: from the cache, else downloaded; and what to say where neither works."""

from collections.abc import Sequence
from pathlib import Path

from vit_gelu.models.pretrained.checkpoint import OPTION

REACHED_WITHIN = 5.0  # seconds; huggingface_hub itself goes on trying for minutes


def fetch(repository: str, names: Sequence[str], source: str, *, option: str = OPTION) -> Path:
    """The first of several files that a repository has.

    A file in the cache is taken without asking whether there is a newer one: a run that is repeated reads what
    it has read before, online or not, and its record has the file's SHA-256.

    Args:
        repository: ``owner/name`` or ``owner/name@revision``.
        names: of files, the preferred one first.
        source: what the user wrote.
        option: where; a folder in its place is advised only for ``--model.pretrained``.

    Returns:
        The path in the cache.

    Raises:
        ValueError: no such repository, revision or file, no access, or the hub cannot be reached; the message
            says where the cache is and how to bring the file.
    """
    import huggingface_hub
    from huggingface_hub import errors

    identifier, _, revision = repository.partition("@")
    at = revision or None

    def offline(reason: str) -> ValueError:
        return ValueError(_offline(repository, names, f"{option} {source}", reason, folders=option == OPTION))

    try:
        for name in names:
            cached = huggingface_hub.try_to_load_from_cache(identifier, name, revision=at)
            if isinstance(cached, str):
                return Path(cached)
        unreachable = _unreachable()
        if unreachable:
            raise offline(unreachable)
        for name in names:
            try:
                return Path(huggingface_hub.hf_hub_download(identifier, name, revision=at))
            except (
                errors.LocalEntryNotFoundError
            ) as error:  # reached a moment ago, and now it does not answer
                raise offline(_reason(error)) from None
            except errors.EntryNotFoundError:
                continue
    except errors.HFValidationError:
        raise ValueError(
            f"{option} {source}: {identifier!r} is no name of a repository (owner/name)"
        ) from None
    except errors.GatedRepoError:
        raise ValueError(
            f"{option} {source}: {identifier} is gated: accept its terms on its page, then log in (hf auth login)"
        ) from None
    except errors.RevisionNotFoundError:
        raise ValueError(f"{option} {source}: {identifier} has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise ValueError(
            f"{option} {source}: no repository {identifier} on the hub, or a private one (hf auth login)"
        ) from None
    except ValueError:
        raise
    except Exception as error:  # the client's network errors have changed their classes between versions
        raise offline(_reason(error)) from None
    raise ValueError(f"{option} {source}: {repository} has no {' and no '.join(names)}")


def _unreachable() -> str:
    """Why the hub cannot be reached, found out quickly; empty if it answers, whatever the answer."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=REACHED_WITHIN)
    except Exception as error:  # see fetch
        return f"{constants.ENDPOINT}: {_reason(error)}"
    return ""


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:120] or type(error).__name__


def _offline(repository: str, names: Sequence[str], asked: str, reason: str, *, folders: bool) -> str:
    from huggingface_hub import constants

    identifier, _, revision = repository.partition("@")
    folder = identifier.rpartition("/")[2]
    weights = "model.safetensors" if names[0] == "config.json" else names[0]
    at = f" --revision {revision}" if revision else ""
    bring = [
        f"where there is a network: hf download {identifier}{at} config.json {weights} --local-dir {folder}",
        f"then bring that folder here: {OPTION} path/to/{folder}",
    ]
    if not folders:
        kept = f"models--{identifier.replace('/', '--')}"
        bring = [
            f"where there is a network: hf download {identifier}{at}; then copy {kept} from its cache into this one"
        ]
    return "\n".join(
        [
            f"{asked}: needs {' or '.join(names)} of {identifier}, and the hub cannot be reached ({reason})",
            f"not in the cache either: {constants.HF_HUB_CACHE} (HF_HUB_CACHE, or hub in HF_HOME)",
            *bring,
        ]
    )
