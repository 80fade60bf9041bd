"""The model under examination: its handle, the architectures known by name, and how weights files are read."""

from neuralsanitizer.models.handle import Preprocessing, SuspectModel
from neuralsanitizer.models.hub import is_model_folder
from neuralsanitizer.models.loading import (
    load_model,
    names_its_architecture,
    parse_device,
    save_state_dict,
    state_dict_hash,
)

__all__ = [
    "Preprocessing",
    "SuspectModel",
    "is_model_folder",
    "load_model",
    "names_its_architecture",
    "parse_device",
    "save_state_dict",
    "state_dict_hash",
]
