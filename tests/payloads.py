"""Files that would run a command if they were unpickled the ordinary way, and how the refusal calls it."""

import os

from toys import Toy

SIZES = {"image_size": 16}
#: what the sentence about a :class:`Payload` says
ASKS = f"{os.mkdir.__module__}.mkdir (os.mkdir), which could run code"


class Payload:
    """Makes a folder when it is unpickled the ordinary way."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


class Shell(Payload):
    def __reduce__(self):
        return os.system, (f"mkdir {self.marker}",)


def run_content(payload):
    """A checkpoint of a run whose optimizer holds the payload."""
    module = Toy(**SIZES)
    content = {"state_dict": module.state_dict(), "pytorch-lightning_version": "2.6.0", "epoch": 0, "global_step": 1}
    content |= {"optimizer_states": [{"state": {0: payload}}], "lr_schedulers": [], "loops": {}, "callbacks": {}}
    return content | {"hyper_parameters": dict(SIZES), "datamodule_hyper_parameters": {"image_size": 16, "count": 8}}
