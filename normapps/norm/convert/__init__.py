"""Other norm layers in any model, and the ones it has frozen or synchronized."""

from .converter import Change, Conversion, convert_norm, convert_norm_
from .freeze import freeze_norm_, sync_norm_, unfreeze_norm_

__all__ = [
    "Change",
    "Conversion",
    "convert_norm",
    "convert_norm_",
    "freeze_norm_",
    "sync_norm_",
    "unfreeze_norm_",
]
