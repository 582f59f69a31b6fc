"""How models lie in the folder that is served: a repository of many, or the files of one version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foldserve.artifact.format import MODEL_FILE
from foldserve.artifact.versions import list_versions
from foldserve.errors import ArtifactError
from foldserve.serving.repository.folder_hints import explain_emptiness
from foldserve.serving.repository.scanner import FoundModel, find_models, scan, scan_flat
from foldserve.text import join_names, quote

if TYPE_CHECKING:
    from pathlib import Path

# The number of the only version there is: its folder's name is not known.
FLAT_VERSION = 1


@dataclass(frozen=True)
class Layout:
    """Where versions are found: ``folder``/NAME/VERSION/.

    With ``model_name`` the files of one version lie in ``folder`` itself, as KServe's storage initializer
    copies them: it is version 1 of that model.
    """

    folder: Path
    model_name: str | None = None

    def scan(self) -> dict[str, FoundModel]:
        """Return every model, by name; those without versions are none.

        Raises:
            ArtifactError: the folder is none that can be read, or is plainly not laid out as a repository.
        """
        if self.model_name is None:
            return scan(self.folder)
        found = scan_flat(self.folder, FLAT_VERSION)
        return {self.model_name: found} if found.versions or found.fault else {}

    def version_folder(self, name: str, version: int) -> Path:
        """Return the folder in which a version's files lie."""
        return self.folder if self.model_name is not None else self.folder / name / str(version)

    def check(self) -> None:
        """Look whether the folder is laid out as ``model_name`` says; an empty one is.

        Raises:
            ArtifactError: it cannot be read or is plainly laid out otherwise; the message says what to give
                instead.
        """
        if self.scan() or self.model_name is None:
            return
        if models := find_models(self.folder):
            name, model = next(iter(models.items()))
            newest = self.folder / name / str(max(model.versions, default=1))
            raise ArtifactError(
                f"{self.folder} is a repository ({join_names(models)}) and holds no {MODEL_FILE} itself: "
                "leave out --model-name to serve all of it, or give a version's folder, as in --repository "
                f"{newest}"
            )
        if versions := list_versions(self.folder):
            raise ArtifactError(
                f"{self.folder} holds versions ({', '.join(map(str, versions))}) and no {MODEL_FILE} itself: "
                f"with --model-name give one of them, as in --repository {self.folder / str(versions[-1])}"
            )

    def explain_emptiness(self) -> str:
        """Say that there is nothing to serve, and what would be."""
        if self.model_name is None:
            return explain_emptiness(self.folder)
        return (
            f"{self.folder} holds no {MODEL_FILE}, which is served as {quote(self.model_name)} once it does"
        )
