"""`outlast checkpoints export`: a checkpoint as a file that needs no Outlast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from outlast._errors import ConfigError, FormatTooNew, ObjectDamaged, ObjectMissing
from outlast.checkpoint import catalog
from outlast.checkpoint.export import Exported, write_safetensors
from outlast.checkpoint.manifest import CheckpointId
from outlast.cli._file import new_file
from outlast.cli._place import checkpoint_named, open_run
from outlast.cli._show import console, print_json, size, text
from outlast.store.base import Store

SAFETENSORS = ".safetensors"
TORCH = (".pt", ".pth")


def export(
    run: str,
    checkpoint: str | None = None,
    /,
    *,
    to: Path,
    state: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write a checkpoint to a file that other programs read, every byte checked.

    FILE.safetensors holds the tensors of one module, by the names of its state_dict. FILE.pt holds the state_dict of
    every state, for torch.load(weights_only=True), so that plain torch goes on from it.

    Example: outlast checkpoints export gpt-small --to gpt-small.safetensors

    Args:
        run: URL, path, or name under $OUTLAST_STORE.
        checkpoint: Name of one checkpoint, as `list` shows it; the newest if left out.
        to: The file to make, .safetensors or .pt.
        state: A state to export, such as model; for .pt it may be given several times.
        overwrite: Replace the file if it exists.
        json: Print JSON.
    """
    if to.suffix not in (SAFETENSORS, *TORCH):
        msg = (
            f"{to}: the ending says the format: {SAFETENSORS} for the weights of a model, .pt for all states"
        )
        raise ConfigError(msg)
    if to.suffix == SAFETENSORS and len(state) > 1:
        msg = f"a safetensors file is one model's, and {len(state)} states were named: make one file for each"
        raise ConfigError(msg)
    store, record = open_run(run)
    id = _newest(store) if checkpoint is None else checkpoint_named(checkpoint)  # noqa: A001 - the field's name
    with new_file(to, overwrite=overwrite) as file:
        try:
            loaded = catalog.load(store, id)
            if to.suffix == SAFETENSORS:
                exported = write_safetensors(store, loaded, state[0] if state else None, file)
            else:
                from outlast.state.torch_file import write_torch  # the only command that needs torch

                exported = write_torch(store, loaded, id.name, state, file)
        except (ObjectMissing, ObjectDamaged, FormatTooNew) as error:
            msg = f"checkpoint {id.name} cannot be exported: {error}. Nothing was written; `list` shows the others."
            raise type(error)(msg) from error
    nbytes = to.stat().st_size
    if json:
        print_json(
            {
                "run_id": record.run_id,
                "url": store.url,
                "checkpoint": id.name,
                "step": id.step,
                "file": str(to),
                "bytes": nbytes,
                "states": exported.states,
                "tensors": exported.tensors,
                "left_out": exported.left_out,
            }
        )
    else:
        _show(exported, id, to, nbytes)


def _newest(store: Store) -> CheckpointId:
    found = catalog.committed(store)
    if not found:
        msg = f"{store.url} holds no checkpoint yet."
        raise ConfigError(msg)
    return found[0]


def _show(exported: Exported, id: CheckpointId, to: Path, nbytes: int) -> None:  # noqa: A002 - the field's name
    out = console()
    held = ", ".join(exported.states)
    out.print(text(f"{to}: step {id.step}, {held}: {exported.tensors} tensors, {size(nbytes)}"))
    for line in exported.left_out:
        out.print(text(f"left out: {line}", "yellow"))
