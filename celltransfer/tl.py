"""The scanpy-style door: functions on MuData that write their result into it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mudata import MuData

    from celltransfer.model.model import TransferModel


def translate(
    mdata: MuData,
    model: TransferModel,
    *,
    key_added: str | None = None,
    copy: bool = False,
    **options: Any,
) -> MuData | None:
    """Translate the source cells of `mdata` with a fitted `model`, as one step of a pipeline.

    The same as ``model.translate(mdata, ...)``; see `TransferModel.translate` for what is written where.

    Parameters
    ----------
    mdata
        MuData with the model's source modality.
    model
        A fitted model.
    key_added
        Name of the new modality; ``"{target}_from_{source}"`` if ``None``.
    copy
        Return a copy instead of writing into `mdata`.
    **options
        Passed on to `TransferModel.translate`.

    Returns
    -------
    MuData or None
        The copy, or ``None``; ``mdata.mod[key_added]`` holds the translation.
    """
    return model.translate(mdata, key_added=key_added, copy=copy, **options)
