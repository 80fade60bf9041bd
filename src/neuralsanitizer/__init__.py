"""NeuralSanitizer finds, shows, removes and disproves backdoors in neural networks that you did not train.

>>> from neuralsanitizer import load_model, load_clean_set, scan, repair, verify  # doctest: +SKIP
>>> model = load_model("model.safetensors", arch="mnist-cnn")  # doctest: +SKIP
>>> clean = load_clean_set("clean.npz", shape=model.input_shape)  # doctest: +SKIP
>>> run = scan(model, clean)  # doctest: +SKIP
>>> run.run.verdict.finding  # doctest: +SKIP
<Finding.INFECTED: 'infected'>
"""

from neuralsanitizer.data import CleanSet, load_clean_set
from neuralsanitizer.errors import NeuralSanitizerError, RefusedInputError
from neuralsanitizer.execution.allocator import keep_freed_memory
from neuralsanitizer.mitigation.filtering import GuardedModel, InputFilter, load_filter
from neuralsanitizer.models import Preprocessing, SuspectModel, load_model, save_state_dict
from neuralsanitizer.pipeline import RepairResult, guard, repair, scan, verify
from neuralsanitizer.records import Finding, LabelFinding, Run, Trigger, Verdict
from neuralsanitizer.storage import RunFolder, SavedRun

__all__ = [
    "CleanSet",
    "Finding",
    "GuardedModel",
    "InputFilter",
    "LabelFinding",
    "NeuralSanitizerError",
    "Preprocessing",
    "RefusedInputError",
    "RepairResult",
    "Run",
    "RunFolder",
    "SavedRun",
    "SuspectModel",
    "Trigger",
    "Verdict",
    "guard",
    "keep_freed_memory",
    "load_clean_set",
    "load_filter",
    "load_model",
    "repair",
    "save_state_dict",
    "scan",
    "verify",
]
