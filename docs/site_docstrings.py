"""What griffe, which reads sources without running them, does not know of ctgpu's docstrings.

Functions that take the fields of a request as keywords have signature and docstring at run time
alone; and docstrings refer to each other in Sphinx's way, which Markdown would show as it stands.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import griffe

import ctgpu

OF_A_REQUEST = {
    "ctgpu.building.builder.build": ctgpu.build,
    "ctgpu.building.convert.convert_tars": ctgpu.convert_tars,
    "ctgpu.building.estimate.estimate_build": ctgpu.estimate_build,
}
ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`~?([\w.]+)`")


def as_markdown(docstring: str) -> str:
    """A docstring without what only Sphinx reads."""
    text = ROLE.sub(r"`\1`", docstring)
    return re.sub(r"(?m)^(.*?)::$", lambda line: f"{line[1]}:" if line[1].strip() else "", text)


def shown(default: Any) -> str | None:
    """A default as a signature shows it, the same in every run."""
    if default is inspect.Parameter.empty:
        return None
    return str(getattr(default, "__name__", repr(default)))


class RunTimeDocstrings(griffe.Extension):
    """Signatures and docstrings as Python's ``help`` has them."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        function = OF_A_REQUEST.get(obj.path)
        if function is not None and isinstance(obj, griffe.Function):
            obj.parameters = griffe.Parameters(
                *(
                    griffe.Parameter(
                        parameter.name,
                        annotation=str(parameter.annotation),
                        kind=griffe.ParameterKind[parameter.kind.name.lower()],
                        default=shown(parameter.default),
                    )
                    for parameter in inspect.signature(function).parameters.values()
                )
            )
            obj.docstring = griffe.Docstring(inspect.getdoc(function) or "", parent=obj)
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
